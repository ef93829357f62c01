"""The loss of two samples, computed once before a training step starts: what cannot be trained is refused here.

Without it, shapes that do not fit would be found out by the first batch, hours of capture later.
Left out: what the data as a whole may hold that two samples do not (but for its classes).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from limbeck.api.v1alpha1.job import Task
from limbeck_runtime.data.batch import Batch
from limbeck_runtime.data.index import DataIndex
from limbeck_runtime.steps.objective import Objective
from limbeck_runtime.steps.outputs import Example
from limbeck_runtime.steps.teacher_outputs import TaughtBatch
from limbeck_runtime.store import Codec, Ragged
from limbeck_runtime.store.writer import lengths_name, part_name
from limbeck_runtime.student.collectives import RowGather
from limbeck_runtime.teacher.outputs import ShardOutputs

_NO_SHARD = "0" * 64


def rehearse(
    objective: Objective,
    index: DataIndex,
    student: Example,
    teacher: Example | None = None,
    codecs: Mapping[str, Codec] | None = None,
) -> None:
    """Compute the loss of the examples.

    Raises ValueError that says what of the models, the data or the settings does not fit.
    """
    if objective.task is Task.IMAGE_CLASSIFICATION:
        _check_classes(index, student.outputs["logits"])
    batch: Batch = student.batch
    if teacher is not None and codecs:
        stored = _as_stored(teacher, codecs)
        batch = TaughtBatch(batch.inputs, batch.keys, batch.shards, batch.rows, batch.view, stored)
    with torch.no_grad():
        objective.build(RowGather())(student.outputs, batch)


def _check_classes(index: DataIndex, logits_BC: Tensor) -> None:
    if len(index.classes) > logits_BC.shape[-1]:
        raise ValueError(
            f"the model must know all classes of the data, got {logits_BC.shape[-1]} outputs for "
            f"{len(index.classes)} classes; use a model with one for each"
        )


def _as_stored(teacher: Example, codecs: Mapping[str, Codec]) -> dict[str, Tensor]:
    """The teacher's outputs by the names and in the shapes in which the store gives them back."""
    collected = ShardOutputs(_NO_SHARD, codecs)
    collected.add(teacher.outputs, teacher.batch.inputs.get("attention_mask"))
    joined = collected.joined()
    stored: dict[str, Tensor] = {}
    for signal, codec in codecs.items():
        for part in codec.parts:
            name = part_name(signal, part)
            values = joined[name]
            if isinstance(values, Ragged):
                stored[lengths_name(signal)] = torch.from_numpy(values.lengths)
                values = values.padded(codec.fill[part])
            stored[name] = torch.from_numpy(values)
    return stored
