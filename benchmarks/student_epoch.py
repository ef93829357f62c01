"""P7: an epoch of a student that reads its teacher from the store, against hard labels alone and an online teacher.

Three ways of the same training, in turns in one process: by the labels alone (what teaching costs), from the store, and
with the teacher asked about every batch, as tools without a store do it. The first epoch of each run is not counted:
images are decoded in it, which is the same for all.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.classification import Classification, Workload
from benchmarks.timing import RUNS, Comparison, Figure, in_turns
from limbeck_runtime.student.loop import train
from limbeck_runtime.student.parts import Build, Worker
from limbeck_runtime.student.records import Callbacks, StepRecord
from limbeck_runtime.teacher.capture import Capturer

NUM_THREADS = 2
WORKLOAD = Workload()


def measure(workload: Workload = WORKLOAD, runs: int = RUNS) -> dict[str, Any]:
    """Seconds of an epoch three ways."""
    with tempfile.TemporaryDirectory() as folder:
        job = Classification.prepare(workload, Path(folder))
        store = job.new_store("captured")
        capturer = Capturer(job.capture_settings(store, NUM_THREADS))
        capture_seconds = sum(capturer.capture(task).seconds for task in job.capture_tasks)
        capturer.close()
        ways: dict[str, Build] = {"hard": job.hard(), "stored": job.stored(store), "online": job.online}
        seconds = in_turns({name: partial(epoch_seconds, job, build) for name, build in ways.items()}, runs=runs)
    return {
        "stored_against_hard": Comparison.of(seconds["stored"], seconds["hard"]).ratio.to_json(),
        "online_against_stored": Comparison.of(seconds["online"], seconds["stored"]).ratio.to_json(),
        "epoch_seconds": {name: Figure.of(values).to_json() for name, values in seconds.items()},
        "capture_seconds": capture_seconds,
        "workload": f"{workload}",
    }


def epoch_seconds(job: Classification, build: Build) -> float:
    """Mean over all epochs but the first, of a run that starts anew."""
    watch = _Watch(job.hard().plan.steps_per_epoch)
    train(build(Worker()), job.settings, callbacks=Callbacks(on_step=watch.on_step))
    return (watch.last - watch.after_first_epoch) / (job.workload.epochs - 1)


@dataclass
class _Watch:
    """When the first epoch ended, and the last."""

    steps_per_epoch: int
    after_first_epoch: float = field(default=0.0)
    last: float = field(default=0.0)

    def on_step(self, record: StepRecord) -> None:
        self.last = time.perf_counter()
        if record.step == self.steps_per_epoch:
            self.after_first_epoch = self.last
