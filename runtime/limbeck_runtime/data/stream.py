"""Batches made ahead of their consumer: one thread reads the plan and starts decoding, one makes batches.

What is in memory ahead of the consumer is bounded twice: decoded shards by the cache's budget, finished batches by
`ready_bytes` (at least one batch). An exception reaches the consumer in its turn, after the batches before it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Self

import numpy as np

from limbeck_runtime.data.batch import Batch, BatchAssembler
from limbeck_runtime.data.cache import ShardCache

_LOG = logging.getLogger(__name__)
_ITEMS_AHEAD = 64
# A plan that blocks in foreign code cannot be interrupted; its thread is left behind after this time.
_JOIN_SECONDS = 10.0


class _End:
    """Marks the end of a queue, with the exception that ended it, if any."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


class BatchStream:
    """Iterator over batches; close it when done."""

    def __init__(
        self,
        assembler: BatchAssembler,
        cache: ShardCache,
        plan: Iterable[tuple[np.ndarray, int]],
        ready_bytes: int,
    ) -> None:
        self._assembler = assembler
        self._cache = cache
        self._plan = plan
        self._ready_bytes = ready_bytes
        self._changed = threading.Condition()
        self._planned: deque[tuple[np.ndarray, int] | _End] = deque()
        self._ready: deque[Batch | _End] = deque()
        self._waiting_bytes = 0
        self._closed = False
        # Seconds that the consumer has waited for batches, for the telemetry's data wait share.
        self.wait_seconds = 0.0
        self.peak_ready_bytes = 0
        self._threads = [
            threading.Thread(target=self._read_plan, name="limbeck-plan", daemon=True),
            threading.Thread(target=self._make_batches, name="limbeck-batches", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        started = time.perf_counter()
        with self._changed:
            while not self._ready and not self._closed:
                self._changed.wait()
            self.wait_seconds += time.perf_counter() - started
            if self._closed:
                raise StopIteration
            item = self._ready[0]
            if isinstance(item, Batch):
                self._ready.popleft()
                self._waiting_bytes -= item.num_bytes
                self._changed.notify_all()
                return item
        self.close()
        if item.error is not None:
            raise item.error
        raise StopIteration

    def close(self) -> None:
        """Stop both threads and wait for them; does nothing the second time."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._cache.wake()
        for thread in self._threads:
            thread.join(_JOIN_SECONDS)
            if thread.is_alive():
                _LOG.warning("thread %s still waits for its plan and is left behind", thread.name)
        with self._changed:
            for item in self._planned:
                if not isinstance(item, _End):
                    self._cache.unwant(_shards(item[0]))
            self._planned.clear()
            self._ready.clear()
            self._waiting_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def closed(self) -> bool:
        """Whether the stream has ended or was closed."""
        return self._closed

    def _stopped(self) -> bool:
        return self._closed

    def _read_plan(self) -> None:
        try:
            for positions, view in self._plan:
                shards = _shards(positions)
                self._cache.want(shards)
                if not self._put_planned((positions, view)):
                    self._cache.unwant(shards)
                    return
                for shard in shards:
                    self._cache.prefetch(shard, self._stopped)
            self._put_planned(_End())
        except BaseException as error:
            self._put_planned(_End(error))

    def _put_planned(self, item: tuple[np.ndarray, int] | _End) -> bool:
        with self._changed:
            while len(self._planned) >= _ITEMS_AHEAD and not self._closed:
                self._changed.wait()
            if not self._closed:
                self._planned.append(item)
                self._changed.notify_all()
            return not self._closed

    def _make_batches(self) -> None:
        while True:
            with self._changed:
                while not self._planned and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
                item = self._planned.popleft()
                self._changed.notify_all()
            if isinstance(item, _End):
                self._put_ready(item)
                return
            try:
                batch = self._assembler.assemble(*item)
            except BaseException as error:
                self._put_ready(_End(error))
                return
            finally:
                self._cache.unwant(_shards(item[0]))
            self._put_ready(batch)

    def _put_ready(self, item: Batch | _End) -> None:
        num_bytes = 0 if isinstance(item, _End) else item.num_bytes
        with self._changed:
            while self._ready and self._waiting_bytes + num_bytes > self._ready_bytes and not self._closed:
                self._changed.wait()
            if not self._closed:
                self._ready.append(item)
                self._waiting_bytes += num_bytes
                self.peak_ready_bytes = max(self.peak_ready_bytes, self._waiting_bytes)
                self._changed.notify_all()


def _shards(positions: np.ndarray) -> list[int]:
    shards: list[int] = np.unique(positions[:, 0]).tolist()
    return shards
