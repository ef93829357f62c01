"""The four formats: one meaning, and every kind of broken sample found, named and skipped in each."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from limbeck.api.v1alpha1.data import Columns, DataFormat
from limbeck_runtime.data.compose import effective_columns
from limbeck_runtime.data.errors import BrokenShardError
from limbeck_runtime.data.read import read_shard
from limbeck_runtime.data.samples import BadReason, BadSample, RawSample
from limbeck_runtime.data.shard_ref import ShardRef

_FORMATS = list(DataFormat)
_FILES = [DataFormat.WEB_DATASET, DataFormat.PARQUET, DataFormat.JSON_LINES]
Parts = dict[str, bytes]
Damage = Callable[[Any, Parts], object]


def _truncate(builders: Any, parts: Parts) -> None:
    parts["png"] = parts["png"][:-40]


def _truncate_jpeg(builders: Any, parts: Parts) -> None:
    parts["png"] = builders.encode_image(1, 64, 64, "JPEG")[:-200]


def _not_an_image(builders: Any, parts: Parts) -> None:
    parts["png"] = b"<html>404</html>"


def _one_pixel(builders: Any, parts: Parts) -> None:
    parts["png"] = builders.encode_image(1, 1, 1)


def _too_long_a_side(builders: Any, parts: Parts) -> None:
    parts["png"] = builders.encode_image(1, 20_000, 2)


def _bomb(builders: Any, parts: Parts) -> None:
    # A PNG's width and height, claimed to be 20,000 pixels with the pixels of 12: the checksum is made to fit.
    whole = parts["png"]
    header = b"IHDR" + (20_000).to_bytes(4, "big") * 2 + whole[24:29]
    parts["png"] = whole[:12] + header + zlib.crc32(header).to_bytes(4, "big") + whole[33:]


def _no_image(builders: Any, parts: Parts) -> None:
    del parts["png"]


def _no_caption(builders: Any, parts: Parts) -> None:
    del parts["txt"]


def _empty_text(builders: Any, parts: Parts) -> None:
    parts["txt"] = b"   "


def _empty_wording(builders: Any, parts: Parts) -> None:
    parts["txt"] = b'["word1", ""]'


def _no_text_but_a_number(builders: Any, parts: Parts) -> None:
    parts["txt"] = b'["word1", 5]'


def _not_utf8(builders: Any, parts: Parts) -> None:
    parts["txt"] = "caf\xe9".encode("latin-1")


def _no_label(builders: Any, parts: Parts) -> None:
    parts["cls"] = b""


_DAMAGES: list[tuple[Damage, BadReason]] = [
    (_truncate, BadReason.TRUNCATED_IMAGE),
    (_truncate_jpeg, BadReason.TRUNCATED_IMAGE),
    (_not_an_image, BadReason.NOT_AN_IMAGE),
    (_one_pixel, BadReason.IMAGE_TOO_SMALL),
    (_too_long_a_side, BadReason.IMAGE_TOO_LARGE),
    (_bomb, BadReason.IMAGE_TOO_LARGE),
    (_no_image, BadReason.MISSING_IMAGE),
    (_no_caption, BadReason.MISSING_TEXT),
    (_empty_text, BadReason.EMPTY_TEXT),
    (_empty_wording, BadReason.EMPTY_TEXT),
    (_no_text_but_a_number, BadReason.WRONG_TYPE),
    (_not_utf8, BadReason.NOT_UTF8),
    (_no_label, BadReason.MISSING_LABEL),
]
# Without its image or class an image folder has no sample to be broken: the file is the sample, its folder the class.
_NOT_IN_A_FOLDER = (_no_image, _no_label)
_CASES = [
    pytest.param(data_format, damage, reason, id=f"{data_format.value}{damage.__name__}")
    for data_format in _FORMATS
    for damage, reason in _DAMAGES
    if not (data_format is DataFormat.IMAGE_FOLDER and damage in _NOT_IN_A_FOLDER)
]


@pytest.mark.parametrize(("data_format", "damage", "reason"), _CASES)
def test_a_broken_sample_is_counted_named_and_skipped(
    builders: Any, data_format: DataFormat, damage: Damage, reason: BadReason
) -> None:
    samples = {f"k{number}": builders.whole_sample(number) for number in range(3)}
    damage(builders, samples["k1"])
    index = builders.data_set(data_format).add("d", samples).index(max_bad_samples_percent=50)
    [bad] = index.bad
    assert bad.reason is reason, bad
    assert bad.detail
    assert "data/d" in bad.shard
    named = {
        # A line that is no UTF-8 does not tell its key: its number does.
        DataFormat.JSON_LINES: "d.jsonl#1" if reason is BadReason.NOT_UTF8 else "k1",
        DataFormat.IMAGE_FOLDER: "1/k1.png",
    }
    assert bad.key == named.get(data_format, "k1")
    kept = [key for shard in index.shards for key in shard.keys]
    assert sorted(key[-6:].removesuffix(".png")[-2:] for key in kept) == ["k0", "k2"]


@pytest.mark.parametrize("data_format", _FORMATS)
def test_all_formats_give_the_same_samples(builders: Any, data_format: DataFormat) -> None:
    samples = {f"k{number}": builders.whole_sample(number) for number in range(12)}
    data_set = builders.data_set(data_format).add("d", samples)
    index = data_set.index()
    columns = effective_columns(data_set.columns, data_format)
    found = {}
    for shard in index.shards:
        for sample in read_shard(shard.ref, columns, data_format):
            assert isinstance(sample, RawSample)
            found[sample.key.rpartition("/")[2].removesuffix(".png")] = sample
    assert {key: (sample.image, sample.texts, sample.label, dict(sample.slices)) for key, sample in found.items()} == {
        key: (parts["png"], (parts["txt"].decode(),), parts["cls"].decode(), {"category": parts["category"].decode()})
        for key, parts in samples.items()
    }


def test_a_shard_keeps_its_identity_when_it_is_packed_into_another_format(builders: Any) -> None:
    samples = {f"k{number}": builders.whole_sample(number) for number in range(4)}
    identities = {
        builders.data_set(data_format, data_format.value).add("d", samples).index().shards[0].identity
        for data_format in _FILES
    }
    assert len(identities) == 1


@pytest.mark.parametrize("data_format", [DataFormat.PARQUET, DataFormat.JSON_LINES])
def test_samples_without_key_column_are_named_by_file_and_row(builders: Any, data_format: DataFormat) -> None:
    data_set = builders.data_set(data_format)
    path = data_set.folder / "d.x"
    if data_format is DataFormat.PARQUET:
        pa.parquet.write_table(pa.table({"txt": ["one", "two"]}), path)
    else:
        path.write_text('{"txt": "one"}\n\n{"txt": "two"}\n')
    keys = [sample.key for sample in _read(path, Columns(text="txt"), data_format)]
    assert keys == ["d.x#0", "d.x#1" if data_format is DataFormat.PARQUET else "d.x#2"]


@pytest.mark.parametrize("data_format", _FILES)
def test_a_key_column_names_the_samples_and_a_sample_without_it_is_bad(builders: Any, data_format: DataFormat) -> None:
    samples = {f"k{number}": {"id": str(40 + number).encode(), "txt": b"text"} for number in range(2)} | {
        "k2": {"txt": b"text"}
    }
    data_set = builders.data_set(data_format).add("d", samples)
    [path] = data_set.folder.iterdir()
    first, second, third = _read(path, Columns(key="id", text="txt"), data_format)
    assert (first.key, second.key) == ("40", "41")
    assert isinstance(third, BadSample)
    assert third.reason is BadReason.MISSING_KEY


def _read(path: Path, columns: Columns, data_format: DataFormat) -> list[RawSample | BadSample]:
    return list(read_shard(ShardRef(uri=str(path), name=path.name, size=0), columns, data_format))


def test_parquet_takes_image_structs_lists_of_wordings_dictionaries_and_numbers(tmp_path: Path) -> None:
    table = pa.table(
        {
            "__key__": pa.array([7, 8]),
            "image": pa.array([{"bytes": b"pixels", "path": "x.png"}, {"bytes": None, "path": "y.png"}]),
            "texts": pa.array([["one", "two"], ["three"]]),
            "label": pa.array([3.0, None]),
            "kind": pa.array(["a", "b"]).dictionary_encode(),
        }
    )
    pa.parquet.write_table(table, tmp_path / "d.parquet")
    columns = Columns(image="image", text="texts", label="label", slices=["kind"])
    whole, bad = _read(tmp_path / "d.parquet", columns, DataFormat.PARQUET)
    assert whole == RawSample(key="7", image=b"pixels", texts=("one", "two"), label="3", slices={"kind": "a"})
    assert isinstance(bad, BadSample)
    assert bad.reason is BadReason.MISSING_IMAGE


def test_a_number_where_a_text_is_wanted_is_a_wrong_type(tmp_path: Path) -> None:
    pa.parquet.write_table(pa.table({"txt": [1.5], "image": ["a path"]}), tmp_path / "d.parquet")
    (tmp_path / "d.jsonl").write_text('{"txt": {"a": 1}, "image": 5}\n{"txt": "ok", "image": "no base64!"}\n')
    found = [
        *_read(tmp_path / "d.parquet", Columns(text="txt"), DataFormat.PARQUET),
        *_read(tmp_path / "d.jsonl", Columns(text="txt"), DataFormat.JSON_LINES)[:1],
        *_read(tmp_path / "d.jsonl", Columns(image="image"), DataFormat.JSON_LINES),
    ]
    assert [getattr(sample, "reason", None) for sample in found] == [BadReason.WRONG_TYPE] * 4


def test_json_lines_take_images_by_path_and_as_base64(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.png").write_bytes(b"pixels")
    encoded = base64.b64encode(b"pixels").decode()
    values = ["images/1.png", encoded, f"data:image/png;base64,{encoded}"]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps({"image": value}) + "\n" for value in values))
    found = _read(tmp_path / "d.jsonl", Columns(image="image"), DataFormat.JSON_LINES)
    assert [sample.image for sample in found if isinstance(sample, RawSample)] == [b"pixels"] * 3


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("../secret.png", BadReason.WRONG_TYPE),
        ("/etc/passwd.png", BadReason.WRONG_TYPE),
        ("images/../../secret.png", BadReason.WRONG_TYPE),
        ("images/gone.png", BadReason.MISSING_IMAGE),
    ],
)
def test_a_path_in_json_lines_never_leaves_the_folder(tmp_path: Path, value: str, reason: BadReason) -> None:
    (tmp_path / "secret.png").write_bytes(b"secret")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "d.jsonl").write_text(json.dumps({"image": value}))
    [bad] = _read(tmp_path / "data" / "d.jsonl", Columns(image="image"), DataFormat.JSON_LINES)
    assert isinstance(bad, BadSample)
    assert bad.reason is reason


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", BadReason.INVALID_JSON),
        ("[1]", BadReason.INVALID_JSON),
        ("[" * 100_000, BadReason.INVALID_JSON),
        ('{"__key__": "", "txt": "a"}', BadReason.MISSING_KEY),
        ('{"__key__": [1], "txt": "a"}', BadReason.WRONG_TYPE),
        ('{"txt": "\\ud800"}', BadReason.NOT_UTF8),
        ('{"txt": []}', BadReason.EMPTY_TEXT),
    ],
)
def test_a_line_that_is_no_sample_spoils_only_itself(tmp_path: Path, line: str, reason: BadReason) -> None:
    (tmp_path / "d.jsonl").write_text(f'{line}\n{{"txt": "fine"}}\n')
    bad, fine = _read(tmp_path / "d.jsonl", Columns(text="txt"), DataFormat.JSON_LINES)
    assert isinstance(bad, BadSample)
    assert (bad.key, bad.reason) == ("d.jsonl#0", reason)
    assert isinstance(fine, RawSample)


@pytest.mark.parametrize("keep", [0, 4, 300, -30])
def test_a_cut_parquet_file_is_an_error_that_names_it(builders: Any, keep: int) -> None:
    data_set = builders.data_set(DataFormat.PARQUET).add("d", {"k": builders.whole_sample(1)})
    [path] = data_set.folder.iterdir()
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(BrokenShardError, match=r"d\.parquet"):
        _read(path, data_set.columns, DataFormat.PARQUET)


def test_damage_inside_of_a_parquet_file_is_an_error_that_names_it(builders: Any) -> None:
    samples = {f"k{number}": builders.whole_sample(number) for number in range(20)}
    data_set = builders.data_set(DataFormat.PARQUET).add("d", samples)
    [path] = data_set.folder.iterdir()
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 2000] = b"\xff" * 2000
    path.write_bytes(data)
    with pytest.raises(BrokenShardError, match=r"d\.parquet"):
        _read(path, data_set.columns, DataFormat.PARQUET)


def test_a_folder_image_without_class_folder_has_no_label(tmp_path: Path) -> None:
    ref = ShardRef(uri=f"{tmp_path}#0", name="0", size=1, folder=str(tmp_path), files=("a.png", "cat/b.png"))
    (tmp_path / "cat").mkdir()
    for name in ref.files:
        (tmp_path / name).write_bytes(b"pixels")
    columns = effective_columns(Columns(), DataFormat.IMAGE_FOLDER)
    bad, whole = read_shard(ref, columns, DataFormat.IMAGE_FOLDER)
    assert isinstance(bad, BadSample)
    assert bad.reason is BadReason.MISSING_LABEL
    assert whole == RawSample(key="cat/b.png", image=b"pixels", label="cat")


def test_a_file_that_vanishes_from_an_image_folder_is_an_error(tmp_path: Path) -> None:
    ref = ShardRef(uri=f"{tmp_path}#0", name="0", size=1, folder=str(tmp_path), files=("cat/gone.png",))
    with pytest.raises(BrokenShardError, match=r"gone\.png"):
        list(read_shard(ref, effective_columns(Columns(), DataFormat.IMAGE_FOLDER), DataFormat.IMAGE_FOLDER))


def test_columns_that_name_no_part_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`spec.data.columns` must name at least one of"):
        effective_columns(Columns(label="cls"), DataFormat.PARQUET)
