"""One training run as plain data: sent to every worker of the gang, which builds its own part from it.

Left out: how training goes (student/), where its losses come from (objective.py), what a step is (distil.py, ...).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from limbeck.api.v1alpha1.data import Augmentation
from limbeck.api.v1alpha1.training import Training
from limbeck_runtime.data.batch import Batch
from limbeck_runtime.data.index import DataIndex
from limbeck_runtime.data.loader import BatchLoader
from limbeck_runtime.models.bundle import ModelBundle
from limbeck_runtime.pruning.holding import held_names
from limbeck_runtime.steps.objective import Objective
from limbeck_runtime.steps.outputs import add_features
from limbeck_runtime.steps.teacher_outputs import TeacherOutputs
from limbeck_runtime.student.parts import TrainParts, Worker
from limbeck_runtime.student.sampler import SamplePlan


@dataclass(frozen=True)
class TrainingTask:
    """What is trained, on what, towards what. Calling it builds one worker's part."""

    bundle: ModelBundle
    index: DataIndex
    augmentation: Augmentation
    settings: Training
    seed: int
    window_shards: int
    objective: Objective
    outputs: TeacherOutputs | None = None

    @property
    def plan(self) -> SamplePlan:
        """Which samples each step takes."""
        sizes = tuple(int(size) for size in self.index.shard_sizes)
        return SamplePlan(self.seed, sizes, self.window_shards, self.settings.batch_size, self.settings.epochs)

    def view_of(self, epoch: int) -> int:
        """The view of the samples that an epoch sees."""
        return epoch % self.augmentation.views

    def __call__(self, worker: Worker) -> TrainParts:
        """The part of one worker. The bundle's own module stays as it is."""
        # Convolutions run about twice as fast with channels last; what has none is not changed by it.
        module = copy.deepcopy(self.bundle.module).to(memory_format=torch.channels_last)
        add_features(module, self.objective.student_layers)
        return TrainParts(
            module=module,
            loss=self.objective.build(worker.gather),
            stream=_Stream(self, worker),
            plan=self.plan,
            couples_samples=self.objective.couples_samples,
            learning_rates=tuple((rate.parameters, rate.learning_rate) for rate in self.settings.layer_rates),
            count=self.objective.count,
            held_zeros=held_names(self.bundle.architecture.edits),
        )


@dataclass(frozen=True)
class _Stream:
    """(epoch, step in the epoch) -> one worker's batches from there to the end, with what the teacher said of them."""

    task: TrainingTask
    worker: Worker

    def __call__(self, epoch: int, step: int) -> Iterator[Any]:
        task = self.task
        with (
            BatchLoader(
                task.index,
                task.bundle.preprocessing,
                augmentation=task.augmentation,
                seed=task.seed,
                labels=task.objective.labels,
            ) as loader,
            closing(loader.stream(self._positions(epoch, step))) as batches,
        ):
            for batch in batches:
                yield self._taught(batch)

    def _positions(self, epoch: int, step: int) -> Iterator[tuple[np.ndarray, int]]:
        """Positions and view of each batch; waits where the teacher has not seen a shard yet."""
        task = self.task
        for positions, of_epoch in task.plan.rank_batches(self.worker.rank, self.worker.world_size, epoch, step):
            view = task.view_of(of_epoch)
            if task.outputs is not None:
                for shard in np.unique(positions[:, 0]).tolist():
                    task.outputs.wait_for(shard, view)
            yield positions, view

    def _taught(self, batch: Batch) -> Batch:
        return batch if self.task.outputs is None else self.task.outputs.attach(batch)
