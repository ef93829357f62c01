"""The teacher pool: keeps workers busy with shards until all that the student wants is in the store.

Runs in a thread of the driver. It starts workers, takes them back when nothing is left to do, replaces those that die
or go silent, and computes again what vanishes from the store (whoever finds a shard corrupt discards it).
Left out: what a worker does (capture.py), where it runs (workers.py, ray_workers.py), whose turn it is (queue.py).
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from limbeck_runtime.storage import OutOfSpaceError
from limbeck_runtime.store import TeacherStore
from limbeck_runtime.teacher.plan import CaptureTask
from limbeck_runtime.teacher.queue import CaptureFailedError, ShardQueue
from limbeck_runtime.teacher.workers import TASKS_IN_HAND, Answer, Captured, Failed, Lost, Ready, Workers

LEASE_SECONDS: Final = 30.0
# Workers lost one after the other, without a single shard between them, before the capture gives up.
MAX_LOSSES_IN_A_ROW: Final = 6
# When to say that fewer workers than wanted have started.
SLOW_START_SECONDS: Final = 120.0
# How often to look whether all captured shards are there still. At most a hundredth of the time goes into looking.
GUARD_SECONDS: Final = 2.0
_GUARD_SHARE: Final = 0.01
_WAIT_SECONDS: Final = 0.2
# The same where workers are idle until the student comes nearer.
_PAUSED_SECONDS: Final = 0.05


@dataclass(frozen=True)
class PoolProgress:
    """Where a capture stands."""

    done: int
    total: int
    reused: int
    captured: int
    recomputed: int
    lost_workers: int
    replicas: int
    samples_per_second: float


@dataclass(frozen=True)
class PoolCallbacks:
    """Whom the pool tells, from its own thread."""

    on_progress: Callable[[PoolProgress], object] = lambda progress: None
    on_captured: Callable[[int], object] = lambda num_samples: None
    on_reused: Callable[[int], object] = lambda num_shards: None
    on_vanished: Callable[[int], object] = lambda num_shards: None
    on_warning: Callable[[str], object] = lambda message: None
    on_failed: Callable[[BaseException], object] = lambda error: None


class TeacherPool:
    """Captures `tasks` in the background; use it in a `with` block.

    Args:
        tasks: in the order in which the student wants them.
        store: where outputs go, and where those of earlier runs are found.
        make_workers: called when there is something to do.
        max_workers: most workers; as many of them run as the resources give.
        min_workers: where fewer than this have started after two minutes, a warning says so.
        lookahead: most shards captured in this run beyond those that the student has begun; then workers pause.
            None does not bound it.
    """

    def __init__(
        self,
        tasks: Sequence[CaptureTask],
        store: TeacherStore,
        make_workers: Callable[[], Workers],
        *,
        max_workers: int = 1,
        min_workers: int = 1,
        lease_seconds: float = LEASE_SECONDS,
        guard_seconds: float = GUARD_SECONDS,
        lookahead: int | None = None,
        callbacks: PoolCallbacks | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._queue = ShardQueue(tasks, store.identities(), lease_seconds=lease_seconds, lookahead=lookahead)
        self._make_workers = make_workers
        self._num_workers = (min_workers, max_workers)
        self._guard_seconds = guard_seconds
        self._callbacks = callbacks or PoolCallbacks()
        self._clock = clock
        self._workers: Workers | None = None
        self._starting: set[str] = set()
        self._in_hand: dict[str, int] = {}  # tasks of each worker that is ready
        self._lock = threading.Lock()  # `consumed` and `progress` are called by other threads
        self._closed = threading.Event()
        self._finished = threading.Event()
        self._reused = self._queue.num_done
        self._captured = self._recomputed = self._lost = self._losses_in_a_row = 0
        self._num_samples = 0
        self._started_at = self._guard_at = self._slow_at = 0.0
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="limbeck-teacher-pool", daemon=True)

    def __enter__(self) -> Self:
        self._callbacks.on_reused(self._reused)
        self._tell()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        self._thread.join()

    def wait(self, timeout_seconds: float | None = None) -> bool:
        """Return when all is captured; False after the time-out. Raises what ended the capture."""
        finished = self._finished.wait(timeout_seconds)
        self.check()
        return finished

    def check(self) -> None:
        """Raise what ended the capture, if anything did."""
        if self._error is not None:
            raise self._error

    def check_complete(self) -> None:
        """Raise what ended the capture before all was there, if anything did."""
        with self._lock:
            finished = self._queue.finished
        if not finished:
            self.check()

    def consumed(self, num_tasks: int) -> None:
        """The student has begun the first `num_tasks` tasks, or waits for one of them."""
        with self._lock:
            self._queue.consumed(num_tasks)

    def progress(self) -> PoolProgress:
        """Where the capture stands now."""
        with self._lock:
            elapsed = self._clock() - self._started_at if self._num_samples else 0.0
            return PoolProgress(
                done=self._queue.num_done,
                total=self._queue.num_tasks,
                reused=self._reused,
                captured=self._captured,
                recomputed=self._recomputed,
                lost_workers=self._lost,
                replicas=len(self._in_hand),
                samples_per_second=self._num_samples / elapsed if elapsed > 0 else 0.0,
            )

    def _run(self) -> None:
        try:
            while not self._closed.is_set():
                if self._queue.finished:
                    self._finished.set()
                    self._stop_workers()
                    self._closed.wait(max(0.0, self._guard_at - self._clock()))
                else:
                    self._finished.clear()
                    self._work()
                self._guard()
        except BaseException as error:
            self._error = error
            self._callbacks.on_failed(error)
            self._finished.set()
        finally:
            self._stop_workers()

    def _work(self) -> None:
        """One round: give out tasks, hear what became of others."""
        workers = self._started_workers()
        with self._lock:
            for name in self._in_hand:
                self._feed(workers, name)
            paused = self._queue.held_back
        for answer in workers.answers(_PAUSED_SECONDS if paused else _WAIT_SECONDS):
            self._take(workers, answer)
        for name in self._queue.silent(self._clock()):
            self._lose(workers, name, "it did not answer any more", hung=True)
        if self._clock() >= self._slow_at and len(self._in_hand) < self._num_workers[0]:
            self._slow_at = self._clock() + SLOW_START_SECONDS
            self._callbacks.on_warning(
                f"{len(self._in_hand)} of at least {self._num_workers[0]} teacher workers have started; "
                "the cluster has no room for more yet"
            )

    def _guard(self) -> None:
        """Open those shards again that were captured and have been discarded since."""
        before = self._clock()
        if before < self._guard_at or self._closed.is_set():
            return
        present = self._store.identities()
        now = self._clock()
        self._guard_at = now + max(self._guard_seconds, (now - before) / _GUARD_SHARE)
        with self._lock:
            reopened = self._queue.reopen_missing(present)
            self._recomputed += reopened
        if reopened:
            self._callbacks.on_vanished(reopened)
            self._callbacks.on_warning(f"{reopened} shards of teacher outputs were corrupt; they are computed again")
            self._tell()

    def _started_workers(self) -> Workers:
        if self._workers is None:
            self._workers = self._make_workers()
            self._started_at, self._num_samples = self._clock(), 0
            self._slow_at = self._started_at + SLOW_START_SECONDS
            self._guard_at = self._started_at + self._guard_seconds
        left = self._queue.num_tasks - self._queue.num_done
        while len(self._in_hand) + len(self._starting) < min(self._num_workers[1], left):
            self._starting.add(self._workers.start())
        return self._workers

    def _stop_workers(self) -> None:
        if self._workers is not None:
            for name in [*self._in_hand, *self._starting]:
                self._queue.release(name)
                self._workers.stop(name)
        self._in_hand.clear()
        self._starting.clear()
        self._workers = None

    def _feed(self, workers: Workers, name: str) -> None:
        # No more than an equal share of what is left, or the last shards would all be one worker's.
        left = self._queue.num_tasks - self._queue.num_done
        share = math.ceil(left / max(1, self._queue.num_workers))
        while self._in_hand[name] < min(TASKS_IN_HAND, share):
            task = self._queue.lease(name, self._clock())
            if task is None:
                return
            self._in_hand[name] += 1
            workers.submit(name, task)

    def _take(self, workers: Workers, answer: Answer) -> None:
        name = answer.worker
        if name not in self._in_hand and name not in self._starting:
            return  # stopped meanwhile
        if isinstance(answer, Lost):
            self._lose(workers, name, answer.reason)
            return
        self._queue.heartbeat(name, self._clock())
        if isinstance(answer, Ready):
            self._starting.remove(name)
            self._in_hand[name] = 0
            self._tell()
        elif isinstance(answer, Failed):
            self._failed(name, answer)
        elif isinstance(answer, Captured):
            self._take_result(name, answer)

    def _failed(self, name: str, failed: Failed) -> None:
        if failed.task is None:
            raise CaptureFailedError(f"the teacher could not be loaded by its workers: {failed.error}")
        if isinstance(failed.cause, OutOfSpaceError):
            raise failed.cause  # another try would write as much
        self._in_hand[name] -= 1
        with self._lock:
            self._queue.fail(failed.task.identity, failed.error)
        self._callbacks.on_warning(
            f"the teacher failed on shard {failed.task.shard}, view {failed.task.view}, which is tried again: "
            f"{failed.error}"
        )

    def _take_result(self, name: str, captured: Captured) -> None:
        with self._lock:
            self._in_hand[name] -= 1
            self._losses_in_a_row = 0
            self._queue.complete(captured.task.identity)
            if captured.result.already_there:
                self._reused += 1
            else:
                self._captured += 1
                self._num_samples += captured.result.num_samples
        if captured.result.already_there:
            self._callbacks.on_reused(1)
        else:
            self._callbacks.on_captured(captured.result.num_samples)
        self._tell()

    def _lose(self, workers: Workers, name: str, reason: str, *, hung: bool = False) -> None:
        """A worker is dead or hangs: its shards go to others, and another takes its place."""
        with self._lock:
            released = self._queue.release(name)
            self._in_hand.pop(name, None)
            self._starting.discard(name)
            self._lost += 1
            self._losses_in_a_row += 1
        workers.stop(name, hung=hung)
        if self._losses_in_a_row >= MAX_LOSSES_IN_A_ROW:
            raise CaptureFailedError(
                f"{self._losses_in_a_row} teacher workers were lost without capturing a shard; the last one: {reason}"
            )
        self._callbacks.on_warning(
            f"a teacher worker was lost ({reason}); {len(released)} of its shards go to others, and it is replaced"
        )
        self._tell()

    def _tell(self) -> None:
        self._callbacks.on_progress(self.progress())
