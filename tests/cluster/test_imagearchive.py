"""Image archives: written so that they are the same for the same files, and known again by what is in them."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import pytest


def test_an_archive_is_the_same_bytes_for_the_same_files(tmp_path: Path) -> None:
    from imagearchive import Image, write_archive

    (tmp_path / "program").write_text("x")
    image = Image("localhost/some:1", {"/program": tmp_path / "program"})
    write_archive(image, tmp_path / "one.tar")
    os.utime(tmp_path / "program", (1, 1))
    write_archive(image, tmp_path / "two.tar")
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()


def test_an_archive_is_read_back_by_name_and_by_the_digest_of_its_content(tmp_path: Path) -> None:
    from imagearchive import Image, read_archive, write_archive

    (tmp_path / "program").write_text("x")
    for archive, name, content in (("a", "some:1", "x"), ("b", "other:1", "x"), ("c", "some:1", "y")):
        (tmp_path / "program").write_text(content)
        write_archive(Image(f"localhost/{name}", {"/program": tmp_path / "program"}), tmp_path / archive)
    read = [read_archive(tmp_path / archive) for archive in "abc"]
    assert [archived.names for archived in read] == [["localhost/some:1"], ["localhost/other:1"], ["localhost/some:1"]]
    assert len({archived.digest for archived in read}) == 3


def test_the_layer_holds_files_that_may_be_executed_and_links(tmp_path: Path) -> None:
    from imagearchive import Image, write_archive

    (tmp_path / "program").write_text("x")
    files, links = {"/bin/program": tmp_path / "program"}, {"/bin/alias": "program"}
    write_archive(Image("localhost/some:1", files, links=links), tmp_path / "archive.tar")
    with tarfile.open(tmp_path / "archive.tar") as archive:
        (entry,) = json.loads(_content(archive, "manifest.json"))
        with tarfile.open(fileobj=io.BytesIO(_content(archive, entry["Layers"][0]))) as layer:
            assert layer.getmember("bin/program").mode == 0o755
            assert layer.getmember("bin/alias").linkname == "program"


def test_an_oci_archive_is_known_by_its_annotation(tmp_path: Path) -> None:
    from imagearchive import read_archive

    annotations = {"org.opencontainers.image.ref.name": "localhost/some:dev"}
    _write(tmp_path / "oci.tar", "index.json", {"manifests": [{"digest": "sha256:1", "annotations": annotations}]})
    assert read_archive(tmp_path / "oci.tar").names == ["localhost/some:dev"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("else.json", {}, "holds neither manifest.json nor index.json"),
        ("manifest.json", [{"RepoTags": None}], "gives its image no name"),
        ("index.json", {"manifests": [{"digest": "sha256:1"}]}, "gives its image no name"),
    ],
)
def test_an_archive_that_nobody_could_name_is_refused(tmp_path: Path, name: str, content: object, message: str) -> None:
    from imagearchive import read_archive

    _write(tmp_path / "archive.tar", name, content)
    with pytest.raises(ValueError, match=message):
        read_archive(tmp_path / "archive.tar")


def test_a_recipe_changes_with_a_file(tmp_path: Path) -> None:
    from imagearchive import Image

    program = tmp_path / "program"
    program.write_text("x")
    image = Image("localhost/some:1", {"/program": program})
    before = image.recipe()
    assert image.recipe() == before
    program.write_text("xy")
    assert image.recipe() != before


def _write(archive: Path, name: str, content: object) -> None:
    encoded = json.dumps(content).encode()
    with tarfile.open(archive, "w") as tar:
        entry = tarfile.TarInfo(name)
        entry.size = len(encoded)
        tar.addfile(entry, io.BytesIO(encoded))


def _content(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    assert file is not None
    return file.read()
