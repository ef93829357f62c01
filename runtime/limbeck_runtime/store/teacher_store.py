"""The teacher-output store: shards written once, found by what they were computed from, read by mapping.

A shard is one object and its creation is its commit, so a half-written shard does not exist for anybody. On a local
disk it is mapped where it lies. From a cloud it comes compressed and is kept uncompressed in a cache folder that all
processes of a machine share. Its hash is checked when a process first opens it.

Left out: deleting shards that no job uses any more (they are content-addressed: remove the whole prefix).
"""

from __future__ import annotations

import os
import threading
import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from limbeck_runtime.storage import AlreadyExistsError, LocalFiles, NotFoundError, OutOfSpaceError, Storage
from limbeck_runtime.store.codec import Codec
from limbeck_runtime.store.layout import (
    Compression,
    CorruptShardError,
    parse,
    serialize,
    shard_path,
    verify,
)
from limbeck_runtime.store.reader import ShardReader
from limbeck_runtime.store.writer import Outputs, encode_shard

CACHE_BYTES = 32 * 2**30
# An open shard costs a mapping, of which Linux allows a process 65,530, and a little metadata.
_MAX_OPEN = 1024

# What a file that was verified is known by while the process lives.
_Stamp = tuple[int, int, int, int]


@dataclass(frozen=True)
class WriteResult:
    """Size of the shard, and whether it was there already (then nothing was written)."""

    bytes: int
    already_there: bool


class TeacherStore:
    """The shards below one storage prefix. `codecs` are what `write` uses; shards tell their own when read."""

    def __init__(
        self,
        storage: Storage,
        cache_dir: Path,
        codecs: Mapping[str, Codec],
        *,
        cache_bytes: int = CACHE_BYTES,
        files: LocalFiles | None = None,
    ) -> None:
        self.storage = storage
        self.codecs = dict(codecs)
        self._cache_bytes = cache_bytes
        self._cache = Storage.open(str(cache_dir), files=files or LocalFiles(durable=False))
        self._settings = (storage, cache_dir, self.codecs, cache_bytes, files)
        self._open: OrderedDict[str, ShardReader] = OrderedDict()
        self._verified: set[_Stamp] = set()
        self._gates: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, self._settings

    def has(self, identity: str) -> bool:
        """One look-up; does not read the shard."""
        return self.storage.head(shard_path(identity)) is not None

    def identities(self) -> set[str]:
        """The ids of all shards there are, by one listing."""
        return {Path(info.path).stem for info in self.storage.list("shards") if info.path.endswith(".arrow")}

    def write(self, identity: str, keys: Sequence[str], outputs: Outputs, provenance: Mapping[str, Any]) -> WriteResult:
        """Write a shard, whole and durable; if it is there already, that one stays.

        Raises ValueError if outputs do not fit keys and codecs, StorageError if the store fails.
        """
        compression: Compression = "none" if self.storage.local_path("shards") is not None else "zstd"
        data = encode_shard(identity, keys, outputs, self.codecs, provenance, compression)
        try:
            self.storage.create(shard_path(identity), data)
        except AlreadyExistsError:
            return WriteResult(len(data), already_there=True)
        return WriteResult(len(data), already_there=False)

    def open(self, identity: str) -> ShardReader:
        """Map a shard. Raises NotFoundError, or CorruptShardError: then `discard` it and compute it again."""
        with self._lock:
            reader = self._open.get(identity)
            if reader is not None:
                self._open.move_to_end(identity)
                return reader
            gate = self._gates.setdefault(identity, threading.Lock())
        # Other shards can be opened meanwhile: a student's threads fetch several at a time.
        with gate:
            reader = self._open.get(identity)  # opened by who held the gate before
            if reader is not None:
                return reader
            try:
                reader = self._map(identity)
                with self._lock:
                    self._open[identity] = reader
                    if len(self._open) > _MAX_OPEN:
                        self._open.popitem(last=False)
            finally:
                with self._lock:
                    self._gates.pop(identity, None)
            return reader

    def discard(self, identity: str) -> None:
        """Remove a shard that is corrupt. One that another process has replaced meanwhile is left alone."""
        path = shard_path(identity)
        with self._lock:
            self._open.pop(identity, None)
        self._cache.delete(path)
        try:
            verify(self.storage.get(path), path)
        except NotFoundError:
            return
        except CorruptShardError:
            self.storage.delete(path)

    def janitor(self) -> int:
        """Remove what writers that died left half-written; the number of files is returned."""
        return self.storage.remove_temporary() + self._cache.remove_temporary()

    def _map(self, identity: str) -> ShardReader:
        path = shard_path(identity)
        local = self.storage.local_path(path)
        if local is not None:
            return self._map_file(local, identity)
        cached = self._cache.local_path(path)
        assert cached is not None
        try:
            reader = self._map_file(cached, identity)
            os.utime(cached)  # most recently used
            return reader
        except NotFoundError:
            pass
        except CorruptShardError:
            self._cache.delete(path)
        return self._fetch(identity)

    def _fetch(self, identity: str) -> ShardReader:
        """Bring a shard from the cloud into the cache, uncompressed."""
        path = shard_path(identity)
        origin = f"{self.storage.uri}/{path}"
        data = self.storage.get(path)
        verify(data, origin)
        cached = self._cache.local_path(path)
        assert cached is not None
        plain = serialize(parse(pa.py_buffer(data), identity, origin), "none")
        self._evict(len(plain))
        try:
            self._cache.create(path, plain)
            self._verified.add(_stamp(os.stat(cached)))  # written by ourselves from verified bytes
        except AlreadyExistsError:
            pass  # another process of this machine was faster
        except OutOfSpaceError as error:
            # The cache only saves time and memory.
            warnings.warn(f"{error}. Until then its shards are read from memory.", stacklevel=4)
            return ShardReader(parse(pa.py_buffer(plain), identity, origin), len(plain))
        return self._map_file(cached, identity)

    def _map_file(self, file: Path, identity: str) -> ShardReader:
        try:
            with pa.memory_map(str(file)) as source:
                stamp = _stamp(os.stat(file))
                buffer = source.read_buffer()
        except FileNotFoundError as error:
            raise NotFoundError(f"there is no shard {file}") from error
        if stamp not in self._verified:
            verify(buffer, str(file))
            self._verified.add(stamp)
        return ShardReader(parse(buffer, identity, str(file)), buffer.size)

    def _evict(self, incoming: int) -> None:
        """Drop the least recently used files of the cache until `incoming` bytes more fit its limit."""
        cached = sorted(self._cache.list(), key=lambda info: info.modified)
        excess = sum(info.size for info in cached) + incoming - self._cache_bytes
        for info in cached:
            if excess <= 0:
                return
            self._cache.delete(info.path)
            excess -= info.size


def _stamp(status: os.stat_result) -> _Stamp:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _reopen(
    storage: Storage, cache_dir: Path, codecs: Mapping[str, Codec], cache_bytes: int, files: LocalFiles | None
) -> TeacherStore:
    return TeacherStore(storage, cache_dir, codecs, cache_bytes=cache_bytes, files=files)
