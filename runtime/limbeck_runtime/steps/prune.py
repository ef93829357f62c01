"""Step prune: weights, channels, heads or layers go, in rounds, with training in between where asked.

Left out: how (pruning/), and how recovery trains (distil.py, finetune.py).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from limbeck.api.prune_record import RECORD_FILE, REMOVED_FILE
from limbeck.api.v1alpha1.compression import Criterion, Prune
from limbeck.api.v1alpha1.job import Task
from limbeck_runtime.context import Context
from limbeck_runtime.data.batch import Batch, Labels
from limbeck_runtime.errors import InvalidSpecError
from limbeck_runtime.fingerprint import fingerprint
from limbeck_runtime.models.bundle import ModelBundle
from limbeck_runtime.pruning.errors import PruningError
from limbeck_runtime.pruning.pruning import Recover, warnings_for
from limbeck_runtime.pruning.pruning import prune as prune_model
from limbeck_runtime.pruning.scores import GRADIENTS, NEEDS_DATA, Evidence
from limbeck_runtime.pruning.signals import Loss, signed_outputs
from limbeck_runtime.steps.calibration import calibration_batches
from limbeck_runtime.steps.distil import distil
from limbeck_runtime.steps.finetune import finetune
from limbeck_runtime.steps.objective import Objective
from limbeck_runtime.steps.step import StepInputs, StepResult
from limbeck_runtime.student.collectives import RowGather

_BATCH_SIZE = 64
# Squared gradients of small batches are nearer to those of single samples, which the Fisher matrix is made of.
_FISHER_BATCH_SIZE = 8
_EXAMPLE_SIZE = 2


def prune(settings: Prune, inputs: StepInputs, context: Context) -> StepResult:
    """A pruned copy of the model, with its record beside it.

    Raises:
        InvalidSpecError: the model cannot be pruned as the settings ask.
        and what the training of `recover` raises.
    """
    for note in warnings_for(settings):
        context.warn(f"{inputs.name}: {note}")
    try:
        pruned = prune_model(
            inputs.bundle,
            settings,
            _example(inputs, context),
            _evidence(settings, inputs, context),
            name=inputs.name,
            recover=_recovery(settings, inputs, context),
        )
    except PruningError as error:
        raise InvalidSpecError(f"`{inputs.path}`: {error}") from error
    from safetensors.torch import save

    files = {RECORD_FILE: pruned.record.to_json().encode(), REMOVED_FILE: save(dict(pruned.removed))}
    return StepResult(pruned.bundle, files)


def _recovery(settings: Prune, inputs: StepInputs, context: Context) -> Recover | None:
    """Training after a round, as a step of its own name, so that its checkpoints and its history are its own."""
    recover = settings.recover
    if recover is None:
        return None

    def train(bundle: ModelBundle, number: int) -> ModelBundle:
        name = f"{inputs.name}-round-{number}"
        known = fingerprint(inputs.fingerprint, "recover", number)
        if recover.distil is not None:
            of_round = StepInputs(name, f"{inputs.path}.recover.distil", bundle, inputs.job, known)
            return distil(recover.distil, of_round, context).bundle
        assert recover.finetune is not None
        of_round = StepInputs(name, f"{inputs.path}.recover.finetune", bundle, inputs.job, known)
        return finetune(recover.finetune, of_round, context).bundle

    return train


def _example(inputs: StepInputs, context: Context) -> Mapping[str, Tensor]:
    return calibration_batches(inputs, context, _EXAMPLE_SIZE, _EXAMPLE_SIZE, Labels.NONE)[0].inputs


def _evidence(settings: Prune, inputs: StepInputs, context: Context) -> Evidence:
    """Training samples as they are, without augmentation; which ones follows from the job's seed."""
    seed = context.spec.seed
    if settings.method not in NEEDS_DATA:
        return Evidence(seed=seed)
    size = _FISHER_BATCH_SIZE if settings.method is Criterion.FISHER else _BATCH_SIZE
    objective = _objective(inputs)
    needs_labels = settings.method in GRADIENTS and objective is not None
    labels = objective.labels if objective is not None and needs_labels else Labels.NONE
    batches = calibration_batches(inputs, context, settings.calibration_samples, size, labels)
    loss = signed_outputs(seed)
    if objective is not None and needs_labels:
        loss = _task_loss(objective, batches)
    return Evidence([batch.inputs for batch in batches], loss, seed)


def _objective(inputs: StepInputs) -> Objective | None:
    """The task's loss on the data's own labels or pairs, where the data has some."""
    task = Task(inputs.bundle.task)
    if task in (Task.IMAGE_TEXT, Task.CAUSAL_LM) or (task is Task.IMAGE_CLASSIFICATION and inputs.job.train.classes):
        return Objective(task, hard_weight=1.0)
    return None


def _task_loss(objective: Objective, batches: list[Batch]) -> Loss:
    compute = objective.build(RowGather())

    def loss(outputs: Mapping[str, Tensor], place: int) -> Tensor:
        return torch.stack(list(compute(outputs, batches[place]).values())).sum()

    return loss
