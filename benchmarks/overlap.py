"""P8: a student that trains while its teacher still captures, against the best that two such workers could do.

One core each: the teacher in a Ray actor, the student in this process, both with one thread. In each round the capture
runs alone, then the training alone, then both at once without a word to each other (the student reads what was
captured before), then both at once into an empty store. The clock starts when the actor is ready.
The ideal: shards come at the teacher's own pace, a step begins when its shards are there and the step before is done.
Its paces are those of the two beside each other, for cores share memory and caches, which no coupling can give back;
the ideal of the paces that each has alone is given too.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.classification import SEED, Classification, Workload
from benchmarks.timing import Figure
from limbeck_runtime.store import TeacherStore
from limbeck_runtime.student.loop import train
from limbeck_runtime.student.parts import Worker
from limbeck_runtime.student.records import Callbacks, StepRecord
from limbeck_runtime.student.sampler import shard_order
from limbeck_runtime.teacher.pool import PoolCallbacks, PoolProgress, TeacherPool
from limbeck_runtime.teacher.ray_workers import RayWorkers

ROUNDS = 10
# A student that takes about as long as its teacher, and one epoch, so that all of it can overlap.
WORKLOAD = Workload(student_width=32, epochs=1)
_PATIENCE_SECONDS = 300.0


def measure(workload: Workload = WORKLOAD, rounds: int = ROUNDS) -> dict[str, Any]:
    """Speed-up against the ideal's, bytes in flight, and how many loss traces are the same."""
    import torch

    from limbeck_runtime.cluster import connect, disconnect

    torch.set_num_threads(1)
    connect()
    try:
        with tempfile.TemporaryDirectory() as folder:
            job = Classification.prepare(workload, Path(folder))
            taken = [_round(job, str(number)) for number in range(rounds)]
    finally:
        disconnect()
    first = taken[0].trace
    return {
        "of_ideal": Figure.of([one.ideal_seconds / one.both_seconds for one in taken]).to_json(),
        "of_ideal_alone": Figure.of([one.ideal_alone_seconds / one.both_seconds for one in taken]).to_json(),
        "window_share": max(one.most_in_flight for one in taken) / workload.window_shards,
        "identical_traces": sum(one.trace == first and one.trace_alone == first for one in taken),
        "speed_up": Figure.of([one.sequential_seconds / one.both_seconds for one in taken]).to_json(),
        "ideal_speed_up": Figure.of([one.sequential_seconds / one.ideal_seconds for one in taken]).to_json(),
        "capture_seconds": Figure.of([one.capture_seconds for one in taken]).to_json(),
        "train_seconds": Figure.of([one.train_seconds for one in taken]).to_json(),
        "both_seconds": Figure.of([one.both_seconds for one in taken]).to_json(),
        "most_bytes_in_flight": max(one.most_in_flight * one.shard_bytes for one in taken),
        "window_bytes": workload.window_shards * taken[0].shard_bytes,
        "workload": f"{workload}",
    }


@dataclass(frozen=True)
class Round:
    """What one round took, in seconds, and what the student's losses were with the teacher at work and without."""

    capture_seconds: float
    train_seconds: float
    both_seconds: float
    ideal_seconds: float
    ideal_alone_seconds: float
    most_in_flight: int
    shard_bytes: int
    trace: tuple[float, ...]
    trace_alone: tuple[float, ...]

    @property
    def sequential_seconds(self) -> float:
        """One after the other."""
        return self.capture_seconds + self.train_seconds


def _round(job: Classification, name: str) -> Round:
    store = job.new_store(f"{name}-before")
    watch = _Watch()
    with _pool(job, store, watch, lookahead=None):
        capture_seconds = watch.wait_for_end() - watch.wait_for_worker()
    trace_alone, train_seconds = _train(job, store, lambda shards: None)
    beside = _beside_each_other(job, store, job.new_store(f"{name}-beside"))
    store = job.new_store(f"{name}-both")
    watch = _Watch()
    with _pool(job, store, watch, lookahead=job.workload.window_shards) as pool:

        def begin(shards: int) -> None:
            watch.begun(shards)
            pool.consumed(shards)

        started = watch.wait_for_worker()
        trace, _ = _train(job, store, begin)
        both_seconds = time.perf_counter() - started
        pool.check()
    shard_bytes = max(info.size for info in store.storage.list("shards"))
    begun, num_shards = shards_begun(job), len(job.index.shards)
    return Round(
        capture_seconds,
        train_seconds,
        both_seconds,
        ideal_seconds(begun, num_shards, *beside),
        ideal_seconds(begun, num_shards, capture_seconds, train_seconds),
        watch.most_in_flight,
        shard_bytes,
        trace,
        trace_alone,
    )


def _beside_each_other(job: Classification, captured: TeacherStore, empty: TeacherStore) -> tuple[float, float]:
    """Seconds of a capture into `empty`, and of a training from `captured` at the same time."""
    watch = _Watch()
    with _pool(job, empty, watch, lookahead=None):
        started = watch.wait_for_worker()
        _, train_seconds = _train(job, captured, lambda shards: None)
        return watch.wait_for_end() - started, train_seconds


def _pool(job: Classification, store: TeacherStore, watch: _Watch, lookahead: int | None) -> TeacherPool:
    return TeacherPool(
        job.capture_tasks,
        store,
        lambda: RayWorkers(job.capture_settings(store, num_threads=1)),
        max_workers=1,
        lookahead=lookahead,
        callbacks=PoolCallbacks(on_progress=watch.on_progress, on_failed=watch.on_failed),
    )


def _train(job: Classification, store: TeacherStore, begin: Any) -> tuple[tuple[float, ...], float]:
    """Losses step by step, and the seconds of all; `begin` hears how many shards each step has come to."""
    begun = shards_begun(job)
    losses = []

    def on_step(record: StepRecord) -> None:
        losses.append(record.loss)
        begin(begun[record.step - 1])

    started = time.perf_counter()
    train(job.stored(store)(Worker()), job.settings, callbacks=Callbacks(on_step=on_step))
    return tuple(losses), time.perf_counter() - started


def shards_begun(job: Classification) -> list[int]:
    """For each step of the first epoch, how many shards, in the order of the capture, it and those before have read."""
    place = {shard: index for index, shard in enumerate(shard_order(SEED, 0, len(job.index.shards)).tolist())}
    begun: list[int] = []
    for positions in job.hard().plan.batches(0):
        furthest = 1 + max(place[shard] for shard in set(positions[:, 0].tolist()))
        begun.append(max(furthest, begun[-1] if begun else 0))
    return begun


def ideal_seconds(begun: Sequence[int], num_shards: int, capture_seconds: float, train_seconds: float) -> float:
    """The end of a training whose step i needs the first `begun[i]` shards, beside a capture that it does not slow."""
    of_shard, of_step = capture_seconds / num_shards, train_seconds / len(begun)
    now = 0.0
    for shards in begun:
        now = max(now, shards * of_shard) + of_step
    return now


@dataclass
class _Watch:
    """What the pool says, from its own thread: when its worker was ready, when all was there, what was in flight."""

    _changed: threading.Condition = field(default_factory=threading.Condition)
    _ready_at: float | None = None
    _ended_at: float | None = None
    _error: BaseException | None = None
    _done: int = 0
    _begun: int = 0
    most_in_flight: int = 0

    def on_progress(self, progress: PoolProgress) -> None:
        now = time.perf_counter()
        with self._changed:
            if progress.replicas and self._ready_at is None:
                self._ready_at = now
            if progress.done == progress.total and self._ended_at is None:
                self._ended_at = now
            self._done = progress.done
            self.most_in_flight = max(self.most_in_flight, self._done - self._begun)
            self._changed.notify_all()

    def on_failed(self, error: BaseException) -> None:
        with self._changed:
            self._error = error
            self._changed.notify_all()

    def begun(self, shards: int) -> None:
        """The student has come to so many shards."""
        with self._changed:
            self._begun = shards

    def wait_for_worker(self) -> float:
        """When the worker was ready."""
        with self._changed:
            self._wait(lambda: self._ready_at is not None)
            assert self._ready_at is not None
            return self._ready_at

    def wait_for_end(self) -> float:
        """When all was captured."""
        with self._changed:
            self._wait(lambda: self._ended_at is not None)
            assert self._ended_at is not None
            return self._ended_at

    def _wait(self, came: Any) -> None:
        if not self._changed.wait_for(lambda: came() or self._error is not None, _PATIENCE_SECONDS):
            raise TimeoutError(f"the teacher pool said nothing for {_PATIENCE_SECONDS:g} s")
        if self._error is not None:
            raise self._error
