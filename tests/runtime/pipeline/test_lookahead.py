"""A teacher that is faster than its student pauses, and goes on as the student does."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from limbeck_runtime.errors import InterruptedRunError
from limbeck_runtime.pipeline import run
from limbeck_runtime.student.sampler import SamplePlan, shard_order
from limbeck_runtime.teacher.capture import CaptureSettings
from limbeck_runtime.teacher.plan import CaptureTask
from limbeck_runtime.teacher.workers import TASKS_IN_HAND, Answer, ThreadWorkers

Job = dict[str, Any]
SHARDS, SHARD_SIZE, WINDOW, BATCH = 12, 3, 2, 6
PATIENCE_SECONDS = 60.0


@pytest.fixture
def job(
    classification: Callable[..., Job],
    classifier: Callable[..., Any],
    write_tar: Callable[[Path, Mapping[str, Any]], None],
    samples: Mapping[str, Any],
    tmp_path: Path,
) -> Job:
    """Twelve small shards, of which the student mixes two at a time."""
    items = list(samples.items())
    for shard in range(SHARDS):
        write_tar(tmp_path / f"train-{shard:02d}.tar", dict(items[shard * SHARD_SIZE : (shard + 1) * SHARD_SIZE]))
    step = {
        "epochs": 1,
        "batchSize": BATCH,
        "checkpointIntervalSeconds": 0,
        "teacherOutputs": {"windowShards": WINDOW},
    }
    made = classification(
        tmp_path / "out",
        teacher=classifier(channels=8),
        pipeline=[{"name": "distil", "distil": step}],
        export={"formats": ["Safetensors"]},
    )
    made["spec"]["data"]["train"]["uri"] = f"{tmp_path}/train-{{00..{SHARDS - 1}}}.tar"
    return made


class Watched:
    """What the teacher's workers are given, and whether they have nothing to do."""

    def __init__(self) -> None:
        self.given: list[CaptureTask] = []
        self.idle_rounds = 0
        self.changed = threading.Condition()

    def workers(self, settings: CaptureSettings) -> ThreadWorkers:
        watched = self

        class Workers(ThreadWorkers):
            def submit(self, worker: str, task: CaptureTask) -> None:
                with watched.changed:
                    watched.given.append(task)
                    watched.idle_rounds = 0
                super().submit(worker, task)

            def answers(self, timeout_seconds: float) -> list[Answer]:
                answers = super().answers(timeout_seconds)
                with watched.changed:
                    watched.idle_rounds += 1 if not self._pending else 0
                    watched.changed.notify_all()
                return answers

        return Workers(settings)

    def wait_for_pause(self) -> int:
        """How many shards were given out when the workers had nothing to do for some rounds, or no more was left."""
        with self.changed:
            over = self.changed.wait_for(
                lambda: self.idle_rounds > 5 or len(self.given) == SHARDS, timeout=PATIENCE_SECONDS
            )
            assert over, self.given
            return len(self.given)


def at_first_update(do: Callable[[], object]) -> Callable[[Any], None]:
    """A listener that does something when the student has made its first update; the student waits meanwhile."""
    left = [do]

    def hear(event: Any) -> None:
        if event.event == "step_progress" and event.phase == "train" and left:
            left.pop()()

    return hear


def _shards(folder: Path) -> dict[str, int]:
    """Bytes of each shard in the store."""
    return {path.stem: path.stat().st_size for path in folder.rglob("*.arrow")}


def test_a_teacher_pauses_within_the_window_while_its_student_is_busy(
    job: Job, open_run: Callable[..., Any], tmp_path: Path
) -> None:
    watched = Watched()
    found: dict[str, Any] = {}

    def look() -> None:
        found["given"] = watched.wait_for_pause()
        found["bytes"] = _shards(tmp_path / "out" / "store")
        found["lag"] = context.metrics.registry.get_sample_value("limbeck_store_lag_shards")

    with (
        open_run(job, teacher_workers=watched.workers) as context,
        context.events.heard_by(at_first_update(look)),
    ):
        run(context)
        assert context.metrics.registry.get_sample_value("limbeck_store_lag_shards") == 0
    seed = context.spec.seed
    place = {shard: number for number, shard in enumerate(shard_order(seed, 0, SHARDS).tolist(), 1)}
    batches = list(SamplePlan(seed, (SHARD_SIZE,) * SHARDS, WINDOW, BATCH, 1).batches(0))
    # One batch is done, and the next one is wanted.
    read = {int(shard) for shard in batches[0][:, 0]}
    begun = max(place[int(shard)] for batch in batches[:2] for shard in batch[:, 0])
    assert found["given"] == begun + TASKS_IN_HAND < SHARDS
    assert found["lag"] == found["given"] - len(read)
    ahead = [found["bytes"][task.identity] for task in watched.given[begun : found["given"]]]
    assert len(found["bytes"]) == found["given"]
    assert 0 < sum(ahead) <= TASKS_IN_HAND * max(found["bytes"].values())
    assert len(watched.given) == len(_shards(tmp_path / "out" / "store")) == SHARDS


@pytest.mark.parametrize("batch_size", [2, BATCH, 30])
def test_a_run_that_was_stopped_goes_on_to_its_end_and_captures_nothing_twice(
    batch_size: int, job: Job, open_run: Callable[..., Any], tmp_path: Path
) -> None:
    job["spec"]["pipeline"][0]["distil"] |= {"epochs": 3, "batchSize": batch_size}
    job["spec"]["data"]["augmentation"] = {"views": 2, "flip": True}
    watched, stop = Watched(), threading.Event()
    with (
        open_run(job, stop=stop, teacher_workers=watched.workers) as context,
        context.events.heard_by(at_first_update(stop.set)),
        pytest.raises(InterruptedRunError),
    ):
        run(context)
    before = len(_shards(tmp_path / "out" / "store"))
    assert before == 2 * SHARDS if batch_size == 30 else before < 2 * SHARDS
    again = io.StringIO()
    with open_run(job, stream=again, teacher_workers=watched.workers) as context:
        run(context)
        assert context.metrics.registry.get_sample_value("limbeck_store_lag_shards") == 0
    events = [json.loads(line) for line in again.getvalue().splitlines()]
    assert [event["event"] for event in events].count("resumed") == 1
    last = [event for event in events if event["event"] == "capture_progress"][-1]
    assert (last["done"], last["total"], last["reused"]) == (2 * SHARDS, 2 * SHARDS, before)
    assert len(_shards(tmp_path / "out" / "store")) == 2 * SHARDS


@pytest.mark.slow
@pytest.mark.ray
def test_two_workers_and_their_teacher_do_not_wait_for_each_other(
    job: Job, drive: Callable[..., Any], tmp_path: Path
) -> None:
    job["spec"]["pipeline"][0]["distil"] |= {"epochs": 2, "teacherOutputs": {"windowShards": 1}}
    job["spec"]["data"]["augmentation"] = {"views": 2, "flip": True}
    job["spec"]["cluster"] = {"student": {"replicas": 2}}
    ended = drive(job)
    assert ended.code == 0, ended.errors
    last = ended.of("capture_progress")[-1]
    assert (last["done"], last["total"]) == (2 * SHARDS, 2 * SHARDS)
