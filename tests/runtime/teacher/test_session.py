"""The teacher is kept near the student: never so far ahead as to fill a disk, never so near that both wait."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck_runtime.student.sampler import SamplePlan, shard_order
from limbeck_runtime.teacher.plan import CaptureTask
from limbeck_runtime.teacher.queue import ShardQueue
from limbeck_runtime.teacher.session import Teaching, lookahead_of
from limbeck_runtime.teacher.workers import TASKS_IN_HAND
from limbeck_runtime.telemetry.metrics import Metrics


class QueueAsPool:
    """As much of a pool as `Teaching` needs: a queue, and whoever captures."""

    def __init__(self, tasks: Sequence[CaptureTask], done: Sequence[str], lookahead: int) -> None:
        self.queue = ShardQueue(tasks, done, lease_seconds=10, lookahead=lookahead)
        self.captured: list[CaptureTask] = []
        self.error: Exception | None = None

    def consumed(self, num_tasks: int) -> None:
        self.queue.consumed(num_tasks)

    def check_complete(self) -> None:
        if self.error is not None:
            raise self.error

    def capture_all_in_reach(self) -> None:
        while (task := self.queue.lease("w", 0)) is not None:
            self.queue.complete(task.identity)
            self.captured.append(task)


def tasks_of(plan: SamplePlan, views: int) -> list[CaptureTask]:
    return [
        CaptureTask(shard, view, f"{shard}/{view}", plan.shard_sizes[shard])
        for view in range(min(plan.epochs, views))
        for shard in shard_order(plan.seed, view, len(plan.shard_sizes)).tolist()
    ]


def lag(metrics: Metrics) -> float | None:
    return metrics.registry.get_sample_value("limbeck_store_lag_shards")


@given(st.data())
def test_whatever_the_sizes_each_batch_finds_its_shards_and_the_store_stays_within_bounds(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=12))
    plan = SamplePlan(
        seed=data.draw(st.integers(0, 5)),
        shard_sizes=tuple(sizes),
        window_shards=data.draw(st.integers(1, 14)),
        batch_size=data.draw(st.integers(1, 20)),
        epochs=data.draw(st.integers(1, 3)),
    )
    views = data.draw(st.integers(1, 3))
    tasks = tasks_of(plan, views)
    lookahead = data.draw(st.integers(1, 4))
    there = data.draw(st.sets(st.sampled_from([task.identity for task in tasks])))
    pool, metrics = QueueAsPool(tasks, sorted(there), lookahead), Metrics("emoji", "0")
    metrics.shards_reused(len(there))
    teaching = Teaching(pool, tasks, metrics)  # type: ignore[arg-type]
    # A run that was stopped before goes on from here.
    first = data.draw(st.integers(0, plan.total_steps - 1))
    place_of = {(task.shard, task.view): place for place, task in enumerate(tasks, 1)}
    furthest = 0
    for step, (positions, epoch) in enumerate(plan.rank_batches(0, 1)):
        places = [(shard, epoch % views) for shard in np.unique(positions[:, 0]).tolist()]
        furthest = max(furthest, *(place_of[place] for place in places))
        captured = len(pool.captured)
        teaching.come_to(places)
        if step < first:
            continue
        pool.capture_all_in_reach()
        metrics_captured = pool.captured[captured:]
        for task in metrics_captured:
            metrics.shard_captured(task.num_samples)
        done = there | {task.identity for task in pool.captured}
        assert {f"{shard}/{view}" for shard, view in places} <= done
        ahead = [task for task in pool.captured if place_of[task.shard, task.view] > furthest]
        assert len(ahead) <= lookahead
        shown = lag(metrics)
        assert shown is not None
        assert shown >= 0
    teaching.come_to(())
    assert pool.queue.finished
    assert lag(metrics) == 0


def test_what_ended_the_capture_ends_the_training_at_its_next_batch() -> None:
    plan = SamplePlan(seed=0, shard_sizes=(2, 2), window_shards=1, batch_size=2, epochs=1)
    pool = QueueAsPool(tasks_of(plan, 1), [], 1)
    teaching = Teaching(pool, tasks_of(plan, 1), Metrics("emoji", "0"))  # type: ignore[arg-type]
    teaching.come_to([(0, 0)])
    pool.error = RuntimeError("the disk is full")
    with pytest.raises(RuntimeError, match="the disk is full"):
        teaching.come_to([(1, 0)])


@pytest.mark.parametrize(
    ("window_shards", "batch_size", "max_workers", "expected"),
    [(8, 10, 1, 8), (1, 10, 1, TASKS_IN_HAND), (1, 95, 1, 10), (8, 10, 6, 6 * TASKS_IN_HAND)],
)
def test_the_teacher_may_be_as_far_ahead_as_the_student_mixes_a_batch_takes_or_workers_need(
    window_shards: int, batch_size: int, max_workers: int, expected: int
) -> None:
    tasks = [CaptureTask(shard, 0, str(shard), 10) for shard in range(40)]
    found = lookahead_of(tasks, window_shards=window_shards, batch_size=batch_size, max_workers=max_workers)
    assert found == expected
