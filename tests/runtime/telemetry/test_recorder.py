from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from limbeck_runtime.telemetry.events import EventLog
from limbeck_runtime.telemetry.metrics import Metrics
from limbeck_runtime.telemetry.progress import ProgressLog, ProgressRecord, read_history
from limbeck_runtime.telemetry.recorder import StepRecorder


class CountingTracker:
    def __init__(self) -> None:
        self.updates: list[int] = []

    def write(self, record: ProgressRecord) -> None:
        self.updates.append(record.update)


class OnDevice:
    """A number that costs something to read."""

    num_reads = 0

    def __float__(self) -> float:
        OnDevice.num_reads += 1
        return 0.5


def test_an_update_reaches_events_metrics_history_and_trackers(tmp_path: Path, clock: Any) -> None:
    stream, tracker, metrics = io.StringIO(), CountingTracker(), Metrics("emoji", "0", clock)
    progress = ProgressLog(tmp_path / "progress.jsonl")
    recorder = StepRecorder(
        "distil",
        20,
        events=EventLog(stream, clock=clock),
        metrics=metrics,
        progress=progress,
        trackers=(tracker,),
        clock=clock,
    )
    for update in range(1, 11):
        recorder.update(update, update / 5, 64, 1.0 / update, {"kl": 1.0 / update}, learning_rate=1e-3)
        clock.advance(0.5)
    progress.close()

    last = json.loads(stream.getvalue().splitlines()[-1])
    assert (last["done"], last["total"], last["loss"], last["terms"]) == (10, 20, 0.1, {"kl": 0.1})
    assert last["samples_per_second"] == pytest.approx(128)
    assert last["eta_seconds"] == pytest.approx(5.0)
    assert metrics.registry.get_sample_value("limbeck_step_progress_ratio", {"step": "distil"}) == 0.5
    assert metrics.registry.get_sample_value("limbeck_train_updates_total", {"step": "distil"}) == 10
    history = read_history((tmp_path / "progress.jsonl").read_bytes())
    assert [(entry.update, entry.learning_rate) for entry in history] == [(n, 1e-3) for n in range(1, 11)]
    assert tracker.updates == list(range(1, 11))


def test_losses_are_read_off_the_device_only_for_updates_that_are_shown(clock: Any) -> None:
    recorder = StepRecorder("distil", 1000, events=EventLog(io.StringIO(), clock=clock), clock=clock)
    OnDevice.num_reads = 0
    for update in range(1, 101):
        recorder.update(update, 0.0, 64, OnDevice(), {})
        clock.advance(0.01)
    # One second of training, shown five times a second.
    assert OnDevice.num_reads == 5


def test_the_last_update_is_always_shown(clock: Any) -> None:
    stream = io.StringIO()
    recorder = StepRecorder("distil", 3, events=EventLog(stream, clock=clock), clock=clock)
    for update in range(1, 4):
        recorder.update(update, 0.0, 64, 1.0, {})
    assert [json.loads(line)["done"] for line in stream.getvalue().splitlines()] == [1, 3]
