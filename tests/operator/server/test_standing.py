from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from typing import Any

import pytest

from limbeck.api.progress import parse_event
from limbeck.api.status import Status
from limbeck.server.standing import Standing, fold

NOW = datetime(2026, 11, 24, 6, 5, tzinfo=UTC)
TIME = "2026-11-24T06:00:00Z"
STARTED = {"event": "run_started", "job": "emoji", "steps": ["distil", "int8"], "epoch": 1, "attempt": 1}
DISTIL = {"event": "step_started", "step": "distil", "method": "distil", "index": 1, "total": 2}
TRAIN = {
    "event": "step_progress", "step": "distil", "phase": "train", "done": 40, "total": 100, "unit": "batches",
    "loss": 1.25, "samples_per_second": 512.5, "eta_seconds": 33.6,
}  # fmt: skip
FINISHED = {"event": "step_finished", "step": "distil", "seconds": 41.0, "metrics": {"recall@10": 0.5, "x": None}}
RESULT = {"size_ratio": 8.1, "metrics": [{"name": "recall@10", "teacher": 0.6, "student": 0.5}]}
COMPLETE = {"event": "run_finished", "state": "Complete", "result": RESULT}


def standing(*events: dict[str, Any], before: Standing | None = None) -> Standing:
    return fold(before or Standing(), [parse_event({"time": TIME, **event}) for event in events], NOW)


def states(found: Standing) -> dict[str, str]:
    return {step.name: step.state.value for step in found.steps}


def test_a_run_that_starts_names_its_steps() -> None:
    found = standing(STARTED)
    assert states(found) == {"distil": "Pending", "int8": "Pending"}
    assert (found.progress.percent, found.ended, found.progress.last_update_time) == (0, None, NOW)


def test_training_moves_step_job_speed_and_time_left() -> None:
    found = standing(STARTED, DISTIL, TRAIN)
    [distil, _] = found.steps
    assert (distil.state, distil.progress_percent) == ("Running", 40)
    assert distil.message == "train: 40 of 100 batches, loss 1.25"
    assert found.progress.step == "distil"
    assert (found.progress.percent, found.progress.samples_per_second, found.progress.eta_seconds) == (20, 512.5, 34)


def test_an_evaluation_does_not_move_a_step() -> None:
    evaluation = TRAIN | {"phase": "evaluate", "done": 90, "loss": None}
    [distil, _] = standing(STARTED, DISTIL, TRAIN, evaluation).steps
    assert (distil.progress_percent, distil.message) == (40, "evaluate: 90 of 100 batches")


def test_a_step_that_trains_to_its_end_is_complete_only_when_it_says_so() -> None:
    at_end = standing(STARTED, DISTIL, TRAIN | {"done": 100})
    assert (at_end.steps[0].state, at_end.steps[0].progress_percent) == ("Running", 99)
    found = standing(FINISHED, before=at_end)
    assert (found.steps[0].state, found.steps[0].progress_percent) == ("Complete", 100)
    assert found.steps[0].message == "recall@10 0.5"
    assert (found.progress.percent, found.progress.samples_per_second, found.progress.eta_seconds) == (50, 0, None)


def test_capture_shows_the_teacher_pool() -> None:
    capture = {"event": "capture_progress", "step": "distil", "done": 12, "total": 128, "replicas": 4}
    teacher = standing(STARTED, DISTIL, capture).progress.teacher
    assert (teacher.replicas, teacher.shards_done, teacher.shards_total) == (4, 12, 128)


def test_a_complete_run_is_at_a_hundred_percent_and_has_its_result() -> None:
    found = standing(STARTED, DISTIL, FINISHED, COMPLETE)
    assert (found.progress.percent, found.ended) == (100, "Complete")
    assert found.result is not None
    assert found.result.metrics[0].student == 0.5


def test_the_result_of_a_job_without_a_teacher_has_no_ratio() -> None:
    result = {"metrics": [{"name": "accuracy", "student": 0.9}], "report_uri": "s3://results/report.html"}
    status = standing(STARTED, COMPLETE | {"result": result}).to_status()
    assert status["result"] == {
        "metrics": [{"name": "accuracy", "student": 0.9}],
        "reportUri": "s3://results/report.html",
        "modelUri": "",
    }


def test_a_failed_run_leaves_its_running_step_failed() -> None:
    found = standing(STARTED, DISTIL, TRAIN, {"event": "run_finished", "state": "Failed", "message": "disk full"})
    assert states(found) == {"distil": "Failed", "int8": "Pending"}
    assert (found.steps[0].message, found.steps[0].completion_time is not None) == ("disk full", True)
    assert found.progress.percent < 100


def test_a_stopped_run_leaves_its_step_to_be_gone_on_with() -> None:
    found = standing(STARTED, DISTIL, TRAIN, {"event": "run_finished", "state": "Stopped", "message": "on request"})
    assert (found.steps[0].state, found.steps[0].progress_percent) == ("Pending", 40)


def test_the_next_attempt_keeps_what_is_complete_and_begins_the_rest_anew() -> None:
    first = standing(
        STARTED, DISTIL, FINISHED, {**DISTIL, "step": "int8"}, {"event": "run_finished", "state": "Failed"}
    )
    found = standing(STARTED, {"event": "step_skipped", "step": "distil", "reason": "same"}, before=first)
    assert states(found) == {"distil": "Complete", "int8": "Pending"}
    assert found.steps[0].message == "recall@10 0.5"
    assert found.ended is None


def test_a_step_whose_result_an_earlier_job_left_is_skipped() -> None:
    found = standing(STARTED, {"event": "step_skipped", "step": "distil", "reason": "same fingerprint"})
    assert (found.steps[0].state, found.steps[0].message, found.progress.percent) == ("Skipped", "same fingerprint", 50)


def test_a_step_that_is_done_anew_runs_again() -> None:
    found = standing(DISTIL, before=standing(STARTED, DISTIL, FINISHED))
    assert (found.steps[0].state, found.steps[0].progress_percent) == ("Running", 0)


def test_work_outside_the_steps_is_no_step_but_is_named() -> None:
    found = standing(STARTED, TRAIN | {"step": "data", "phase": "check"})
    assert states(found) == {"distil": "Pending", "int8": "Pending"}
    assert found.progress.step == "data"


@pytest.mark.parametrize(
    "events",
    [
        [STARTED | {"steps": [f"step-{number}" for number in range(500)]}],
        [DISTIL | {"step": f"step-{number}"} for number in range(200)],
        [STARTED | {"steps": ["x" * 9999]}, DISTIL | {"step": "x" * 9999}, TRAIN | {"step": "x" * 9999}],
        [STARTED, DISTIL, TRAIN | {"loss": math.nan, "samples_per_second": math.inf, "eta_seconds": math.inf}],
        [STARTED, DISTIL, TRAIN | {"eta_seconds": 1e300, "done": 10**30, "total": 1, "unit": "u" * 5000}],
        [COMPLETE | {"result": RESULT | {"size_ratio": math.inf}}],
        [COMPLETE | {"result": RESULT | {"metrics": [{"name": "a", "teacher": math.nan, "student": math.nan}]}}],
        [COMPLETE | {"result": RESULT | {"recovery_percent": math.nan}}],
        [],
    ],
)
def test_whatever_a_run_says_the_status_stays_within_its_schema(events: list[dict[str, Any]]) -> None:
    wire = standing(*events).to_status()
    strict = json.loads(json.dumps(wire, allow_nan=False))
    assert Status.model_validate(strict).progress is not None
    assert Standing.from_status(strict).to_status() == strict
    assert set(strict) <= {"progress", "steps", "result"}
