"""The capture of one step: a pool started for it, kept near the student, its progress told, its failure passed on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from limbeck_runtime.cluster import connect
from limbeck_runtime.context import Context
from limbeck_runtime.storage import StorageError
from limbeck_runtime.teacher.capture import CaptureSettings
from limbeck_runtime.teacher.plan import CaptureTask
from limbeck_runtime.teacher.pool import PoolCallbacks, PoolProgress, TeacherPool
from limbeck_runtime.teacher.ray_workers import RayWorkers
from limbeck_runtime.teacher.sign import Sign
from limbeck_runtime.teacher.workers import TASKS_IN_HAND, Workers
from limbeck_runtime.telemetry.metrics import Metrics


class Teaching:
    """A capture under way, which is told where the student is; for one thread."""

    def __init__(self, pool: TeacherPool, tasks: Sequence[CaptureTask], metrics: Metrics) -> None:
        self._pool, self._metrics = pool, metrics
        self._tasks = {(task.shard, task.view): (place, task.identity) for place, task in enumerate(tasks, 1)}
        self._at_hand: Sequence[tuple[int, int]] = ()
        self._read: set[str] = set()

    def come_to(self, places: Sequence[tuple[int, int]]) -> None:
        """The student has read what it came to before, and comes to these shards and views now.

        Raises what ended the capture, if outputs are missing still.
        """
        for place in self._at_hand:
            _, identity = self._tasks[place]
            if identity not in self._read:
                self._read.add(identity)
                self._metrics.shard_consumed()
        self._at_hand = places
        # What the next batch needs has begun: were it not within the teacher's reach, each would wait for the other.
        self._pool.consumed(max((self._tasks[place][0] for place in places), default=0))
        self.check()

    def check(self) -> None:
        """Raise what ended the capture, if outputs are missing still."""
        self._pool.check_complete()


def lookahead_of(tasks: Sequence[CaptureTask], *, window_shards: int, batch_size: int, max_workers: int) -> int:
    """How many shards a teacher may capture beyond those that the student has come to.

    As many as the student mixes at a time (`teacherOutputs.windowShards`), for so many it opens at most at once; and
    more where one batch takes more, or where the pool's workers could not all be busy otherwise.
    """
    mean_size = sum(task.num_samples for task in tasks) / max(1, len(tasks))
    of_a_batch = math.ceil(batch_size / mean_size) if mean_size else 1
    return max(window_shards, of_a_batch, TASKS_IN_HAND * max_workers)


@contextmanager
def capturing(
    context: Context, step: str, settings: CaptureSettings, tasks: Sequence[CaptureTask], sign: Sign, lookahead: int
) -> Iterator[Teaching]:
    """A pool that captures `tasks` while the block runs, first in the actors that the run has ready.

    When it gives up it takes the sign down, so that students in other processes stop waiting.
    """

    def tell(progress: PoolProgress) -> None:
        context.events.emit(
            "capture_progress",
            step=step,
            done=progress.done,
            total=progress.total,
            replicas=progress.replicas,
            samples_per_second=progress.samples_per_second,
            reused=progress.reused,
        )

    def give_up(error: BaseException) -> None:
        with suppress(StorageError):
            sign.take_down()
        context.warn(f"the teacher gave up: {error}")

    def make_workers() -> Workers:
        if context.teacher_workers is not None:
            return context.teacher_workers(settings)
        connect()
        return RayWorkers(settings, warm=context.warm_actors)

    callbacks = PoolCallbacks(
        on_progress=tell,
        on_captured=context.metrics.shard_captured,
        on_reused=context.metrics.shards_reused,
        on_vanished=context.metrics.shards_vanished,
        on_warning=context.warn,
        on_failed=give_up,
    )
    pool = TeacherPool(
        tasks,
        settings.store,
        make_workers,
        max_workers=context.spec.cluster.teacher.max_replicas,
        min_workers=context.spec.cluster.teacher.min_replicas,
        lookahead=lookahead,
        callbacks=callbacks,
    )
    try:
        with pool:
            yield Teaching(pool, tasks, context.metrics)
    finally:
        with suppress(StorageError):
            sign.take_down()
