"""A run whose output is a cloud: its logs are there too, those of all attempts."""

from __future__ import annotations

import io
import json
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from limbeck_runtime.commitlog import CommitLog
from limbeck_runtime.errors import InterruptedRunError
from limbeck_runtime.pipeline import run
from limbeck_runtime.storage import Storage
from limbeck_runtime.telemetry.log_upload import uploaded_lines

Job = dict[str, Any]
STEPS = 6


@pytest.fixture(params=["memory", pytest.param("s3", marks=pytest.mark.s3)])
def output(request: pytest.FixtureRequest) -> Storage:
    if request.param == "s3":
        storage: Storage = request.getfixturevalue("s3_server").open()
        return storage
    return Storage.open(f"memory://{uuid.uuid4().hex}")


@pytest.fixture
def job(classification: Callable[..., Job], tmp_path: Path) -> Job:
    tune = {"epochs": 2, "batchSize": 12, "checkpointIntervalSeconds": 0}
    pipeline = [{"name": "tune", "finetune": tune}, {"name": "again", "finetune": tune | {"epochs": 1}}]
    return classification(tmp_path / "unused", pipeline=pipeline, export={"formats": ["Safetensors"]})


def _lines(output: Storage, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in uploaded_lines(CommitLog(output.child("logs")), name).splitlines()]


class _StoppingAtFirstUpdate(io.StringIO):
    """Asks for a stop when the run first speaks of training."""

    def __init__(self, stop: threading.Event) -> None:
        super().__init__()
        self._stop = stop

    def write(self, line: str) -> int:
        if '"phase":"train"' in line:
            self._stop.set()
        return super().write(line)


def test_what_a_run_told_is_beside_its_result_also_what_an_attempt_before_told(
    open_run: Callable[..., Any], job: Job, output: Storage
) -> None:
    stop = threading.Event()
    stream = _StoppingAtFirstUpdate(stop)
    with open_run(job, stream=stream, output=output, stop=stop) as context, pytest.raises(InterruptedRunError):
        run(context)
    told = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert _lines(output, "events.jsonl") == told
    first = [(record["step"], record["update"]) for record in _lines(output, "progress.jsonl")]
    assert 1 <= len(first) < STEPS

    again = io.StringIO()
    with open_run(job, stream=again, output=output) as context:
        run(context)
        # The end of the run brings up only what the last step did not.
        steps_told = [event for event in _lines(output, "events.jsonl") if event["event"] == "step_finished"]
        assert [event["step"] for event in steps_told] == ["tune", "again"]
    assert _lines(output, "events.jsonl") == told + [json.loads(line) for line in again.getvalue().splitlines()]
    records = [(record["step"], record["update"]) for record in _lines(output, "progress.jsonl")]
    assert records == [("tune", update) for update in range(1, STEPS + 1)] + [("again", 1), ("again", 2), ("again", 3)]
    # The report's curve begins where the first attempt did.
    report = json.loads(output.get("report.json"))
    assert report["steps"][0]["history"]["updates"] == list(range(1, STEPS + 1))


def test_a_local_output_has_its_logs_as_they_are(open_run: Callable[..., Any], job: Job, tmp_path: Path) -> None:
    with open_run(job, output=Storage.open(str(tmp_path / "out"))) as context:
        context.warn("once")
        context.upload_logs()
    assert "once" in (tmp_path / "out" / "events.jsonl").read_text()
    assert not (tmp_path / "out" / "logs").exists()
