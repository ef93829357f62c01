"""P14: the quickstart's compression job, from the command to the report.

    limbeck local examples/01-image-text/job.yaml

Installing, preparing the data and training the teacher come before and are not counted (they are skipped where their
results are there already). Each run writes to a place of its own, so that nothing is found from the run before.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.timing import RUNS, Figure
from limbeck.cli.jobfile import read_job, resolve_paths

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "01-image-text"


class QuickstartError(RuntimeError):
    """A command of the quickstart failed; the message ends with what it said."""


def measure(example: Path = EXAMPLE, runs: int = RUNS) -> dict[str, Any]:
    """Seconds of the whole job and of its steps; `example` is a folder with the example's files."""
    _run([sys.executable, str(example / "prepare.py"), "--out", str(example)])
    _limbeck_local(example / "teacher.yaml")
    taken = [_compress(example / "job.yaml") for _ in range(runs)]
    return {
        "seconds": Figure.of([one.seconds for one in taken]).to_json(),
        "step_seconds": {
            name: Figure.of([one.step_seconds[name] for one in taken]).to_json() for name in taken[0].step_seconds
        },
        "report_table": taken[-1].table,
    }


@dataclass(frozen=True)
class Compressed:
    """One run of the job: its time, that of its steps, and the short table at its end."""

    seconds: float
    step_seconds: Mapping[str, float]
    table: list[list[str]]


def _compress(source: Path) -> Compressed:
    with tempfile.TemporaryDirectory() as folder:
        job = resolve_paths(read_job(str(source)), source.parent).to_wire()
        job["spec"]["output"] = {"uri": f"{folder}/output"}
        job["spec"].pop("store", None)
        file = Path(folder) / "job.json"
        file.write_text(json.dumps(job), encoding="utf-8")
        started = time.perf_counter()
        events = _limbeck_local(file)
        seconds = time.perf_counter() - started
        finished = events[-1]
        if finished["event"] != "run_finished" or not Path(finished["report"]).is_file():
            raise QuickstartError(f"the job left no report, its last event is {finished}")
    steps = {event["step"]: event["seconds"] for event in events if event["event"] == "step_finished"}
    return Compressed(seconds, steps, finished["table"])


def _limbeck_local(job: Path) -> list[dict[str, Any]]:
    """Run a job to its end; its events."""
    command = [str(Path(sys.executable).with_name("limbeck")), "local", str(job), "--log-format", "json"]
    return [json.loads(line) for line in _run(command).splitlines()]


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip()[-2000:]
        raise QuickstartError(f"{' '.join(command)} ended with {done.returncode}: {said}")
    return done.stdout
