"""`limbeck watch`: from the status alone, and from limbeck's server with the status as its judge."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest

from limbeck.api.progress import parse_event
from limbeck.cli.status_events import StatusEvents, condition_words, finished_event, timed

JOBS = "/apis/limbeck.dev/v1alpha1/namespaces/vision/compressionjobs"
RUN = "/api/v1/namespaces/vision/jobs/emoji"
Object = dict[str, Any]


def without_times(text: str) -> str:
    return re.sub(r"(?m)^\d\d:\d\d:\d\dZ", "TIME", text)


@pytest.fixture
def course(build_stored: Callable[..., Object]) -> list[Object]:
    """A job from Pending to Complete, over a failed attempt."""
    fresh = build_stored(None, version=7)
    pending = build_stored("Pending", version=8)
    first = build_stored("Running", version=9)
    first["status"]["steps"][1] |= {"state": "Pending", "progressPercent": 0, "message": "", "startTime": None}
    first["status"]["steps"][0] |= {
        "state": "Running",
        "completionTime": None,
        "progressPercent": 33,
        "message": "train: 40 of 120 batches, loss 1.25",
    }
    second = build_stored("Running", version=10)
    second["status"] |= {"attempt": 2, "rayJob": "emoji-2"}
    second["status"]["plan"] = [{"field": "spec.pipeline", "value": "distil, int8", "reason": "16x is far"}]
    end = build_stored("Complete", version=11)
    end["status"]["attempt"] = 2
    return [fresh, pending, first, second, end]


def test_a_status_is_told_as_a_run_is(api, limbeck, course, golden) -> None:
    api.job(course[0], *(("MODIFIED", job) for job in course[1:]))
    result = limbeck("watch", "emoji", kubeconfig=api.kubeconfig)
    assert result.exit_code == 0
    golden("watch_lines.txt", without_times(result.stdout))


def test_machines_get_events_and_what_becomes_of_the_job(api, limbeck, course) -> None:
    api.job(course[0], *(("MODIFIED", job) for job in course[1:]))
    result = limbeck("watch", "emoji", "--log-format", "json", kubeconfig=api.kubeconfig)
    wires = [json.loads(line) for line in result.stdout.splitlines()]
    phases = [wire["phase"] for wire in wires if wire["event"] == "job" and wire["reason"] == "Phase"]
    assert phases == ["-", "Pending", "Running", "Complete"]
    events = [parse_event(wire) for wire in wires if wire["event"] != "job"]
    assert [event.event for event in events][-1] == "run_finished"


def test_each_event_made_of_a_status_is_one_of_ours(course, now: datetime) -> None:
    told = StatusEvents()
    kinds = [[parse_event(event).event for event in told.after(job, now)] for job in course]
    assert kinds == [
        [],
        [],
        ["run_started", "step_started", "step_progress", "capture_progress"],
        ["plan", "run_started", "step_started", "step_finished", "step_started", "step_progress", "capture_progress"],
        ["step_finished"],
    ]
    assert parse_event(timed(finished_event(course[-1]), now)).event == "run_finished"


def test_a_step_at_work_tells_loss_and_count_where_the_server_wrote_them(course, now: datetime) -> None:
    events = StatusEvents().after(course[2], now)
    (progress,) = [event for event in events if event["event"] == "step_progress"]
    assert (progress["phase"], progress["done"], progress["total"], progress["loss"]) == ("train", 40, 120, 1.25)
    course[2]["status"]["steps"][0]["message"] = "who knows"
    (progress,) = [event for event in StatusEvents().after(course[2], now) if event["event"] == "step_progress"]
    assert (progress["done"], progress["total"], progress["unit"]) == (33, 100, "percent")


def test_a_condition_is_said_once_and_again_when_it_changes(build_stored) -> None:
    pending, running = build_stored("Pending"), build_stored("Running")
    assert condition_words(None, pending) == ["SecretNotFound: Secret s3 is not in namespace vision; create it"]
    assert condition_words(pending, pending) == []
    assert condition_words(pending, running) == ["RayJobCreated: RayJob emoji-1 exists"]


def test_a_failed_job_is_exit_code_one_with_its_reason_last(api, limbeck, build_stored) -> None:
    api.job(build_stored("Failed"))
    result = limbeck("watch", "emoji", kubeconfig=api.kubeconfig)
    assert result.exit_code == 1
    assert result.stdout.rstrip().endswith("Failed (GateFailed): recovery is 81.2 of 97 percent; train longer")


def test_a_job_that_is_deleted_ends_the_watch(api, limbeck, build_stored) -> None:
    api.job(build_stored("Running"), ("DELETED", build_stored("Running", version=8)))
    result = limbeck("watch", "emoji", kubeconfig=api.kubeconfig)
    assert result.exit_code == 1
    assert result.stdout.rstrip().endswith("emoji was deleted")


@pytest.fixture
def serve_run(api, answer, build_stored) -> Callable[..., None]:
    """What limbeck's server has of a run: events, a stream that wakes so often, and where the job stands."""

    def serve(*events: Object, ended: str | None = None, stream_end: str = "close") -> None:
        running = build_stored("Running")
        standing = {"uid": "uid-of-emoji", "ended": None, "steps": running["status"]["steps"]}
        standing["progress"] = running["status"]["progress"]
        states = [standing, standing | {"ended": ended}]
        blocks = [
            *(f"event: progress\r\nid: 1\r\ndata: {json.dumps(state)}\r\n\r\n".encode() for state in states),
            b": ping - 2026-11-24 12:00:00\r\n\r\n",
        ]
        items = [{"id": n + 1, "kind": event["event"], "body": event} for n, event in enumerate(events)]
        items.append({"id": 99, "kind": "record", "body": {"step": "distil", "update": 1}})
        api.tell("/readyz", answer(body=b"ok"))
        api.tell(f"{RUN}/stream", answer(events=blocks, end=stream_end))
        api.tell(f"{RUN}/history", answer(body={"uid": "uid-of-emoji", "items": items, "next": None}))
        api.tell(f"{RUN}/history", answer(body={"uid": "uid-of-emoji", "items": [], "next": None}))

    return serve


AT = "2026-11-24T11:59:00Z"
STARTED = {"time": AT, "event": "run_started", "job": "emoji", "steps": ["distil", "int8"], "epoch": 3, "attempt": 1}
BAD = {"time": AT, "event": "bad_sample", "shard": "a.tar", "key": "1f600", "reason": "TruncatedImage"}
FINISHED = {"time": AT, "event": "run_finished", "state": "Complete", "card": "s3://results/emoji/README.md"}


def test_the_server_tells_what_a_status_does_not_know(api, limbeck, build_stored, serve_run) -> None:
    done = build_stored("Complete", version=8)
    api.job(build_stored("Running"), ("MODIFIED", done))
    serve_run(STARTED, BAD, FINISHED, ended="Complete")
    result = limbeck("watch", "emoji", "--server", api.url, kubeconfig=api.kubeconfig)
    assert result.exit_code == 0
    shown = [line[10:] for line in result.stdout.splitlines()]
    assert "bad sample 1f600 in a.tar: TruncatedImage" in shown
    assert "int8: calibrate 4 of 10 batches (40 %), 512 samples/s, 5:40 left" in shown
    assert "card: s3://results/emoji/README.md" in result.stdout
    assert len([line for line in shown if line.startswith("run emoji, attempt 1")]) == 1
    assert "epoch 3" in result.stdout
    assert result.stdout.rstrip().endswith("Complete: the result reaches the target")


@pytest.mark.parametrize(("code", "reason"), [(404, "NotFound"), (503, "ServiceUnavailable")])
def test_trouble_with_the_api_server_while_the_server_speaks_ends_nothing(
    api, limbeck, build_stored, serve_run, code, reason
) -> None:
    api.job(build_stored("Running"), ("MODIFIED", build_stored("Complete", version=8)))
    api.status(f"{JOBS}/emoji", code, reason)
    serve_run(STARTED, FINISHED, ended="Complete")
    result = limbeck("watch", "emoji", "--server", api.url, kubeconfig=api.kubeconfig)
    assert (result.exit_code, result.stderr) == (0, "")


def test_a_run_that_ended_well_in_a_job_that_failed_is_shown_as_the_job_says(
    api, limbeck, build_stored, serve_run
) -> None:
    api.job(build_stored("Running"), ("MODIFIED", build_stored("Failed", version=8)))
    serve_run(STARTED, FINISHED, ended="Complete")
    result = limbeck("watch", "emoji", "--server", api.url, kubeconfig=api.kubeconfig)
    assert result.exit_code == 1
    assert result.stdout.rstrip().endswith("Failed (GateFailed): recovery is 81.2 of 97 percent; train longer")


def test_a_server_that_is_not_there_costs_detail_and_nothing_else(api, limbeck, course) -> None:
    api.job(course[0], *(("MODIFIED", job) for job in course[1:]))
    result = limbeck("watch", "emoji", "--server", "http://127.0.0.1:1", kubeconfig=api.kubeconfig)
    assert result.exit_code == 0
    assert "the status is shown, which says less than limbeck's server" in result.stdout
    assert "int8 done" in result.stdout


def test_a_server_that_is_lost_in_the_middle_is_replaced_by_the_status(api, limbeck, build_stored, serve_run) -> None:
    api.job(build_stored("Running"), ("MODIFIED", build_stored("Complete", version=8)))
    serve_run(STARTED, stream_end="cut")
    result = limbeck("watch", "emoji", "--server", api.url, kubeconfig=api.kubeconfig)
    assert result.exit_code == 0
    assert "limbeck's server is lost" in result.stdout
    assert "int8 done" in result.stdout


def test_a_job_whose_runs_have_not_posted_yet_is_shown_by_its_status(api, limbeck, course, answer) -> None:
    api.tell("/readyz", answer(body=b"ok"))
    api.job(course[0], *(("MODIFIED", job) for job in course[1:]))
    result = limbeck("watch", "emoji", "--server", api.url, kubeconfig=api.kubeconfig)
    assert result.exit_code == 0
    assert "int8 done" in result.stdout
    assert "lost" not in result.stdout
