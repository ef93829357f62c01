from __future__ import annotations

import json
from typing import Any, get_args

import pytest

from limbeck.api import progress
from limbeck.api.progress import RATE_LIMITED, parse_event, to_wire

TIME = "2026-11-24T06:00:00Z"
EXAMPLES: list[dict[str, Any]] = [
    {"event": "run_started", "job": "emoji", "steps": ["distil"], "epoch": 1, "attempt": 1},
    {"event": "plan", "entries": [{"field": "a", "value": "b", "reason": "c"}]},
    {"event": "metrics_serving", "url": "http://127.0.0.1:9464/metrics"},
    {"event": "step_started", "step": "distil", "method": "distil", "index": 1, "total": 2},
    {
        "event": "step_progress", "step": "distil", "phase": "train", "done": 1, "total": 2, "unit": "batches",
        "loss": 1.5, "terms": {"kl": 1.5}, "samples_per_second": 10.0, "eta_seconds": 2.5,
    },
    {"event": "step_finished", "step": "distil", "seconds": 1.5, "metrics": {"recall@10": 0.5, "loss": None}},
    {"event": "step_skipped", "step": "distil", "reason": "same fingerprint"},
    {"event": "resumed", "step": "distil", "at": 100},
    {"event": "checkpoint", "step": "distil", "at": 100, "seconds": 0.5},
    {
        "event": "capture_progress", "step": "distil", "done": 1, "total": 2, "replicas": 2,
        "samples_per_second": None, "reused": 1,
    },
    {"event": "bad_sample", "shard": "a.tar", "key": "b", "reason": "EmptyText", "detail": "c"},
    {"event": "warning", "message": "a"},
    {
        "event": "run_finished", "state": "Failed", "reason": "GateFailed", "message": "a", "report": "b",
        "model": None, "card": None, "table": [["model"], ["int8"]],
        "result": {
            "size_ratio": 4.0, "recovery_percent": 98.5, "report_uri": "b", "model_uri": "",
            "metrics": [{"name": "recall@10", "teacher": 0.6, "student": 0.5}],
        },
    },
]  # fmt: skip


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example["event"])
def test_an_event_reads_back_from_its_one_line(example: dict[str, Any]) -> None:
    wire = {"time": TIME, **example}
    line = to_wire(parse_event(wire))
    assert "\n" not in line
    assert json.loads(line) == wire


def test_every_kind_of_event_has_an_example_here() -> None:
    [union, _] = get_args(progress.Event)
    kinds = {kind.model_fields["event"].default for kind in get_args(union)}
    assert kinds == {example["event"] for example in EXAMPLES}
    assert kinds > RATE_LIMITED


@pytest.mark.parametrize(
    "wire",
    [
        {},
        {"event": "warning", "message": "no time"},
        {"time": TIME, "event": "unknown"},
        {"time": TIME, "event": "warning", "message": "a", "extra": 1},
        {"time": TIME, "event": "checkpoint", "step": "a", "at": -1, "seconds": 1},
        {"time": TIME, "event": "run_finished", "state": "Fine"},
    ],
)
def test_what_is_no_event_of_ours_is_refused(wire: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        parse_event(wire)
