"""Images in an OCI layout: what they consist of, as an archive, and into containerd.

Left out on purpose: building them (`images.py`), and images for several platforms.
"""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import tarfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

_REFERENCE = "org.opencontainers.image.ref.name"


@dataclass(frozen=True)
class Image:
    """One image in an OCI layout, which it shares with others."""

    name: str
    digest: str
    layout: Path

    def manifest(self) -> dict[str, Any]:
        manifest: dict[str, Any] = json.loads(self.blob(self.digest).read_text())
        return manifest

    def config(self) -> dict[str, Any]:
        """User, entry point, environment, labels: `config` of its configuration."""
        config: dict[str, Any] = json.loads(self.blob(self.manifest()["config"]["digest"]).read_text())["config"]
        return config

    def blobs(self) -> list[str]:
        """Digests of all that it consists of: the manifest, the configuration, the layers from the lowest."""
        manifest = self.manifest()
        return [self.digest, manifest["config"]["digest"], *(layer["digest"] for layer in manifest["layers"])]

    def blob(self, digest: str) -> Path:
        return self.layout / "blobs" / digest.replace(":", "/")

    def size_bytes(self) -> int:
        return sum(self.blob(digest).stat().st_size for digest in self.blobs())

    def load(self, ctr: Sequence[str], store: Path | None = None) -> int:
        """Import into the containerd that `ctr` (with its address and namespace) speaks to; returns the bytes sent.

        Layers that are there already are not sent again; containerd does not unpack them again either. With `store`,
        containerd's root folder, blobs that both have are then kept once, as hard links: neither ever changes one.
        """
        listed = subprocess.run([*ctr, "content", "ls", "-q"], check=True, capture_output=True, text=True)
        there = set(listed.stdout.split())
        command = [*ctr, "images", "import", "-"]
        sent = 0
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as importing:
            assert importing.stdin is not None
            assert importing.stdout is not None
            # One that ends early says why; that is told below.
            with contextlib.suppress(BrokenPipeError), importing.stdin as pipe:
                sent = self.write_archive(pipe, without=there)
            said = importing.stdout.read().decode(errors="replace")
        if importing.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} of {self.name} failed: {said.strip()}")
        if store is not None:
            self._share(store / "io.containerd.content.v1.content")
        return sent

    def _share(self, content: Path) -> None:
        for digest in self.blobs():
            theirs, ours = content / "blobs" / digest.replace(":", "/"), self.blob(digest)
            if theirs.exists() and not theirs.samefile(ours):
                link = ours.with_suffix(".unfinished")
                link.unlink(missing_ok=True)
                # On another file system there is nothing to save.
                with contextlib.suppress(OSError):
                    link.hardlink_to(theirs)
                    link.rename(ours)

    def write_archive(self, file: IO[bytes], without: Collection[str] = ()) -> int:
        """As an OCI archive; blobs in `without` are named in it but not in it. Returns the bytes of blobs written."""
        reference = {
            "mediaType": self.manifest().get("mediaType", "application/vnd.oci.image.manifest.v1+json"),
            "digest": self.digest,
            "size": self.blob(self.digest).stat().st_size,
            "annotations": {"io.containerd.image.name": self.name},
        }
        written = 0
        with tarfile.open(fileobj=file, mode="w|") as archive:
            _add(archive, "oci-layout", json.dumps({"imageLayoutVersion": "1.0.0"}))
            _add(archive, "index.json", json.dumps({"schemaVersion": 2, "manifests": [reference]}))
            # The manifest and the configuration are small and always wanted.
            for number, digest in enumerate(dict.fromkeys(self.blobs())):
                if number < 2 or digest not in without:
                    archive.add(self.blob(digest), arcname=f"blobs/{digest.replace(':', '/')}")
                    written += self.blob(digest).stat().st_size
        return written


def forget_old_blobs(layout: Path) -> None:
    """Those of images that a newer one of the same name has replaced: the index still has them, without a name."""
    index = json.loads((layout / "index.json").read_text())
    index["manifests"] = [
        reference for reference in index["manifests"] if _REFERENCE in reference.get("annotations", {})
    ]
    unfinished = layout / "index.json.unfinished"
    unfinished.write_text(json.dumps(index))
    unfinished.rename(layout / "index.json")
    wanted: set[str] = set()
    for reference in index["manifests"]:
        wanted.update(Image("", reference["digest"], layout).blobs())
    for blob in (layout / "blobs" / "sha256").iterdir():
        if f"sha256:{blob.name}" not in wanted:
            blob.unlink()


def _add(archive: tarfile.TarFile, name: str, text: str) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(text.encode())
    archive.addfile(entry, io.BytesIO(text.encode()))
