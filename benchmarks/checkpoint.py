"""P11: how long checkpoints hold up a training step, and whether a run killed while it writes one goes on bit for bit.

The student has 4.2 million parameters, so a checkpoint with the optimiser's state has 51 MB. One is always in flight:
the next starts as soon as the last is durable, so the stall is an upper bound of what any interval gives. What a
checkpoint takes until it is durable is what it would stall the step if it were written there, as Ray Train's report()
writes it. The runs that are killed: tests/runtime/student/kill_campaign.py, SIGKILL before, within and after each
operation on the disk.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.timing import RUNS, Figure
from limbeck.api.v1alpha1.training import Training
from limbeck_runtime.storage import Storage
from limbeck_runtime.student.checkpoint import CheckpointPlace
from limbeck_runtime.student.loop import TrainingRun
from limbeck_runtime.student.parts import TrainParts, Worker
from limbeck_runtime.student.records import Callbacks
from limbeck_runtime.student.sampler import SamplePlan

# Steps before the clock starts.
_UNTIMED = 3
CAMPAIGN = Path(__file__).resolve().parents[1] / "tests" / "runtime" / "student" / "kill_campaign.py"


@dataclass(frozen=True)
class Workload:
    """What is trained and how often it is killed."""

    width: int = 512
    depth: int = 16
    batch_size: int = 256
    num_steps: int = 60
    runs: int = RUNS
    kill_seeds: tuple[int, ...] = (1, 2, 3)
    kill_epochs: int = 3


@dataclass(frozen=True)
class _Batch:
    inputs: dict[str, torch.Tensor]
    keys: tuple[str, ...]


class _Student(nn.Module):
    def __init__(self, workload: Workload) -> None:
        super().__init__()
        width = workload.width
        blocks = (nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width), nn.GELU()) for _ in range(workload.depth))
        self.layers = nn.Sequential(*blocks)

    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"features": self.layers(inputs["features"])}


@dataclass(frozen=True)
class _Timed:
    """What a run of some steps took, of which this long for checkpoints, and how long each of them took in all."""

    step_seconds: float
    blocked_seconds: float
    durable_seconds: tuple[float, ...]


def measure(workload: Workload = Workload()) -> dict[str, Any]:
    """Stalls, and the kill points that went on with the same bits."""
    torch.set_num_threads(1)  # the second core is for the thread that writes
    _steps(workload, None)
    plain, behind = [], []
    for _ in range(workload.runs):
        plain.append(_steps(workload, None))
        behind.append(_steps(workload, 1e-3))
    campaigns = [_killed(workload, seed) for seed in workload.kill_seeds]
    faults = [fault for campaign in campaigns for fault in campaign["wrong"]]
    durable = [seconds for timed in behind for seconds in timed.durable_seconds]
    slower = [with_it.step_seconds / without.step_seconds for with_it, without in zip(behind, plain, strict=True)]
    return {
        "stall_percent": Figure.of([100 * timed.blocked_seconds / timed.step_seconds for timed in behind]).to_json(),
        "kill_points": sum(campaign["points"] for campaign in campaigns) - len(faults),
        "kill_points_wrong": len(faults),
        "kill_faults": faults[:10],
        "stall_ms": Figure.of([timed.blocked_seconds for timed in behind]).scaled(1e3).to_json(),
        "step_ms": Figure.of([timed.step_seconds for timed in plain]).scaled(1e3).to_json(),
        "step_time_with_writer_beside": Figure.of(slower).to_json(),
        "stall_if_written_in_the_step_ms": Figure.of(durable).scaled(1e3).to_json(),
        "workload": f"{workload}",
    }


def _steps(workload: Workload, interval_seconds: float | None) -> _Timed:
    """Train, with checkpoints unless the interval is None; the first steps are not timed."""
    ends: list[float] = []
    saved: list[float] = []
    callbacks = Callbacks(
        on_step=lambda record: ends.append(time.perf_counter()),
        on_checkpoint=lambda checkpoint: saved.append(checkpoint.seconds),
    )
    plan = SamplePlan(0, (workload.num_steps * workload.batch_size,), 1, workload.batch_size, epochs=1)
    settings = Training(epochs=1, batch_size=workload.batch_size)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        checkpoints = None
        if interval_seconds is not None:
            checkpoints = CheckpointPlace(Storage.open(folder), "bench").open(interval_seconds, {})
            stack.callback(checkpoints.close)
        TrainingRun(_parts(workload, plan), settings, Worker(), checkpoints, callbacks).run()
        blocked_seconds = checkpoints.blocked_seconds if checkpoints is not None else 0.0
    step_seconds = (ends[-1] - ends[_UNTIMED - 1]) / (len(ends) - _UNTIMED)
    return _Timed(step_seconds, blocked_seconds / workload.num_steps, tuple(saved))


def _parts(workload: Workload, plan: SamplePlan) -> TrainParts:
    batch = _Batch({"features": torch.randn(workload.batch_size, workload.width)}, ("",) * workload.batch_size)
    return TrainParts(
        module=_Student(workload),
        loss=lambda outputs, batch: {"square": outputs["features"].square().mean()},
        stream=lambda epoch, step: itertools.repeat(batch),
        plan=plan,
    )


def _killed(workload: Workload, seed: int) -> dict[str, Any]:
    """What a campaign found: {points, wrong}."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = [folder, "1", str(workload.kill_epochs), str(seed)]
        done = subprocess.run([sys.executable, str(CAMPAIGN), *arguments], check=True, stdout=subprocess.PIPE)
        found: dict[str, Any] = json.loads(done.stdout)
        return found
