"""What was written is read back, in any order and over shards; on a local folder, in memory and on real S3."""

from __future__ import annotations

import errno
import os
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from limbeck_runtime.storage import LocalFiles, NotFoundError, OutOfSpaceError, Storage
from limbeck_runtime.store import (
    LOG_ZERO,
    Codec,
    EmbeddingCodec,
    Ragged,
    TeacherStore,
    TopKCodec,
    codec_to_json,
    read_batch,
    shard_id,
)

FIELDS = {
    "data": {"sha256": "ab"},
    "teacher": "cd",
    "preprocessing": "ef",
    "view": {"index": 0, "seed": 1},
    "signals": ["logits"],
    "codec": {"kind": "top_k"},
}


def _padded(output: object, fill: float) -> np.ndarray:
    return output.padded(fill) if isinstance(output, Ragged) else np.asarray(output)


def test_every_signal_comes_back(make_store: Callable[..., TeacherStore], make_example) -> None:
    example = make_example(1)
    written = make_store().write(example.identity, example.keys, example.outputs, {"teacher": "big"})

    reader = make_store().open(example.identity)

    assert not written.already_there
    assert (reader.num_samples, reader.keys) == (11, tuple(example.keys))
    assert reader.provenance == {"teacher": "big"}
    read = reader.read(np.arange(11))
    for name, most in (("image_embedding", 2e-3), ("text_embedding", 2e-2), ("features.layer.3", 0)):
        assert np.abs(read[name] - example.outputs[name]).max() <= most
    for name, most in (("logits", 0.05), ("class_logits", 0.05), ("sampled", 1e-6)):
        for part, fill in (("indices", 0), ("log_probs", LOG_ZERO), ("tail_log_mass", LOG_ZERO)):
            expected = _padded(example.outputs[f"{name}.{part}"], fill)
            assert np.abs(read[f"{name}.{part}"] - expected).max() <= (0 if part == "indices" else most), (name, part)
    for name in ("logits", "sampled"):
        assert np.array_equal(read[f"{name}.lengths"], example.outputs["logits.indices"].lengths)
    assert "class_logits.lengths" not in read


def test_kinds_of_numbers_are_as_documented(make_store: Callable[..., TeacherStore], make_example) -> None:
    example = make_example(1)
    store = make_store()
    store.write(example.identity, example.keys, example.outputs, {})

    for name, array in store.open(example.identity).read([0, 3]).items():
        is_whole = name.endswith(("indices", "lengths"))
        assert array.dtype == (np.int32 if is_whole else np.float32), name
        assert array.flags.c_contiguous, name
        assert array.flags.writeable, "a torch tensor is made of it"


@pytest.mark.parametrize("rows", [[0], [10, 0, 5], [3, 3, 3], [9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 10]])
def test_any_rows_in_any_order_equal_the_same_rows_of_the_whole(
    make_store: Callable[..., TeacherStore], make_example, rows: list[int]
) -> None:
    example = make_example(2)
    store = make_store()
    store.write(example.identity, example.keys, example.outputs, {})
    reader = store.open(example.identity)
    whole = reader.read(np.arange(11))

    some = reader.read(rows)

    for name, array in some.items():
        expected = whole[name][rows]
        if f"{name.split('.')[0]}.lengths" in whole and array.ndim > 1:
            expected = expected[:, : array.shape[1]]
            longest = int(some[f"{name.split('.')[0]}.lengths"].max())
            assert array.shape[1] == longest, "no padding beyond the longest sample"
        if name.startswith("sampled") and array.ndim > 2:
            expected = expected[:, :, : array.shape[2]]
        assert np.array_equal(array, expected), name


def test_a_batch_over_shards_equals_sample_by_sample(make_store: Callable[..., TeacherStore], make_example) -> None:
    store = make_store()
    readers = {}
    for number in (4, 5, 6):
        example = make_example(number, num_samples=8 + number)
        store.write(example.identity, example.keys, example.outputs, {})
        readers[number] = store.open(example.identity)
    shards = np.array([6, 4, 4, 5, 6, 6, 5, 4])
    rows = np.array([13, 2, 1, 0, 3, 13, 12, 11])

    batch = read_batch(readers, shards, rows)

    for place, (shard, row) in enumerate(zip(shards, rows, strict=True)):
        for name, array in readers[shard].read([row]).items():
            if name.endswith("lengths") or array.ndim == 1:
                assert batch[name][place] == array[0]
                continue
            inside = tuple(slice(0, length) for length in array.shape[1:])
            assert np.array_equal(batch[name][place][inside], array[0]), (name, place)
            fill = batch[name][place].copy()
            fill[inside] = 0
            assert set(np.unique(fill)) <= {0.0, LOG_ZERO}


def test_only_the_signals_asked_for_are_read(make_store: Callable[..., TeacherStore], make_example) -> None:
    example = make_example(1)
    store = make_store()
    store.write(example.identity, example.keys, example.outputs, {})

    read = store.open(example.identity).read([1, 2], ["text_embedding", "class_logits"])

    assert list(read) == [
        "text_embedding", "class_logits.indices", "class_logits.log_probs", "class_logits.tail_log_mass",
    ]  # fmt: skip


def test_a_sample_is_found_by_its_key(make_store: Callable[..., TeacherStore], make_example) -> None:
    example = make_example(1)
    store = make_store()
    store.write(example.identity, example.keys, example.outputs, {})
    reader = store.open(example.identity)

    assert [reader.row_of(key) for key in example.keys] == list(range(11))
    with pytest.raises(KeyError):
        reader.row_of("1/11")


@pytest.mark.parametrize("row", [-1, 11])
def test_a_row_that_is_not_there_is_refused(make_store: Callable[..., TeacherStore], make_example, row: int) -> None:
    example = make_example(1)
    store = make_store()
    store.write(example.identity, example.keys, example.outputs, {})
    reader = store.open(example.identity)

    with pytest.raises(IndexError, match=rf"0 to 10, got {row}"):
        reader.read([0, row])
    with pytest.raises(ValueError, match="at least one"):
        reader.read([])


def test_a_shard_is_written_once(make_store: Callable[..., TeacherStore], make_example) -> None:
    example, other = make_example(1), make_example(2)
    store = make_store()
    assert not store.has(example.identity)

    first = store.write(example.identity, example.keys, example.outputs, {})
    second = make_store().write(example.identity, other.keys, other.outputs, {})

    assert (first.already_there, second.already_there) == (False, True)
    assert first.bytes > 1000
    assert store.has(example.identity)
    assert store.identities() == {example.identity}
    assert store.open(example.identity).keys == tuple(example.keys)


def test_of_many_writers_of_one_shard_one_wins_whole(make_store: Callable[..., TeacherStore], make_example) -> None:
    examples = [make_example(number) for number in range(4)]
    store = make_store()

    def write(example) -> bool:
        return store.write(examples[0].identity, example.keys, example.outputs, {}).already_there

    with ThreadPoolExecutor(4) as pool:
        already_there = list(pool.map(write, examples))

    assert sorted(already_there) == [False, True, True, True]
    assert store.open(examples[0].identity).keys == tuple(examples[already_there.index(False)].keys)


def test_a_full_disk_is_said_and_leaves_no_half_shard(make_example, codecs, tmp_path: Path) -> None:
    class FullDisk(LocalFiles):
        def write(self, descriptor: int, data: memoryview) -> None:
            os.write(descriptor, data[:100])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    example = make_example(1)
    store = TeacherStore(Storage.open(str(tmp_path / "full"), files=FullDisk()), tmp_path / "cache", codecs)

    with pytest.raises(OutOfSpaceError, match=rf"{example.identity}\.arrow.*free space"):
        store.write(example.identity, example.keys, example.outputs, {})

    assert not store.has(example.identity)
    assert [names for _, _, names in os.walk(tmp_path / "full") if names] == []


def test_a_shard_that_is_not_there_is_said(make_store: Callable[..., TeacherStore]) -> None:
    with pytest.raises(NotFoundError):
        make_store().open("0" * 64)


def test_a_store_goes_to_another_process(make_store: Callable[..., TeacherStore], make_example) -> None:
    example = make_example(1)
    store = make_store()
    store.write(example.identity, example.keys, example.outputs, {})
    store.open(example.identity)

    copy = pickle.loads(pickle.dumps(store))

    assert copy.open(example.identity).keys == tuple(example.keys)
    assert copy.codecs == store.codecs


def test_what_was_read_can_be_written_again(
    make_store: Callable[..., TeacherStore], make_example, tmp_path: Path
) -> None:
    example = make_example(1)
    store = make_store()
    store.write(example.identity, example.keys, example.outputs, {})
    read = store.open(example.identity).read(np.arange(11))
    other = TeacherStore(Storage.open(str(tmp_path / "other")), tmp_path / "cache", store.codecs)

    other.write(example.identity, example.keys, read, {})

    again = other.open(example.identity).read(np.arange(11))
    for name, array in read.items():
        assert np.abs(again[name] - array).max() < 2e-3, name


def test_tokens_may_come_padded_and_full(tmp_path: Path) -> None:
    store = TeacherStore(Storage.open(str(tmp_path)), tmp_path / "cache", {"logits": TopKCodec(1, 4)})
    outputs = {
        "logits.indices": np.array([[[1], [2]], [[3], [0]]]),
        "logits.log_probs": np.full((2, 2, 1), -0.1),
        "logits.tail_log_mass": np.log1p(-np.exp(np.full((2, 2), -0.1))),
    }
    store.write("a" * 64, ["x", "y"], outputs, {})
    store.write("b" * 64, ["x", "y"], outputs | {"logits.lengths": np.array([2, 1])}, {})

    assert store.open("a" * 64).read([1])["logits.indices"].tolist() == [[[3], [0]]]
    assert store.open("b" * 64).read([1])["logits.indices"].tolist() == [[[3]]]


def test_a_shard_may_be_empty_and_so_may_all_its_samples(tmp_path: Path) -> None:
    codecs: dict[str, Codec] = {"logits": TopKCodec(1, 4), "embedding": EmbeddingCodec()}
    store = TeacherStore(Storage.open(str(tmp_path)), tmp_path / "cache", codecs)
    for identity, keys in (("a" * 64, []), ("b" * 64, ["x", "y"])):
        lengths = np.zeros(len(keys), int)
        outputs = {
            "logits.indices": Ragged(np.zeros((0, 1), int), lengths),
            "logits.log_probs": Ragged(np.zeros((0, 1)), lengths),
            "logits.tail_log_mass": Ragged(np.zeros(0), lengths),
            "embedding": np.zeros((len(keys), 3)),
        }
        store.write(identity, keys, outputs, {})

    assert store.open("a" * 64).keys == ()
    read = store.open("b" * 64).read([1, 0])
    assert read["logits.indices"].shape == (2, 0, 1)
    assert read["embedding"].shape == (2, 3)


def test_many_rows_go_through_the_encoder_in_blocks(tmp_path: Path) -> None:
    """More tokens than one block; the seams must not show."""
    store = TeacherStore(Storage.open(str(tmp_path)), tmp_path / "cache", {"logits": TopKCodec(2, 9000)})
    lengths = np.array([5000, 3, 4000])
    indices = np.arange(9003 * 2).reshape(9003, 2) % 9000
    outputs = {
        "logits.indices": Ragged(indices, lengths),
        "logits.log_probs": Ragged(np.tile(np.log([0.5, 0.25]), (9003, 1)), lengths),
        "logits.tail_log_mass": Ragged(np.full(9003, np.log(0.25)), lengths),
    }
    store.write("a" * 64, ["x", "y", "z"], outputs, {})

    read = store.open("a" * 64).read([2, 0])

    assert np.array_equal(read["logits.indices"][0, :4000], indices[5003:])
    assert np.array_equal(read["logits.indices"][1], indices[:5000])


def test_other_tools_can_open_a_shard(tmp_path: Path, make_example, codecs) -> None:
    example = make_example(1)
    TeacherStore(Storage.open(str(tmp_path)), tmp_path / "cache", codecs).write(
        example.identity, example.keys, example.outputs, {}
    )
    path = tmp_path / "shards" / example.identity[:2] / f"{example.identity}.arrow"

    with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as stream:
        table = stream.read_all()

    table.validate(full=True)
    assert table.column_names == ["key", *codecs]
    assert table["key"].to_pylist() == example.keys
    assert pa.types.is_list(table.schema.field("logits").type)


def test_an_id_depends_on_every_field_and_on_no_order() -> None:
    identity = shard_id(FIELDS)

    assert len(identity) == 64
    assert shard_id(dict(reversed(FIELDS.items()))) == identity
    changed = [shard_id({**FIELDS, name: "other"}) for name in FIELDS]
    assert len({identity, *changed}) == len(FIELDS) + 1


def test_an_id_needs_every_field() -> None:
    for name in FIELDS:
        with pytest.raises(ValueError, match=rf"\['{name}'\] is missing"):
            shard_id({other: value for other, value in FIELDS.items() if other != name})
    with pytest.raises(ValueError, match="JSON compliant"):
        shard_id({**FIELDS, "data": float("nan")})


def test_a_codec_with_other_settings_makes_another_id() -> None:
    ids = {shard_id({**FIELDS, "codec": codec_to_json(TopKCodec(k, 100, bits))}) for k in (5, 6) for bits in (6, 8)}
    assert len(ids) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_embedding": np.ones((10, 16))}, "image_embedding must have one entry for each of 11 keys, got 10"),
        ({"image_embedding": np.ones(11)}, "must have 2 dimensions"),
        ({"class_logits.log_probs": None}, r"must hold class_logits.log_probs"),
        ({"unheard_of": np.ones(11)}, r"\['unheard_of'\] too"),
        ({"text_embedding": np.full((11, 8), np.nan)}, "text_embedding: values must be finite"),
        ({"logits.log_probs": Ragged(np.zeros((11, 4)), np.ones(11, int))}, "same lengths"),
        ({"logits.log_probs": np.zeros((11, 4))}, "same lengths"),
    ],
)
def test_outputs_that_do_not_fit_are_refused_by_name(make_example, codecs, tmp_path: Path, change, message) -> None:
    example = make_example(1)
    outputs = {name: output for name, output in (example.outputs | change).items() if output is not None}
    store = TeacherStore(Storage.open(str(tmp_path)), tmp_path / "cache", codecs)

    with pytest.raises(ValueError, match=message):
        store.write(example.identity, example.keys, outputs, {})
    assert not store.has(example.identity)


def test_a_key_that_comes_twice_is_refused(make_example, codecs, tmp_path: Path) -> None:
    example = make_example(1)
    store = TeacherStore(Storage.open(str(tmp_path)), tmp_path / "cache", codecs)
    with pytest.raises(ValueError, match="'1/3' twice"):
        store.write(example.identity, [*example.keys[:10], "1/3"], example.outputs, {})


def test_shards_of_different_codecs_do_not_mix(tmp_path: Path) -> None:
    readers = {}
    for number, codec in enumerate((EmbeddingCodec(), EmbeddingCodec("int8"))):
        store = TeacherStore(Storage.open(str(tmp_path)), tmp_path / "cache", {"embedding": codec})
        store.write(f"{number:064d}", ["x"], {"embedding": np.ones((1, 3))}, {})
        readers[number] = store.open(f"{number:064d}")
    with pytest.raises(ValueError, match="stored alike"):
        read_batch(readers, np.array([0, 1]), np.array([0, 0]))
