"""What a job starts from: checked data, the teacher, and the student before its first step."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial

from limbeck.api.v1alpha1.data import DataSource
from limbeck_runtime.context import Context
from limbeck_runtime.data.errors import DataError
from limbeck_runtime.data.index import DataIndex, build_index
from limbeck_runtime.data.shard_ref import ShardRef
from limbeck_runtime.data.sources import resolve_shards
from limbeck_runtime.errors import InvalidSpecError
from limbeck_runtime.fingerprint import fingerprint
from limbeck_runtime.models.bundle import ModelBundle
from limbeck_runtime.storage import AlreadyExistsError, NotFoundError

# The name under which reading and checking the data shows its progress.
PREPARATION = "data"


@dataclass(frozen=True)
class Inputs:
    """What the pipeline works on. `student` is what its first step gets."""

    train: DataIndex
    validation: DataIndex
    teacher: ModelBundle | None
    student: ModelBundle

    @cached_property
    def teacher_identity(self) -> str | None:
        """Hash of the teacher's weights and architecture, where there is a teacher."""
        return None if self.teacher is None else self.teacher.identity()

    @cached_property
    def teacher_fingerprint(self) -> str | None:
        """The same with what it reads: what its answers follow from."""
        return (
            None if self.teacher is None else fingerprint(self.teacher_identity, self.teacher.preprocessing.identity())
        )

    @cached_property
    def student_fingerprint(self) -> str:
        """Of the student before its first step: weights, architecture and what it reads."""
        return fingerprint(self.student.identity(), self.student.preprocessing.identity())

    @cached_property
    def data_identity(self) -> str:
        """Hash of the training samples and their labels."""
        return fingerprint([[shard.identity, shard.class_ids] for shard in self.train.shards], self.train.classes)

    @cached_property
    def validation_identity(self) -> str:
        """Hash of the validation samples, their labels and slices."""
        shards = [[shard.identity, shard.class_ids, shard.slices] for shard in self.validation.shards]
        return fingerprint(shards, self.validation.classes)


def load_inputs(context: Context) -> Inputs:
    """Check the data, load or build the models.

    Raises:
        InvalidSpecError: data or models cannot be used as the job says; the message names which and why.
    """
    try:
        train, validation = load_data(context)
    except (DataError, ValueError) as error:
        raise InvalidSpecError(str(error)) from error
    context.check_stop()
    teacher, student = load_models(context)
    return Inputs(train, validation, teacher, student)


def load_data(context: Context) -> tuple[DataIndex, DataIndex]:
    """Indices of training and validation data; bad samples are told once each."""
    data = context.spec.data
    train = _index(context, data.train)
    if data.validation is not None:
        validation = _index(context, data.validation, classes=train.classes or None)
    else:
        assert data.validation_percent is not None
        train, validation = train.split(data.validation_percent)
    for sample in (*train.bad, *validation.bad):
        context.metrics.bad_sample(sample.reason.value)
        context.events.emit(
            "bad_sample", shard=sample.shard, key=sample.key, reason=sample.reason.value, detail=sample.detail
        )
    return train, validation


def _index(context: Context, source: DataSource, classes: tuple[str, ...] | None = None) -> DataIndex:
    """The index of one source, from the last run's where the files are the same."""
    data = context.spec.data
    refs = resolve_shards(source)
    columns = data.columns
    name = fingerprint(
        [ref.model_dump(mode="json") for ref in refs],
        columns.model_dump(mode="json"),
        source.format.value,
        data.max_bad_samples_percent,
        classes,
    )
    path = f"index/{name}.json"
    try:
        return DataIndex.from_json(context.output.get(path))
    except (NotFoundError, ValueError):
        pass  # not there, or written by another version: look at the data again
    index = build_index(
        refs,
        columns,
        source.format,
        max_bad_samples_percent=data.max_bad_samples_percent,
        num_threads=max(2, context.num_threads),
        classes=classes,
        progress=_shard_progress(context, refs),
    )
    context.output.delete(path)
    with suppress(AlreadyExistsError):  # another driver of the same job was quicker, with the same index
        context.output.create(path, index.to_json().encode())
    return index


def _shard_progress(context: Context, refs: list[ShardRef]) -> Callable[[int, int], None]:
    def show(done: int, total: int) -> None:
        context.check_stop()
        context.events.emit("step_progress", step=PREPARATION, phase="check", done=done, total=total, unit="shards")

    return show


def load_models(context: Context) -> tuple[ModelBundle | None, ModelBundle]:
    """The teacher, and the student that the first step gets: given, shrunk from the teacher, or the teacher itself."""
    from limbeck_runtime.models.loading import load_model
    from limbeck_runtime.models.shrink import shrink

    spec = context.spec
    load = partial(load_model, task=spec.task.value, seed=spec.seed)
    try:
        teacher = load(spec.teacher.model, field="spec.teacher.model") if spec.teacher else None
        if spec.student is None:
            assert teacher is not None
            return teacher, replace(teacher, module=copy.deepcopy(teacher.module))
        if spec.student.model is not None:
            return teacher, load(spec.student.model, teacher=teacher, field="spec.student.model")
        assert spec.student.shrink is not None
        if teacher is None:
            raise ValueError("`spec.student.shrink` must have a `spec.teacher` to shrink, got none; add the teacher")
        wanted = spec.student.shrink
        student, _record = shrink(teacher, wanted.depth_percent, wanted.width_percent)
        return teacher, student
    except ValueError as error:
        raise InvalidSpecError(str(error)) from error
