"""Tars: the same as the `webdataset` library understands, and never a sample lost unseen."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import webdataset

from limbeck.api.v1alpha1.data import Columns, DataFormat
from limbeck_runtime.data.errors import BrokenShardError
from limbeck_runtime.data.read import read_shard
from limbeck_runtime.data.samples import BadReason, BadSample, RawSample
from limbeck_runtime.data.shard_ref import ShardRef

_COLUMNS = Columns(image="png", text="txt", label="cls")


def _read(path: Path, columns: Columns = _COLUMNS) -> list[RawSample | BadSample]:
    ref = ShardRef(uri=str(path), name=path.name, size=path.stat().st_size)
    return list(read_shard(ref, columns, DataFormat.WEB_DATASET))


def _sample(sample: RawSample | BadSample) -> RawSample:
    assert isinstance(sample, RawSample), sample
    return sample


def test_what_the_webdataset_library_writes_is_read_here(tmp_path: Path) -> None:
    path = tmp_path / "theirs.tar"
    with webdataset.TarWriter(str(path)) as writer:
        for number in range(3):
            writer.write({"__key__": f"in/k{number}", "png": b"pixels", "txt": f"text {number}", "cls": number})
    assert _read(path) == [
        RawSample(key=f"in/k{number}", image=b"pixels", texts=(f"text {number}",), label=str(number))
        for number in range(3)
    ]


def test_what_the_tests_write_is_read_alike_by_the_webdataset_library(builders: Any, tmp_path: Path) -> None:
    written = {f"k{number}": builders.whole_sample(number) for number in range(3)}
    path = tmp_path / "ours.tar"
    path.write_bytes(builders.tar_bytes(written))
    with path.open("rb") as file:
        files = webdataset.tariterators.tar_file_iterator(file)
        theirs = [
            (sample["__key__"], sample["png"], sample["txt"].decode(), sample["cls"].decode())
            for sample in webdataset.tariterators.group_by_keys(dict(part, __url__="u") for part in files)
        ]
    ours = [(s.key, s.image, s.texts[0], s.label) for s in map(_sample, _read(path))]
    assert ours == theirs
    assert len(ours) == 3


def test_a_column_may_be_a_field_of_the_json_part_or_one_of_several_endings(builders: Any, tmp_path: Path) -> None:
    described = json.dumps({"caption": ["one", "two"], "kind": 4, "place": "indoors"}).encode()
    path = tmp_path / "a.tar"
    path.write_bytes(builders.tar_bytes({"k": {"JPEG": b"pixels", "json": described}}))
    columns = Columns(image="png;jpeg", text="caption", label="kind", slices=["place", "absent"])
    assert _read(path, columns) == [
        RawSample(key="k", image=b"pixels", texts=("one", "two"), label="4", slices={"place": "indoors"})
    ]


def test_a_damaged_json_part_makes_a_bad_sample_only_where_it_is_needed(builders: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(builders.tar_bytes({"k": {"txt": b"text", "json": b"{"}}))
    [needed] = _read(path, Columns(text="caption"))
    assert isinstance(needed, BadSample)
    assert needed.reason is BadReason.INVALID_JSON
    assert _sample(_read(path, Columns(text="txt"))[0]).texts == ("text",)


def test_gzipped_tars_are_unpacked(builders: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(builders.tar_bytes({"k": {"txt": b"text"}})))
    assert _sample(_read(path, Columns(text="txt"))[0]).key == "k"


def test_folders_links_and_files_without_ending_are_no_samples(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for name, kind in (("d.txt", tarfile.DIRTYPE), ("link.txt", tarfile.SYMTYPE), ("README", tarfile.REGTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
        for name in ("./a.b/k.txt", "__meta__.txt"):
            member = tarfile.TarInfo(name)
            member.size = 4
            tar.addfile(member, io.BytesIO(b"text"))
    assert [sample.key for sample in _read(path, Columns(text="txt"))] == ["a.b/k"]


def test_a_part_that_claims_too_many_bytes_is_not_read(builders: Any, tmp_path: Path) -> None:
    claim = tarfile.TarInfo("huge.txt")
    claim.size = 2**40
    path = tmp_path / "a.tar"
    path.write_bytes(builders.tar_bytes({"k": {"txt": b"text"}})[:1024] + claim.tobuf())
    found: list[RawSample | BadSample] = []
    ref = ShardRef(uri=str(path), name="a.tar", size=0)
    with pytest.raises(BrokenShardError):  # the claimed bytes are not there either
        found.extend(read_shard(ref, Columns(text="txt"), DataFormat.WEB_DATASET))
    assert path.stat().st_size < 4096


def test_a_file_name_that_is_no_utf8_is_a_bad_sample(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    member = tarfile.TarInfo("caf\udce9.txt")
    member.size = 4
    path.write_bytes(
        member.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape") + b"text".ljust(512, b"\0") + bytes(1024)
    )
    [bad] = _read(path, Columns(text="txt"))
    assert isinstance(bad, BadSample)
    assert (bad.key, bad.reason) == ("caf\\udce9", BadReason.NOT_UTF8)


def _cut_in_a_part(whole: bytes) -> bytes:
    return whole[: 512 * 5 + 100]


def _cut_at_the_end_mark(whole: bytes) -> bytes:
    return whole.rstrip(b"\0") + bytes(-len(whole.rstrip(b"\0")) % 512)


def _damaged_header(whole: bytes) -> bytes:
    return whole[: 4 * 512] + b"\xff" * 20 + whole[4 * 512 + 20 :]


def _two_joined(whole: bytes) -> bytes:
    return whole + whole


@pytest.mark.parametrize(
    ("damage", "after", "message"),
    [
        (_cut_in_a_part, "past sample 'k0'", "unexpected end of data"),
        (_cut_at_the_end_mark, "past sample 'k2'", "without tar's end mark"),
        (_damaged_header, "past sample 'k0'", "the header at byte 2048 is damaged"),
        (_two_joined, "past sample 'k2'", "several tars joined"),
        (lambda whole: b"", "from its start", "empty file"),
        (lambda whole: b"no tar at all" * 100, "from its start", "invalid header"),
    ],
)
def test_a_damaged_tar_is_an_error_that_names_shard_and_place(
    builders: Any, tmp_path: Path, damage: Any, after: str, message: str
) -> None:
    path = tmp_path / "a.tar"
    whole = builders.tar_bytes({f"k{number}": {"txt": b"x" * 400, "cls": b"1"} for number in range(3)})
    path.write_bytes(damage(whole))
    with pytest.raises(BrokenShardError, match=r"a\.tar") as broken:
        _read(path, Columns(text="txt"))
    assert after in str(broken.value)
    assert message in str(broken.value)


def test_a_damaged_gzip_is_an_error_that_names_the_shard(builders: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(builders.tar_bytes({"k": {"txt": b"text" * 200}}))[:-20])
    with pytest.raises(BrokenShardError, match=r"a\.tar\.gz"):
        _read(path, Columns(text="txt"))


def test_a_missing_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(BrokenShardError, match="there is no such file"):
        list(
            read_shard(ShardRef(uri=f"{tmp_path}/gone.tar", name="gone.tar", size=1), _COLUMNS, DataFormat.WEB_DATASET)
        )
