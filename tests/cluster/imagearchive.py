"""Image archives without a builder: written out of a few files, and read for their names and their digest.

Both in the form of `docker save`, which containerd imports. Left out on purpose: building from a Dockerfile.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Image:
    """One layer with `files` (path in the image: file here) and symbolic `links` (path in the image: target)."""

    name: str
    files: Mapping[str, Path]
    entrypoint: Sequence[str] = ()
    command: Sequence[str] = ()
    user: str = "0"
    links: Mapping[str, str] = field(default_factory=dict)

    def recipe(self) -> str:
        """The same for as long as nothing that goes into it changes; a file by its size and time."""
        stamps = [(path, str(file), file.stat().st_size, file.stat().st_mtime_ns) for path, file in self.files.items()]
        parts = [self.name, stamps, [*self.entrypoint], [*self.command], self.user, dict(self.links)]
        return "recipe:" + hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@dataclass(frozen=True)
class Archived:
    names: list[str]
    digest: str


def write_archive(image: Image, archive: Path) -> None:
    """The same bytes for the same files."""
    layer = _layer(image)
    layer_id = hashlib.sha256(layer).hexdigest()
    configuration = {
        "architecture": "amd64",
        "os": "linux",
        "config": {
            "Entrypoint": [*image.entrypoint],
            "Cmd": [*image.command],
            "User": image.user,
            "WorkingDir": "/",
            "Env": ["PATH=/bin"],
        },
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer_id}"]},
        "history": [{"created_by": "limbeck testbed"}],
    }
    encoded = json.dumps(configuration, sort_keys=True).encode()
    config_name = f"{hashlib.sha256(encoded).hexdigest()}.json"
    manifest = [{"Config": config_name, "RepoTags": [image.name], "Layers": [f"{layer_id}/layer.tar"]}]
    with tarfile.open(archive, "w") as tar:
        _add(tar, config_name, encoded)
        _add(tar, f"{layer_id}/layer.tar", layer)
        _add(tar, "manifest.json", json.dumps(manifest).encode())


def read_archive(archive: Path) -> Archived:
    """Names and digest out of the archive's index, `docker save` or OCI; the layers are not read."""
    wanted = ("manifest.json", "index.json")
    with tarfile.open(archive) as tar:
        found = {member.name: _read(tar, member) for member in tar if member.name in wanted}
    if "manifest.json" in found:
        names = [name for entry in json.loads(found["manifest.json"]) for name in entry["RepoTags"] or []]
    elif "index.json" in found:
        manifests = json.loads(found["index.json"])["manifests"]
        annotated = [manifest.get("annotations", {}) for manifest in manifests]
        labels = ("io.containerd.image.name", "org.opencontainers.image.ref.name")
        names = [
            next(each[label] for label in labels if label in each) for each in annotated if set(labels) & set(each)
        ]
    else:
        raise ValueError(
            f"{archive} holds neither manifest.json nor index.json; save an image as docker-archive or OCI"
        )
    if not names:
        raise ValueError(f"{archive} gives its image no name; save it with one, such as localhost/NAME:dev")
    digest = hashlib.sha256(found.get("manifest.json", b"") + found.get("index.json", b"")).hexdigest()
    return Archived(names, f"sha256:{digest}")


def _layer(image: Image) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path, file in sorted(image.files.items()):
            _add(tar, path.lstrip("/"), file.read_bytes(), mode=0o755)
        for path, target in sorted(image.links.items()):
            link = tarfile.TarInfo(path.lstrip("/"))
            link.type, link.linkname = tarfile.SYMTYPE, target
            tar.addfile(link)
    return buffer.getvalue()


def _add(tar: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    tar.addfile(entry, io.BytesIO(content))


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None, f"{member.name} is no file"
    return file.read()
