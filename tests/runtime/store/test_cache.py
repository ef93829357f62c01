"""Shards of a cloud are kept on the local disk, shared, bounded, and checked like any other copy."""

from __future__ import annotations

import errno
import os
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from limbeck_runtime.storage import LocalFiles, NotFoundError, Storage
from limbeck_runtime.store import EmbeddingCodec, TeacherStore
from limbeck_runtime.store.layout import shard_path

EMBEDDINGS = np.arange(1600, dtype=np.float32).reshape(200, 8)


@pytest.fixture
def storage() -> Storage:
    return Storage.open(f"memory://{uuid.uuid4().hex}")


@pytest.fixture
def make_store(storage: Storage, tmp_path: Path) -> Callable[..., TeacherStore]:
    """As another process of the same machine would open it."""
    return lambda **settings: TeacherStore(storage, tmp_path, {"embedding": EmbeddingCodec()}, **settings)


def _write(store: TeacherStore, number: int) -> str:
    identity = f"{number:064d}"
    store.write(identity, [f"{row}" for row in range(200)], {"embedding": EMBEDDINGS + number}, {})
    return identity


def _cached(folder: Path) -> set[str]:
    return {Path(name).stem for _, _, names in os.walk(folder) for name in names}


def test_a_shard_is_fetched_once_for_all_processes(make_store, storage: Storage, tmp_path: Path) -> None:
    identity = _write(make_store(), 1)
    make_store().open(identity)

    storage.delete(shard_path(identity))

    assert np.array_equal(make_store().open(identity).read([3])["embedding"][0], EMBEDDINGS[3] + 1)
    assert _cached(tmp_path) == {identity}


def test_it_travels_compressed_and_lies_uncompressed(make_store, storage: Storage, tmp_path: Path) -> None:
    identity = _write(make_store(), 1)
    make_store().open(identity)

    assert len(storage.get(shard_path(identity))) < 0.9 * (tmp_path / shard_path(identity)).stat().st_size


def test_a_damaged_copy_is_fetched_again(make_store, tmp_path: Path) -> None:
    identity = _write(make_store(), 1)
    make_store().open(identity)
    copy = tmp_path / shard_path(identity)
    content = bytearray(copy.read_bytes())
    content[len(content) // 2] ^= 1
    copy.write_bytes(content)

    reader = make_store().open(identity)

    assert np.array_equal(reader.read([3])["embedding"][0], EMBEDDINGS[3] + 1)
    assert copy.read_bytes() != bytes(content)


def test_a_discarded_shard_is_gone_from_the_cache_too(make_store, storage: Storage, tmp_path: Path) -> None:
    store = make_store()
    identity = _write(store, 1)
    store.open(identity)
    storage.delete(shard_path(identity))
    storage.create(shard_path(identity), b"damaged after it was fetched")

    store.discard(identity)

    assert _cached(tmp_path) == set()
    with pytest.raises(NotFoundError):
        store.open(identity)


def test_the_least_recently_used_copies_go_first_when_the_cache_is_full(make_store, tmp_path: Path) -> None:
    identities = [_write(make_store(), number) for number in range(4)]
    make_store().open(identities[0])
    size = (tmp_path / shard_path(identities[0])).stat().st_size
    bound = {"cache_bytes": 3 * size}
    for number, identity in enumerate(identities[:3]):
        make_store(**bound).open(identity)
        os.utime(tmp_path / shard_path(identity), (number, number))
    make_store(**bound).open(identities[0])

    make_store(**bound).open(identities[3])

    assert _cached(tmp_path) == {identities[0], identities[2], identities[3]}


def test_an_open_shard_outlives_its_copy(make_store, tmp_path: Path) -> None:
    store = make_store(cache_bytes=0)
    readers = [store.open(_write(store, number)) for number in range(3)]

    assert len(_cached(tmp_path)) == 1
    for number, reader in enumerate(readers):
        assert np.array_equal(reader.read([199])["embedding"][0], EMBEDDINGS[199] + number)


def test_a_full_disk_costs_the_cache_and_not_the_run(storage: Storage, tmp_path: Path) -> None:
    class FullDisk(LocalFiles):
        def write(self, descriptor: int, data: memoryview) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store = TeacherStore(storage, tmp_path, {"embedding": EmbeddingCodec()}, files=FullDisk())
    identity = _write(store, 1)

    with pytest.warns(UserWarning, match=r"disk.* is full.*read from memory"):
        reader = store.open(identity)

    assert np.array_equal(reader.read([3])["embedding"][0], EMBEDDINGS[3] + 1)
    assert _cached(tmp_path) == set()


def test_open_shards_hold_no_file_open(make_store) -> None:
    store = make_store()
    identities = [_write(store, number) for number in range(20)]
    store.open(identities[0])
    before = len(os.listdir("/proc/self/fd"))

    readers = [store.open(identity) for identity in identities]

    assert len(os.listdir("/proc/self/fd")) == before
    assert all(reader.read([0])["embedding"][0, 1] == 1 + number for number, reader in enumerate(readers))


def test_a_shard_is_opened_once_a_process(make_store) -> None:
    store = make_store()
    identity = _write(store, 1)
    assert store.open(identity) is store.open(identity)


class _Watched:
    """A backend that calls `on_get` before each whole read."""

    def __init__(self, inner: object, on_get: Callable[[], object]) -> None:
        self._inner = inner
        self._on_get = on_get

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    def get(self, path: str) -> bytes:
        self._on_get()
        return self._inner.get(path)  # type: ignore[attr-defined]


def _watched_store(storage: Storage, folder: Path, on_get: Callable[[], object]) -> TeacherStore:
    watched = Storage(storage._root, storage._prefix, _Watched(storage._backend, on_get), ())
    return TeacherStore(watched, folder, {"embedding": EmbeddingCodec()})


def test_threads_fetch_different_shards_at_the_same_time(make_store, storage: Storage, tmp_path: Path) -> None:
    identities = [_write(make_store(), number) for number in range(4)]
    all_are_fetching = threading.Barrier(4, timeout=20)
    store = _watched_store(storage, tmp_path, all_are_fetching.wait)

    with ThreadPoolExecutor(4) as pool:
        readers = list(pool.map(store.open, identities))

    assert [reader.shard_id for reader in readers] == identities


def test_threads_that_want_the_same_shard_fetch_it_once(make_store, storage: Storage, tmp_path: Path) -> None:
    identity = _write(make_store(), 1)
    fetches: list[None] = []
    store = _watched_store(storage, tmp_path, lambda: fetches.append(None))

    with ThreadPoolExecutor(8) as pool:
        readers = list(pool.map(store.open, [identity] * 8))

    assert len(fetches) == 1
    assert len(set(readers)) == 1


def test_the_janitor_removes_half_written_copies(make_store, tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / ".tmp-1").write_bytes(b"half")

    assert make_store().janitor() == 1
    assert _cached(tmp_path) == set()
