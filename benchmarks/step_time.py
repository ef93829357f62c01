"""P1: a step of two student workers, against torchrun's DDP over gloo.

Both train the same student with AdamW and clipping, one thread a worker, in turns. Ours does more in a step: it seeds,
tells of each step, looks for checkpoints that are due, and agrees on stopping.
"""

from __future__ import annotations

import itertools
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.step_time_peer import CLIP_NORM, LEARNING_RATE, Student
from benchmarks.timing import RUNS, Comparison
from limbeck.api.v1alpha1.training import LearningRateSchedule, Training
from limbeck_runtime import cluster
from limbeck_runtime.student.gang import train_gang
from limbeck_runtime.student.parts import TrainParts, Worker
from limbeck_runtime.student.records import Callbacks, StepRecord
from limbeck_runtime.student.sampler import SamplePlan

PEER = Path(__file__).with_name("step_time_peer.py")
NUM_WORKERS = 2


@dataclass(frozen=True)
class Workload:
    """What is trained."""

    width: int = 512
    depth: int = 16
    batch_size: int = 256
    num_steps: int = 120
    num_untimed: int = 20
    runs: int = RUNS


@dataclass(frozen=True)
class _Batch:
    inputs: dict[str, torch.Tensor]
    keys: tuple[str, ...]


def measure(workload: Workload = Workload()) -> dict[str, Any]:
    """Median seconds of a step of both, and their ratio."""
    os.environ["OMP_NUM_THREADS"] = "1"
    cluster.connect()
    try:
        ours, peer = [], []
        for _ in range(workload.runs):
            peer.append(_peer(workload))
            ours.append(_ours(workload))
    finally:
        cluster.disconnect()
    compared = Comparison.of(ours, peer)
    return {
        "step_time": compared.ratio.to_json(),
        "step_ms": compared.first_seconds.scaled(1e3).to_json(),
        "torchrun_step_ms": compared.second_seconds.scaled(1e3).to_json(),
        "workload": f"{workload}",
    }


def _ours(workload: Workload) -> float:
    records: list[StepRecord] = []
    settings = Training(
        epochs=1,
        batch_size=workload.batch_size,
        learning_rate=LEARNING_RATE,
        gradient_clip_norm=CLIP_NORM,
        schedule=LearningRateSchedule.CONSTANT,
    )
    callbacks = Callbacks(on_step=records.append)
    train_gang(partial(_build, workload=workload), settings, num_workers=NUM_WORKERS, callbacks=callbacks)
    return statistics.median(record.seconds for record in records[workload.num_untimed :])


def _build(worker: Worker, *, workload: Workload) -> TrainParts:
    num_samples = workload.batch_size // worker.world_size
    batch = _Batch({"features": torch.randn(num_samples, workload.width)}, ("",) * num_samples)
    return TrainParts(
        module=Student(workload.width, workload.depth),
        loss=lambda outputs, batch: {"square": outputs["features"].square().mean()},
        stream=lambda epoch, step: itertools.repeat(batch),
        plan=SamplePlan(0, (workload.num_steps * workload.batch_size,), 1, workload.batch_size, epochs=1),
    )


def _peer(workload: Workload) -> float:
    arguments = (workload.width, workload.depth, workload.batch_size, workload.num_steps, workload.num_untimed)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={NUM_WORKERS}"]
    done = subprocess.run(
        [*command, str(PEER), *map(str, arguments)], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    return float(done.stdout)
