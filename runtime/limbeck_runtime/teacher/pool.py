"""The teacher pool: keeps workers busy with shards until all that the student wants is in the store.

Runs in a thread of the driver. It starts workers, takes them back when nothing is left to do, replaces those that die
or go silent, and starts them again when a finished shard has vanished from the store (the student discards a corrupt
one when it finds it).
Left out: what a worker does (capture.py), where it runs (workers.py), whose turn it is (queue.py).
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from limbeck_runtime.store import TeacherStore
from limbeck_runtime.teacher.plan import CaptureTask
from limbeck_runtime.teacher.queue import CaptureFailedError, ShardQueue
from limbeck_runtime.teacher.workers import TASKS_IN_HAND, Answer, Workers

LEASE_SECONDS: Final = 30.0
# Workers lost one after the other, without a single shard between them, before the capture gives up.
MAX_LOSSES_IN_A_ROW: Final = 6
_WAIT_SECONDS: Final = 0.2
# How often a finished capture looks whether its shards are all there still.
_GUARD_SECONDS: Final = 2.0


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

    on_progress: Callable[[PoolProgress], None] = lambda progress: None
    on_captured: Callable[[int], None] = lambda num_samples: None
    on_warning: Callable[[str], None] = lambda message: None
    on_failed: Callable[[BaseException], None] = lambda error: None


class TeacherPool:
    """Captures `tasks` in the background; use it in a `with` block.

    Args:
        tasks: in the order in which the student wants them.
        store: where outputs go, and where those of earlier runs are found.
        make_workers: called when there is something to do.
        max_workers: most workers; as many of them run as the resources give.
        lookahead: most shards captured beyond those that the student has begun; None does not bound it.
    """

    def __init__(
        self,
        tasks: Sequence[CaptureTask],
        store: TeacherStore,
        make_workers: Callable[[], Workers],
        *,
        max_workers: int = 1,
        lease_seconds: float = LEASE_SECONDS,
        lookahead: int | None = None,
        callbacks: PoolCallbacks | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._queue = ShardQueue(tasks, store.identities(), lease_seconds=lease_seconds, lookahead=lookahead)
        self._make_workers = make_workers
        self._max_workers = max_workers
        self._callbacks = callbacks or PoolCallbacks()
        self._clock = clock
        self._workers: Workers | None = None
        self._ready: dict[str, Counter[str]] = {}
        self._starting: set[str] = set()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._finished = threading.Event()
        self._reused = self._queue.num_done
        self._captured = self._recomputed = self._lost = self._losses_in_a_row = 0
        self._num_samples = 0
        self._started_at: float | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="limbeck-teacher-pool", daemon=True)

    def __enter__(self) -> Self:
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

    def consumed(self, num_tasks: int) -> None:
        """The student has begun so many tasks, in their order."""
        with self._lock:
            self._queue.consumed(num_tasks)

    def progress(self) -> PoolProgress:
        """Where the capture stands now."""
        elapsed = 0.0 if self._started_at is None else self._clock() - self._started_at
        return PoolProgress(
            done=self._queue.num_done,
            total=self._queue.num_tasks,
            reused=self._reused,
            captured=self._captured,
            recomputed=self._recomputed,
            lost_workers=self._lost,
            replicas=len(self._ready),
            samples_per_second=self._num_samples / elapsed if elapsed > 0 else 0.0,
        )

    def _run(self) -> None:
        try:
            while not self._closed.is_set():
                if self._queue.finished:
                    self._rest()
                else:
                    self._finished.clear()
                    self._work()
        except BaseException as error:
            self._error = error
            self._callbacks.on_failed(error)
            self._finished.set()
        finally:
            self._stop_workers()

    def _rest(self) -> None:
        """Nothing to do: give the resources back, and see that what was captured stays there."""
        self._stop_workers()
        self._finished.set()
        if self._closed.wait(_GUARD_SECONDS):
            return
        missing = self._queue.missing(self._store.identities())
        if missing:
            with self._lock:
                self._recomputed += self._queue.reopen(missing)
            self._callbacks.on_warning(
                f"{len(missing)} shards of teacher outputs were corrupt; they are computed again"
            )
            self._tell()

    def _work(self) -> None:
        self._start_workers()
        assert self._workers is not None
        with self._lock:
            for name in self._ready:
                self._feed(name)
        for answer in self._workers.answers(_WAIT_SECONDS):
            self._take(answer)
        for name in self._queue.silent(self._clock()):
            self._lose(name, "it did not answer any more")

    def _start_workers(self) -> None:
        if self._workers is None:
            self._workers = self._make_workers()
            self._started_at, self._num_samples = self._clock(), 0
        open_tasks = self._queue.num_tasks - self._queue.num_done
        while len(self._ready) + len(self._starting) < min(self._max_workers, open_tasks):
            self._starting.add(self._workers.start())

    def _stop_workers(self) -> None:
        if self._workers is None:
            return
        for name in [*self._ready, *self._starting]:
            self._workers.stop(name)
        self._ready.clear()
        self._starting.clear()
        self._workers = None

    def _feed(self, name: str) -> None:
        assert self._workers is not None
        in_hand = self._ready[name]
        while in_hand.total() < TASKS_IN_HAND:
            task = self._queue.lease(name, self._clock())
            if task is None:
                return
            in_hand[task.identity] += 1
            self._workers.submit(name, task)

    def _take(self, answer: Answer) -> None:
        name, task = answer.worker, answer.task
        if name not in self._ready and name not in self._starting:
            return  # stopped meanwhile
        if answer.lost:
            self._lose(name, answer.error or "its process ended")
            return
        if name in self._starting:
            self._starting.remove(name)
            self._ready[name] = Counter()
            self._tell()
        self._queue.heartbeat(name, self._clock())
        if task is None:
            return
        self._ready[name][task.identity] -= 1
        if answer.result is None:
            self._callbacks.on_warning(f"teacher: shard {task.shard}, view {task.view}: {answer.error}; trying again")
            self._queue.fail(task.identity, answer.error or "unknown")
            return
        self._queue.complete(task.identity)
        self._losses_in_a_row = 0
        if answer.result.already_there:
            self._reused += 1
        else:
            self._captured += 1
            self._num_samples += answer.result.num_samples
            self._callbacks.on_captured(answer.result.num_samples)
        self._tell()

    def _lose(self, name: str, reason: str) -> None:
        """A worker is dead or hangs: its shards go to others, and another takes its place."""
        assert self._workers is not None
        released = self._queue.release(name)
        self._ready.pop(name, None)
        self._starting.discard(name)
        self._workers.stop(name)
        self._lost += 1
        self._losses_in_a_row += 1
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
