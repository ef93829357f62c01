"""Debian's packages: those that the testbed wants installed, and those of which it only takes the files."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import gotools

# debootstrap makes the base of the images that run in the cluster.
NEEDED = (
    "buildah",
    "conntrack",
    "containerd",
    "containernetworking-plugins",
    "debootstrap",
    "ethtool",
    "iproute2",
    "ipset",
    "iptables",
    "kmod",
    "nftables",
    "runc",
    "skopeo",
    "socat",
)


def missing(packages: Sequence[str] = NEEDED) -> list[str]:
    """Those that dpkg does not have installed."""
    query = ["dpkg-query", "--show", "--showformat=${Package} ${db:Status-Status}\n", *packages]
    answer = subprocess.run(query, capture_output=True, text=True, check=False).stdout
    installed = {line.split()[0] for line in answer.splitlines() if line.endswith(" installed")}
    return [package for package in packages if package not in installed]


def install(packages: Sequence[str]) -> None:
    _get("install", "--yes", "--no-install-recommends", *packages)


def unpack(package: str) -> Path:
    """The files of a package in the cache, without installing it: nothing is configured or started."""
    target = unpacked_folder(package)
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as name:
            folder = Path(name)
            _get("download", package, folder=folder)
            (archive,) = folder.glob("*.deb")
            subprocess.run(["dpkg-deb", "--extract", str(archive), str(folder / "files")], check=True)
            (folder / "files").rename(target)
    return target


def unpacked_folder(package: str) -> Path:
    """Its name holds Debian's release, for what a release has is one version."""
    lines = Path("/etc/os-release").read_text(encoding="utf-8").splitlines()
    release = dict(line.split("=", 1) for line in lines if "=" in line)
    return gotools.cache() / "debian" / f"{package}-{release['ID']}-{release.get('VERSION_ID', '').strip(chr(34))}"


def _get(*arguments: str, folder: Path | None = None) -> None:
    """Asks for new lists of packages only where those that are here, if any, will not do."""
    try:
        _apt(*arguments, folder=folder)
    except RuntimeError:
        _apt("update")
        _apt(*arguments, folder=folder)


def _apt(*arguments: str, folder: Path | None = None) -> None:
    command = ["apt-get", "--quiet", *arguments]
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed; install them by hand:\n{done.stderr or done.stdout}")
