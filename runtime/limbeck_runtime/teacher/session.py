"""The capture of one step: a pool started for it, its progress told, its failure passed on to the students."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from limbeck_runtime.cluster import connect
from limbeck_runtime.context import Context
from limbeck_runtime.storage import StorageError
from limbeck_runtime.teacher.capture import CaptureSettings
from limbeck_runtime.teacher.plan import CaptureTask
from limbeck_runtime.teacher.pool import PoolCallbacks, PoolProgress, TeacherPool
from limbeck_runtime.teacher.ray_workers import RayWorkers
from limbeck_runtime.teacher.workers import Workers


@contextmanager
def capturing(
    context: Context,
    step: str,
    settings: CaptureSettings,
    tasks: Sequence[CaptureTask],
    lost_marker: str,
) -> Iterator[TeacherPool]:
    """A pool that captures `tasks` while the block runs, first in the actors that the run has ready.

    When it gives up it creates the object `lost_marker` in the store, so that students in other processes stop waiting.
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
        context.warn(f"the teacher gave up: {error}")
        with suppress(StorageError):
            context.store.create(lost_marker, json.dumps({"error": str(error)}).encode())

    def make_workers() -> Workers:
        if context.teacher_workers is not None:
            return context.teacher_workers(settings)
        connect()
        return RayWorkers(settings, warm=context.warm_actors)

    callbacks = PoolCallbacks(
        on_progress=tell,
        on_captured=context.metrics.shard_captured,
        on_warning=context.warn,
        on_failed=give_up,
    )
    pool = TeacherPool(
        tasks,
        settings.store,
        make_workers,
        max_workers=context.spec.cluster.teacher.max_replicas,
        min_workers=context.spec.cluster.teacher.min_replicas,
        callbacks=callbacks,
    )
    try:
        with pool:
            for _ in range(pool.progress().reused):
                context.metrics.shard_reused()
            yield pool
    finally:
        context.store.delete(lost_marker)
