"""Decoded shards in memory, least recently used out first, never more bytes than allowed.

Each shard is decoded by one thread at a time, however many ask for it. Room is reserved before decoding starts, so
that shards in the making count too. A shard is held only while rows are copied out of it, one at a time by each
thread: so a budget for a single shard is enough to go on, if slowly.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass

from limbeck_runtime.data.decoded import DecodedShard

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class CacheStats:
    """Counts since the start; bytes are those reserved."""

    hits: int
    misses: int
    evictions: int
    num_bytes: int
    peak_bytes: int


@dataclass
class _Entry:
    num_bytes: int
    shard: DecodedShard | None = None  # None while it is being decoded
    holders: int = 0


class ShardCache:
    """Least-recently-used cache of decoded shards, by bytes; safe to use from several threads."""

    def __init__(
        self,
        decode: Callable[[int], DecodedShard],
        estimate: Callable[[int], int],
        max_bytes: int,
        pool: Executor,
    ) -> None:
        self._decode = decode
        self._estimate = estimate
        self._max_bytes = max_bytes
        self._pool = pool
        self._changed = threading.Condition()
        self._entries: OrderedDict[int, _Entry] = OrderedDict()
        self._wanted: Counter[int] = Counter()
        self._num_bytes = self._peak_bytes = 0
        self._hits = self._misses = self._evictions = 0
        self._closed = False
        self._warned = False

    @contextmanager
    def holding(self, number: int) -> Iterator[DecodedShard]:
        """The decoded shard, decoding it here and now if nobody has; it stays in memory inside the block."""
        entry = self._acquire(number)
        try:
            assert entry.shard is not None
            yield entry.shard
        finally:
            with self._changed:
                entry.holders -= 1
                self._changed.notify_all()

    def want(self, numbers: Iterable[int]) -> None:
        """Say that these shards will be needed: decoding ahead then does not push them out. Counted."""
        with self._changed:
            self._wanted.update(numbers)

    def unwant(self, numbers: Iterable[int]) -> None:
        """Take back one `want` for each."""
        with self._changed:
            self._wanted.subtract(numbers)
            self._wanted += Counter()  # drops what nobody wants
            self._changed.notify_all()

    def prefetch(self, number: int, stopped: Callable[[], bool]) -> None:
        """Start decoding a shard in the pool, waiting for room that no wanted shard takes.

        Gives up once `stopped` says so, which it looks at after each `wake`.
        """
        with self._changed:
            while not stopped():
                if number in self._entries:
                    return
                if self._reserve(number, spare_wanted=True) is not None:
                    break
                self._changed.wait()
            else:
                return
            entry = self._entries[number]
        self._pool.submit(self._fill_quietly, number, entry)

    def wake(self) -> None:
        """Make all that wait look again."""
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        """Decode nothing more: whoever waits for a shard gets an error."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def stats(self) -> CacheStats:
        """Counts so far."""
        with self._changed:
            return CacheStats(self._hits, self._misses, self._evictions, self._num_bytes, self._peak_bytes)

    def _acquire(self, number: int) -> _Entry:
        with self._changed:
            first_look = True
            while True:
                if self._closed:
                    raise RuntimeError("the data loader is closed")
                entry = self._entries.get(number)
                if entry is not None and entry.shard is not None:
                    self._hits += first_look
                    self._entries.move_to_end(number)
                    entry.holders += 1
                    return entry
                if entry is None and (entry := self._reserve(number, spare_wanted=False)) is not None:
                    self._misses += 1
                    entry.holders += 1
                    break
                first_look = False
                self._changed.wait()
        self._fill(number, entry)
        return entry

    def _reserve(self, number: int, *, spare_wanted: bool) -> _Entry | None:
        """Make an entry to be filled, pushing out what must go; None where nothing more can go now."""
        num_bytes = self._estimate(number)
        free = self._max_bytes - self._num_bytes
        leaving: list[int] = []
        idle = [n for n, entry in self._entries.items() if entry.shard is not None and not entry.holders]
        # What somebody wants goes last.
        idle.sort(key=lambda n: self._wanted[n] > 0)
        for candidate in idle:
            if free >= num_bytes:
                break
            if spare_wanted and self._wanted[candidate]:
                break
            leaving.append(candidate)
            free += self._entries[candidate].num_bytes
        if free < num_bytes:
            return None
        if any(self._wanted[candidate] for candidate in leaving):
            self._warn_of_thrashing()
        for candidate in leaving:
            self._num_bytes -= self._entries.pop(candidate).num_bytes
            self._evictions += 1
        entry = self._entries[number] = _Entry(num_bytes)
        self._num_bytes += num_bytes
        self._peak_bytes = max(self._peak_bytes, self._num_bytes)
        return entry

    def _warn_of_thrashing(self) -> None:
        if not self._warned:
            self._warned = True
            _LOG.warning(
                "the data cache of %d bytes is too small for the shards that batches mix: shards are decoded again "
                "and again; give it more memory, or set `teacherOutputs.windowShards` to at most %d",
                self._max_bytes,
                max(1, len(self._entries)),
            )

    def _fill(self, number: int, entry: _Entry) -> None:
        try:
            if self._closed:
                raise RuntimeError("the data loader is closed")
            shard = self._decode(number)
        except BaseException:
            with self._changed:
                del self._entries[number]
                self._num_bytes -= entry.num_bytes
                self._changed.notify_all()
            raise
        with self._changed:
            self._num_bytes += shard.num_bytes - entry.num_bytes
            entry.num_bytes = shard.num_bytes
            entry.shard = shard
            self._changed.notify_all()

    def _fill_quietly(self, number: int, entry: _Entry) -> None:
        """Decode ahead. A failure is not kept: whoever needs the shard meets it again, in the right place."""
        try:
            self._fill(number, entry)
        except Exception:
            return
