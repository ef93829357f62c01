"""Builds the Dockerfile's images without a registry or a daemon; `python tests/cluster/images.py` builds both.

Debian's buildah does it, on a base image made of Debian's packages. All lies in the cache ($LIMBECK_CACHE, else
~/.cache/limbeck): buildah's layers, and an OCI layout from which `Image.load` gives containerd what it lacks, so that a
change of our code moves the last small layer only. How this machine reaches package indices is mounted into a build and
never part of an image. Left out on purpose: other architectures, signatures, and throwing an old base image away.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import packageindex
from gotools import CannotBuildError, cache
from ocilayout import Image, forget_old_blobs

Target = Literal["operator", "runtime"]
TARGETS: tuple[Target, ...] = ("operator", "runtime")
ROOT = Path(__file__).parents[2]
SUITE = "bookworm"
BASE_PACKAGES = (
    "ca-certificates",
    "libstdc++6",
    "procps",
    "python3-distutils",
    "python3.11",
    "python3.11-venv",
    "wget",
)
# What of the checkout a build sees; all of it goes into the image's key.
INPUTS = ("Dockerfile", ".dockerignore", "LICENSE", "README.md", "pyproject.toml")
SOURCES = ("operator/limbeck", "runtime/limbeck_runtime")
_NO_DOCUMENTATION = (
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "var/cache/apt/archives",
    "var/lib/apt/lists",
)


def image_name(target: Target) -> str:
    """What manifests call it."""
    return f"localhost/limbeck-{target}:dev"


def image_cache() -> Path:
    return cache() / "images"


def base_image() -> str:
    """Name of the image that ours stand on: a small Debian with its own Python, made once."""
    with _locked():
        return _base_image()


def build(target: Target) -> Image:
    """The image of the checkout as it is now; seconds if only our code changed, less if nothing did."""
    name, layout = image_name(target), image_cache() / "layout"
    stamp = image_cache() / f"{target}.json"
    with _locked():
        base = _base_image()
        key, heavy = build_key(target, base), _hash(base, ROOT, _requirements(target))
        before = json.loads(stamp.read_text()) if stamp.exists() else {}
        if before.get("key") == key and _is_whole(Image(name, before["digest"], layout)):
            return Image(name, before["digest"], layout)
        build_image(target, base, name)
        image = Image(name, _export(name, layout), layout)
        unfinished = stamp.with_suffix(".unfinished")
        unfinished.write_text(json.dumps({"key": key, "heavy": heavy, "digest": image.digest}))
        unfinished.rename(stamp)
        forget_old_blobs(layout)
        if before.get("heavy", heavy) != heavy:
            # Gigabytes that nothing stands on any more; small layers of old code are left to the next time.
            _output(_buildah("rmi", "--prune", "--force"))
    return image


def build_key(target: Target, base: str, root: Path = ROOT) -> str:
    """Hash of all that goes into the image."""
    return _hash(f"{target} {base}", root, inputs(target, root))


def inputs(target: Target, root: Path = ROOT) -> list[str]:
    """Files that the image is made of, relative to `root`, sorted."""
    files = [*INPUTS, *_requirements(target)]
    for source in SOURCES:
        files += [
            str(path.relative_to(root))
            for path in (root / source).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        ]
    return sorted(files)


def build_image(target: Target, base: str, name: str) -> None:
    """Run the Dockerfile; layers whose inputs are the same come from buildah's cache."""
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    uv_cache = _output([uv, "cache", "dir"]).strip() if uv else ""
    if uv_cache:
        Path(uv_cache).mkdir(parents=True, exist_ok=True)
    settings = packageindex.read_settings(os.environ, uv_cache=uv_cache)
    mounts = packageindex.mounts(settings, image_cache() / "settings")
    volumes = [f"--volume={host}:{inside}" for host, inside in mounts.items()]
    arguments = [f"--target={target}", f"--tag={name}", f"--build-arg=BASE_IMAGE={base}", "--pull-never"]
    _run(_buildah("build", "--isolation=chroot", "--layers", *volumes, *arguments, str(ROOT)), f"buildah-{target}")


@contextmanager
def mounted(name: str) -> Iterator[Path]:
    """The root file system of an image; what is written there is thrown away."""
    container = _output(_buildah("from", "--pull-never", name)).strip()
    try:
        yield Path(_output(_buildah("mount", container)).strip())
    finally:
        _output(_buildah("rm", container))


def _base_image() -> str:
    key = hashlib.sha256("\n".join((SUITE, *BASE_PACKAGES, *_NO_DOCUMENTATION)).encode()).hexdigest()[:12]
    name = f"localhost/limbeck-base:{SUITE}-{key}"
    if not _exists(name):
        _require("debootstrap")
        rootfs = image_cache() / f"base-{key}"
        shutil.rmtree(rootfs, ignore_errors=True)
        include = f"--include={','.join(BASE_PACKAGES)}"
        _run(["debootstrap", "--variant=minbase", include, SUITE, str(rootfs)], "debootstrap")
        for folder in _NO_DOCUMENTATION:
            for entry in (rootfs / folder).iterdir():
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        for name_of_host in ("etc/resolv.conf", "etc/hostname"):
            (rootfs / name_of_host).write_text("")
        container = _output(_buildah("from", "scratch")).strip()
        try:
            _run(_buildah("add", "--quiet", container, str(rootfs), "/"), "buildah-base")
            _run(_buildah("commit", "--quiet", container, name), "buildah-base")
        finally:
            _output(_buildah("rm", container))
        shutil.rmtree(rootfs)
    return name


def _export(name: str, layout: Path) -> str:
    """Put the image into the layout; layers that it holds are not written again, as they are not compressed.

    skopeo does it: buildah compresses what it writes to a layout, and then finds nothing there again.
    """
    _require("skopeo")
    folder, reference = image_cache(), name.rpartition("/")[2].replace(":", "-")
    driver = _storage(folder)[-1].rpartition("=")[2]
    source = f"containers-storage:[{driver}@{folder / 'storage'}+{folder / 'run'}]{name}"
    digest = folder / f"{reference}.digest"
    options = ["--dest-oci-accept-uncompressed-layers", "--quiet", f"--digestfile={digest}"]
    _run(["skopeo", "copy", *options, source, f"oci:{layout}:{reference}"], "skopeo")
    return digest.read_text().strip()


def _requirements(target: Target) -> list[str]:
    return ["requirements/installer.txt", f"requirements/{target}.txt"]


def _hash(start: str, root: Path, files: Sequence[str]) -> str:
    found = hashlib.sha256(f"{start}\n".encode())
    for path in files:
        content = (root / path).read_bytes()
        found.update(f"{path} {len(content)}\n".encode() + content)
    return found.hexdigest()


def _is_whole(image: Image) -> bool:
    return image.blob(image.digest).exists() and all(image.blob(digest).exists() for digest in image.blobs())


def _exists(name: str) -> bool:
    return subprocess.run(_buildah("inspect", "--type=image", name), capture_output=True, check=False).returncode == 0


def _buildah(*arguments: str) -> list[str]:
    """With a storage of its own, so that no other user of buildah meets our images."""
    return [*_storage(image_cache()), *arguments]


@functools.cache
def _storage(folder: Path) -> tuple[str, ...]:
    """Overlays where the kernel has them for this file system, else whole copies of each layer."""
    _require("buildah")
    command = ("buildah", f"--root={folder / 'storage'}", f"--runroot={folder / 'run'}")
    overlay = (*command, "--storage-driver=overlay")
    if subprocess.run([*overlay, "info"], capture_output=True, check=False).returncode == 0:
        return overlay
    print("no overlay file system here: each layer is a whole copy, which takes much more disk", file=sys.stderr)
    return (*command, "--storage-driver=vfs")


def _require(program: str) -> None:
    if shutil.which(program) is None:
        raise CannotBuildError(f"needs {program} to build images: apt-get install buildah debootstrap skopeo")
    if os.geteuid() != 0:
        raise CannotBuildError("needs root to build images without a daemon")


def _output(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.strip()[-2000:]}")
    return done.stdout


def _run(command: Sequence[str], log_name: str) -> None:
    """A long command: what it says goes to a file in the cache."""
    log = image_cache() / "log" / f"{log_name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    temporary = image_cache() / "tmp"
    temporary.mkdir(exist_ok=True)
    with log.open("w") as file:
        done = subprocess.run(
            command, stdout=file, stderr=file, stdin=subprocess.DEVNULL, env=os.environ | {"TMPDIR": str(temporary)}
        )
    if done.returncode != 0:
        last = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
        raise RuntimeError(f"{command[0]} failed ({done.returncode}); its last lines, all of them in {log}:\n{last}")


@contextmanager
def _locked() -> Iterator[None]:
    """One process at a time."""
    image_cache().mkdir(parents=True, exist_ok=True)
    with (image_cache() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main() -> None:
    for target in TARGETS:
        began = time.monotonic()
        image = build(target)
        size = image.size_bytes() / 2**20
        print(f"{image.name} {image.digest} {size:.0f} MiB, {time.monotonic() - began:.1f} s", flush=True)


if __name__ == "__main__":
    main()
