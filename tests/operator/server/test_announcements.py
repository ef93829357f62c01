from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from limbeck.api.progress import parse_event
from limbeck.server.announcements import announce, assume_announced
from limbeck.server.standing import Standing, fold

TIME = "2026-11-24T06:00:00Z"
NOW = datetime(2026, 11, 24, 6, 5, tzinfo=UTC)
CAPTURE = {"event": "capture_progress", "step": "distil", "done": 0, "total": 12, "replicas": 1}
STARTED = {"event": "run_started", "job": "emoji", "steps": ["distil", "int8"], "epoch": 1, "attempt": 1}
FINISHED = {"event": "step_finished", "step": "distil", "seconds": 41.0, "metrics": {"recall@10": 0.512345, "x": None}}
SKIPPED = {"event": "step_skipped", "step": "distil", "reason": "its result is there already"}
COMPLETE = {"event": "run_finished", "state": "Complete", "report": "s3://results/report.html"}
FAILED = {"event": "run_finished", "state": "Failed"}


def checkpoint(at: int) -> dict[str, Any]:
    return {"event": "checkpoint", "step": "distil", "at": at, "seconds": 0.1}


class Job:
    """One job as the history keeps it: written to JSON and read again between posts."""

    def __init__(self, standing: Standing | None = None) -> None:
        self.standing = standing or Standing()

    def post(self, *events: dict[str, Any]) -> list[tuple[str, str]]:
        """Reason and note of what a post makes worth announcing."""
        parsed = [parse_event({"time": TIME, **event}) for event in events]
        standing, new = announce(fold(self.standing, parsed, NOW), parsed)
        self.standing = Standing.model_validate_json(standing.model_dump_json())
        return [(one.reason, one.note) for one in new]


def test_a_capture_is_announced_when_it_starts_and_when_the_store_is_ready() -> None:
    job = Job()
    assert job.post(STARTED, CAPTURE, CAPTURE | {"done": 3}) == [
        ("TeacherCaptureStarted", "step distil: the teacher's outputs are captured, 12 shards")
    ]
    assert job.post(CAPTURE | {"done": 11}) == []
    assert job.post(CAPTURE | {"done": 12}, CAPTURE | {"done": 12}) == [
        ("TeacherStoreReady", "step distil: all 12 shards of the teacher's outputs are in the store")
    ]


def test_a_store_that_was_full_already_is_ready_and_no_capture_starts() -> None:
    assert Job().post(CAPTURE | {"done": 12, "reused": 12}) == [
        (
            "TeacherStoreReady",
            "step distil: all 12 shards of the teacher's outputs are in the store, all from earlier runs",
        )
    ]


def test_what_an_earlier_run_captured_is_told() -> None:
    [(_, note)] = Job().post(CAPTURE | {"done": 4, "reused": 4})
    assert note == "step distil: the teacher's outputs are captured, 12 shards, of which 4 were in the store already"


def test_a_step_that_is_complete_is_announced_with_its_metrics() -> None:
    assert Job().post(FINISHED) == [("StepCompleted", "step distil is complete: recall@10 0.5123")]
    assert Job().post(FINISHED | {"metrics": {}}) == [("StepCompleted", "step distil is complete")]


def test_a_step_that_an_earlier_job_had_done_is_announced_as_that() -> None:
    assert Job().post(SKIPPED) == [("StepCompleted", "step distil is complete: its result is there already")]


def test_each_step_has_its_own_events() -> None:
    other = {"step": "int8"}
    told = Job().post(FINISHED, FINISHED | other, CAPTURE, CAPTURE | other)
    assert [reason for reason, _ in told] == ["StepCompleted"] * 2 + ["TeacherCaptureStarted"] * 2


def test_of_all_checkpoints_the_first_and_the_last_are_announced() -> None:
    job = Job()
    assert job.post(checkpoint(10), checkpoint(20)) == [
        ("CheckpointSaved", "the first checkpoint is saved: step distil, batch 10")
    ]
    assert job.post(checkpoint(30)) == []
    assert job.post(COMPLETE) == [("CheckpointSaved", "the last checkpoint was saved: step distil, batch 30")]


def test_a_single_checkpoint_is_announced_once() -> None:
    assert [reason for reason, _ in Job().post(checkpoint(10), COMPLETE)] == ["CheckpointSaved"]


def test_a_run_without_checkpoints_announces_none() -> None:
    assert Job().post(STARTED, COMPLETE) == []


def test_another_attempt_announces_only_what_is_new() -> None:
    job = Job()
    first = [STARTED, CAPTURE | {"done": 12}, checkpoint(10), FINISHED, FAILED]
    assert len(job.post(*first)) == 4
    assert job.post(STARTED, SKIPPED, CAPTURE | {"done": 12, "reused": 12}, checkpoint(10), FINISHED) == []
    assert job.post(FINISHED | {"step": "int8"}, checkpoint(40), COMPLETE) == [
        ("StepCompleted", "step int8 is complete: recall@10 0.5123"),
        ("CheckpointSaved", "the last checkpoint was saved: step distil, batch 40"),
    ]


def test_a_server_that_lost_its_history_repeats_nothing_that_the_status_shows() -> None:
    job = Job()
    step = {"event": "step_started", "step": "distil", "method": "distil", "index": 1, "total": 2}
    job.post(STARTED, step, CAPTURE | {"done": 12}, checkpoint(10), FINISHED)
    again = Job(assume_announced(Standing.from_status(job.standing.to_status())))
    assert again.post(STARTED, SKIPPED, CAPTURE | {"done": 12}, checkpoint(10), FINISHED) == []
    assert again.post(FINISHED | {"step": "int8"}) == [("StepCompleted", "step int8 is complete: recall@10 0.5123")]


def test_a_job_that_has_only_begun_has_announced_nothing() -> None:
    job = Job()
    job.post(STARTED)
    assert assume_announced(Standing.from_status(job.standing.to_status())).announced == []


def test_a_run_that_names_ever_new_steps_is_cut_short() -> None:
    job = Job()
    told = [one for number in range(600) for one in job.post(FINISHED | {"step": f"step-{number}"})]
    assert len(told) == len(job.standing.announced) == 256


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_metric_that_is_no_number_is_not_shown(value: float) -> None:
    assert Job().post(FINISHED | {"metrics": {"loss": value}}) == [("StepCompleted", "step distil is complete")]
