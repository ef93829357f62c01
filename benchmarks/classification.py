"""The training that P7 and P8 time: a 64-wide CNN teaches a 16-wide one about made-up images of 100 classes.

All that is timed is the product's own: the index, the loader, the capture, the store, the training task and the loop.
Made here are only the images and the two networks.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from limbeck.api.v1alpha1.data import Augmentation, Columns, DataFormat, DataSource
from limbeck.api.v1alpha1.job import Task
from limbeck.api.v1alpha1.training import Distil, Signal, SignalKind
from limbeck.api.v1alpha1.training import TeacherOutputs as StoredAs
from limbeck_runtime.data.index import DataIndex, build_index
from limbeck_runtime.data.sources import resolve_shards
from limbeck_runtime.inputs import Inputs
from limbeck_runtime.models.bundle import ModelBundle
from limbeck_runtime.models.python_loader import read_python
from limbeck_runtime.steps.lesson import Lesson, plan_lesson
from limbeck_runtime.steps.objective import Objective
from limbeck_runtime.steps.teacher_outputs import TaughtBatch, TeacherOutputs
from limbeck_runtime.steps.training_task import TrainingTask
from limbeck_runtime.storage import Storage
from limbeck_runtime.store import TeacherStore
from limbeck_runtime.student.parts import TrainParts, Worker
from limbeck_runtime.teacher.capture import CaptureSettings
from limbeck_runtime.teacher.plan import CaptureTask, capture_plan

NO_AUGMENTATION = Augmentation()
SEED = 0


@dataclass(frozen=True)
class Workload:
    """Data, networks and training."""

    num_shards: int = 32
    samples_per_shard: int = 128
    image_size: int = 32
    num_classes: int = 100
    teacher_width: int = 64
    student_width: int = 16
    batch_size: int = 128
    epochs: int = 3
    window_shards: int = 8


def cnn(width: int, num_classes: int) -> nn.Module:
    """Three 3x3 convolutions that halve the image and double the width; what the Python loader calls."""
    return _Network(width, num_classes)


class _Network(nn.Module):
    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for widened, stride in ((width, 1), (2 * width, 2), (4 * width, 2)):
            layers += [nn.Conv2d(channels, widened, 3, stride, 1), nn.GroupNorm(4, widened), nn.ReLU()]
            channels = widened
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(channels, num_classes)

    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        maps_BCHW = self.layers(inputs["pixel_values"])
        return {"logits": self.head(maps_BCHW.mean(dim=(2, 3)))}


@dataclass(frozen=True)
class Classification:
    """The prepared data and models, and every piece of training on them."""

    workload: Workload
    folder: Path
    index: DataIndex
    teacher: ModelBundle
    student: ModelBundle

    @classmethod
    def prepare(cls, workload: Workload, folder: Path) -> Classification:
        """Write the images below `folder` and build the networks."""
        data = folder / "data"
        data.mkdir(parents=True)
        for shard in range(workload.num_shards):
            _write_shard(workload, shard, data / f"{shard:03d}.tar")
        refs = resolve_shards(DataSource(uri=f"{data}/", format=DataFormat.WEB_DATASET))
        index = build_index(refs, Columns(image="png", label="cls"), DataFormat.WEB_DATASET)
        return cls(
            workload,
            folder,
            index,
            _bundle(workload, workload.teacher_width),
            _bundle(workload, workload.student_width),
        )

    @cached_property
    def settings(self) -> Distil:
        """Of the student's training."""
        return Distil(
            epochs=self.workload.epochs,
            batch_size=self.workload.batch_size,
            learning_rate=1e-3,
            signals=[Signal(kind=SignalKind.FORWARD_KL)],
            teacher_outputs=StoredAs(window_shards=self.workload.window_shards),
        )

    @cached_property
    def lesson(self) -> Lesson:
        """What the student learns from the teacher, and what of it is stored."""
        return plan_lesson(
            self.settings, self.teacher, self.student, Inputs(self.index, self.index, self.teacher, self.student)
        )

    @cached_property
    def capture_tasks(self) -> list[CaptureTask]:
        """What the teacher is asked, in the order in which the student wants it."""
        return capture_plan(
            self.index,
            teacher_identity=self.teacher.identity(),
            preprocessing_identity=self.teacher.preprocessing.identity(),
            augmentation=NO_AUGMENTATION,
            seed=SEED,
            codecs=self.lesson.codecs,
            epochs=self.workload.epochs,
        )

    def new_store(self, name: str) -> TeacherStore:
        """An empty store."""
        place = self.folder / "stores" / name
        return TeacherStore(Storage.open(str(place / "store")), place / "cache", self.lesson.codecs)

    def capture_settings(self, store: TeacherStore, num_threads: int) -> CaptureSettings:
        """The teacher's side."""
        return CaptureSettings(
            self.teacher, self.index, NO_AUGMENTATION, SEED, self.lesson.codecs, store, num_threads=num_threads
        )

    def hard(self) -> TrainingTask:
        """The student taught by the labels alone."""
        return self._task(Objective(Task.IMAGE_CLASSIFICATION, hard_weight=1.0), None)

    def stored(self, store: TeacherStore) -> TrainingTask:
        """The student taught by what the store holds, or will hold."""
        shard_ids = {(task.shard, task.view): task.identity for task in self.capture_tasks}
        outputs = TeacherOutputs(store, shard_ids, tuple(self.lesson.codecs))
        return self._task(self.lesson.objective, outputs)

    def online(self, worker: Worker) -> TrainParts:
        """The student taught by the teacher itself, which is asked about every batch."""
        parts = self._task(self.lesson.objective, None)(worker)
        return replace(parts, stream=_AskedTeacher(parts.stream, self.teacher.module.eval()))

    def _task(self, objective: Objective, outputs: TeacherOutputs | None) -> TrainingTask:
        return TrainingTask(
            self.student,
            self.index,
            NO_AUGMENTATION,
            self.settings,
            SEED,
            self.workload.window_shards,
            objective,
            outputs,
        )


@dataclass(frozen=True)
class _AskedTeacher:
    """A stream of batches, each with the teacher's logits for it, computed when the student comes for it."""

    stream: Callable[[int, int], Iterator[Any]]
    teacher: nn.Module = field(repr=False)

    def __call__(self, epoch: int, step: int) -> Iterator[Any]:
        for batch in self.stream(epoch, step):
            with torch.inference_mode():
                logits_BV = self.teacher(batch.inputs)["logits"]
            yield TaughtBatch(
                batch.inputs, batch.keys, batch.shards, batch.rows, batch.view, {"logits": logits_BV.clone()}
            )


def _bundle(workload: Workload, width: int) -> ModelBundle:
    torch.manual_seed(SEED)
    return read_python(
        f"{__name__}:{cnn.__name__}",
        Task.IMAGE_CLASSIFICATION,
        field="benchmark",
        settings={"width": width, "num_classes": workload.num_classes},
        image_size=workload.image_size,
    )


def _write_shard(workload: Workload, shard: int, path: Path) -> None:
    """Smooth random pictures, each tinted by its class."""
    random = np.random.default_rng(shard)
    with tarfile.open(path, "w") as tar:
        for sample in range(workload.samples_per_shard):
            label = int(random.integers(workload.num_classes))
            coarse = random.integers(0, 256, (4, 4, 3)) // 2 + np.random.default_rng(label).integers(0, 128, 3)
            image = Image.fromarray(coarse.astype(np.uint8)).resize((workload.image_size, workload.image_size))
            file = io.BytesIO()
            image.save(file, "png")
            for ending, content in (("png", file.getvalue()), ("cls", str(label).encode())):
                member = tarfile.TarInfo(f"{shard:03d}-{sample:04d}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
