"""A shard that is not what was written is found when it is first opened, discarded, and can be computed again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from limbeck_runtime.storage import Storage, StorageError
from limbeck_runtime.store import CorruptShardError, EmbeddingCodec, TeacherStore
from limbeck_runtime.store.layout import shard_path


def _replace(storage: Storage, path: str, content: bytes) -> None:
    storage.delete(path)
    storage.create(path, content)


def test_any_flipped_bit_and_any_cut_is_found(tmp_path: Path, make_example, codecs, unsynced_files) -> None:
    example = make_example(1)
    storage = Storage.open(str(tmp_path), files=unsynced_files)
    TeacherStore(storage, tmp_path / "cache", codecs).write(example.identity, example.keys, example.outputs, {})
    path = shard_path(example.identity)
    good = storage.get(path)

    damaged = [good[:length] for length in (0, 1, 39, 40, len(good) // 2, len(good) - 1)]
    damaged.append(good + b"\0")
    for position in [*range(0, len(good), 61), len(good) - 1, len(good) - 33]:
        damaged.append(good[:position] + bytes([good[position] ^ 1 << position % 8]) + good[position + 1 :])
    for content in damaged:
        _replace(storage, path, content)
        with pytest.raises(CorruptShardError, match=path):
            TeacherStore(storage, tmp_path / "cache", codecs).open(example.identity)


def test_a_shard_under_another_shards_name_is_found(make_store: Callable[..., TeacherStore], make_example) -> None:
    example = make_example(1)
    store = make_store()
    store.write(example.identity, example.keys, example.outputs, {})
    store.storage.create(shard_path("f" * 64), store.storage.get(shard_path(example.identity)))

    with pytest.raises(CorruptShardError, match=f"holds shard {example.identity}"):
        store.open("f" * 64)


def test_a_corrupt_shard_is_discarded_and_computed_again(make_store: Callable[..., TeacherStore], make_example) -> None:
    example = make_example(1)
    store = make_store()
    store.write(example.identity, example.keys, example.outputs, {})
    _replace(store.storage, shard_path(example.identity), b"damaged")
    with pytest.raises(CorruptShardError):
        store.open(example.identity)

    store.discard(example.identity)

    assert not store.has(example.identity)
    assert not store.write(example.identity, example.keys, example.outputs, {}).already_there
    assert store.open(example.identity).keys == tuple(example.keys)


def test_a_discard_that_comes_late_keeps_the_new_shard(make_store: Callable[..., TeacherStore], make_example) -> None:
    """Two ranks find the same bad shard; the second discards when the first has already had it recomputed."""
    example = make_example(1)
    first, second = make_store(), make_store()
    first.write(example.identity, example.keys, example.outputs, {})
    _replace(first.storage, shard_path(example.identity), b"damaged")
    for store in (first, second):
        with pytest.raises(CorruptShardError):
            store.open(example.identity)

    first.discard(example.identity)
    first.write(example.identity, example.keys, example.outputs, {})
    second.discard(example.identity)

    assert second.open(example.identity).keys == tuple(example.keys)


def test_to_discard_what_is_not_there_is_fine(make_store: Callable[..., TeacherStore]) -> None:
    make_store().discard("0" * 64)


def test_a_newer_layout_is_not_taken_for_damage(tmp_path: Path) -> None:
    """To discard it would destroy what a newer version has computed."""
    store = TeacherStore(Storage.open(str(tmp_path)), tmp_path / "cache", {"embedding": EmbeddingCodec()})
    store.write("a" * 64, ["x"], {"embedding": np.ones((1, 1))}, {})
    path = tmp_path / shard_path("a" * 64)
    body = path.read_bytes()[:-40].replace(b'"layout": 1', b'"layout": 9')
    path.write_bytes(body + b"LIMBECK1" + hashlib.sha256(body).digest())

    with pytest.raises(StorageError, match="layout 9") as caught:
        store.open("a" * 64)
    assert not isinstance(caught.value, CorruptShardError)
