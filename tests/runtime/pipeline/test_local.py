"""`limbeck local` and the runtime in its child process, from the outside."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

pytestmark = pytest.mark.slow

Job = dict[str, Any]
LIMBECK = Path(sys.executable).with_name("limbeck")


@pytest.fixture
def job_file(classification: Callable[..., Job], tmp_path: Path) -> Path:
    """A job that trains for some seconds."""
    tune = {"name": "tune", "finetune": {"epochs": 60, "batchSize": 4}}
    path = tmp_path / "job.json"
    path.write_text(json.dumps(classification(tmp_path / "out", pipeline=[tune])))
    return path


@pytest.fixture
def start(job_file: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Starts `limbeck local` on the job; what still runs at the end is ended."""
    started: list[subprocess.Popen[str]] = []

    def one() -> subprocess.Popen[str]:
        command = [str(LIMBECK), "local", str(job_file), "--log-format", "lines"]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield one
    for process in started:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=60)


def _until_it_trains(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert any("tune: train" in line for line in process.stdout), "it ended before it trained"


def _events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "out" / "events.jsonl").read_text().splitlines()]


def test_ctrl_c_stops_cleanly_and_says_how_to_go_on(start: Callable[[], subprocess.Popen[str]], job_file: Path) -> None:
    process = start()
    _until_it_trains(process)
    process.send_signal(signal.SIGINT)
    shown, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "Stopping after a checkpoint" in shown
    assert f"To go on from here: limbeck local {job_file}" in shown
    assert _events(job_file.parent)[-1]["reason"] == "Stopped"


def test_a_runtime_whose_command_line_was_killed_saves_and_ends(
    start: Callable[[], subprocess.Popen[str]], job_file: Path
) -> None:
    process = start()
    _until_it_trains(process)
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    _, alive = psutil.wait_procs(children, timeout=120)
    assert not alive
    ended = _events(job_file.parent)
    assert ended[-1]["reason"] == "Stopped"
    (saved,) = [event["at"] for event in ended if event["event"] == "checkpoint"]
    again = start()
    assert again.wait(240) == 0
    resumed = [event["at"] for event in _events(job_file.parent) if event["event"] == "resumed"]
    assert resumed == [saved]
