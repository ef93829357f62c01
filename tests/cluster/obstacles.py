"""Why this machine cannot run the test cluster; asked before anything is started, so that tests can be skipped by name.

Left out on purpose: what goes wrong later. Where nothing is said here, a cluster that does not come up is an error.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import gotools

# Images in the build's store and in containerd's, and what building them needs meanwhile.
_IMAGES_BYTES = 40 * 2**30
_REST_BYTES = 8 * 2**30


def obstacles(has_images: bool) -> list[str]:
    """Each a sentence; none: go ahead. `has_images`: the large image has been built here before."""
    return list(_obstacles(has_images))


def _obstacles(has_images: bool) -> Iterator[str]:
    if os.geteuid() != 0:
        yield "needs root, for namespaces, mounts and network interfaces"
        return
    if shutil.which("apt-get") is None:
        yield "needs Debian, whose packages it installs"
    if shutil.which("go") is None:
        yield "needs Go, to build Kubernetes"
    if subprocess.run(["unshare", "--mount", "--net", "true"], capture_output=True, check=False).returncode != 0:
        yield "may not make namespaces for mounts and networks here"
    free, wanted = _free_bytes(gotools.cache()), _REST_BYTES if has_images else _IMAGES_BYTES
    if free < wanted:
        has = f"has {free / 2**30:.0f} free (LIMBECK_CACHE moves it)"
        yield f"needs {wanted / 2**30:.0f} GiB of disk at {gotools.cache()}, which {has}"


def _free_bytes(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
