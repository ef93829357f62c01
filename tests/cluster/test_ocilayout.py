"""Images in an OCI layout: what an archive holds, and which blobs stay."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from ocilayout import Image


@pytest.fixture
def image(tmp_path: Path) -> Image:
    """A made-up one of two layers."""
    from ocilayout import Image

    def put(content: bytes) -> str:
        digest = hashlib.sha256(content).hexdigest()
        folder = tmp_path / "layout" / "blobs" / "sha256"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / digest).write_bytes(content)
        return f"sha256:{digest}"

    layers = [{"digest": put(b"heavy" * 100)}, {"digest": put(b"light")}]
    manifest = put(json.dumps({"config": {"digest": put(b"{}")}, "layers": layers}).encode())
    return Image("localhost/made-up:dev", manifest, tmp_path / "layout")


def test_an_archive_holds_all_but_the_layers_that_are_there_already(image: Image) -> None:
    manifest, config, heavy, light = image.blobs()
    whole, rest = io.BytesIO(), io.BytesIO()
    image.write_archive(whole)
    sent = image.write_archive(rest, without={manifest, config, heavy})
    assert [_digests(whole), _digests(rest)] == [[manifest, config, heavy, light], [manifest, config, light]]
    assert sent == sum(image.blob(digest).stat().st_size for digest in (manifest, config, light))


def test_an_archive_says_by_which_name_to_find_the_image(image: Image) -> None:
    file = io.BytesIO()
    image.write_archive(file)
    file.seek(0)
    with tarfile.open(fileobj=file) as archive:
        member = archive.extractfile("index.json")
        assert member is not None
        (reference,) = json.load(member)["manifests"]
    assert reference["digest"] == image.digest
    assert reference["annotations"] == {"io.containerd.image.name": "localhost/made-up:dev"}


def _digests(file: io.BytesIO) -> list[str]:
    file.seek(0)
    with tarfile.open(fileobj=file) as archive:
        return [name.removeprefix("blobs/").replace("/", ":") for name in archive.getnames() if name[:5] == "blobs"]


def test_a_replaced_image_is_forgotten_and_what_it_shares_stays(image: Image) -> None:
    """The index keeps it, without a name."""
    from ocilayout import Image, forget_old_blobs

    _, config, heavy, _ = image.blobs()
    manifest = json.dumps({"config": {"digest": config}, "layers": [{"digest": heavy}]}).encode()
    old = Image(image.name, f"sha256:{hashlib.sha256(manifest).hexdigest()}", image.layout)
    old.blob(old.digest).write_bytes(manifest)
    named = {"digest": image.digest, "annotations": {"org.opencontainers.image.ref.name": "made-up"}}
    (image.layout / "index.json").write_text(json.dumps({"manifests": [{"digest": old.digest}, named]}))
    forget_old_blobs(image.layout)
    assert not old.blob(old.digest).exists()
    assert all(image.blob(digest).exists() for digest in image.blobs())
    assert json.loads((image.layout / "index.json").read_text())["manifests"] == [named]


def test_an_import_sends_the_missing_layers_and_tells_what_went_wrong(image: Image, tmp_path: Path) -> None:
    """With a `ctr` that lists one layer, keeps what it is sent, and then fails."""
    heavy = image.blobs()[2]
    ctr = tmp_path / "ctr"
    ctr.write_text(
        f"#!/bin/sh\nif [ $1 = content ]; then echo {heavy}; else cat > {tmp_path}/sent; echo full; exit 1; fi\n"
    )
    ctr.chmod(0o755)
    with pytest.raises(RuntimeError, match=r"import - of localhost/made-up:dev failed: full"):
        image.load([str(ctr)])
    assert heavy not in _digests(io.BytesIO((tmp_path / "sent").read_bytes()))


def test_blobs_that_containerd_has_too_are_kept_once(image: Image, tmp_path: Path) -> None:
    heavy, light = image.blobs()[2:]
    theirs = tmp_path / "store" / "io.containerd.content.v1.content" / "blobs" / heavy.replace(":", "/")
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(image.blob(heavy).read_bytes())
    ctr = tmp_path / "ctr"
    ctr.write_text("#!/bin/sh\n[ $1 = content ] || cat > /dev/null\n")
    ctr.chmod(0o755)
    image.load([str(ctr)], store=tmp_path / "store")
    assert image.blob(heavy).samefile(theirs)
    assert image.blob(light).stat().st_nlink == 1
