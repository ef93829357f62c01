"""Step finetune: training on the data's own labels or pairs, without a teacher."""

from __future__ import annotations

from limbeck.api.v1alpha1.job import Task
from limbeck.api.v1alpha1.training import Distil, Finetune, TeacherOutputs, Training
from limbeck_runtime.context import Context
from limbeck_runtime.errors import InvalidSpecError
from limbeck_runtime.steps.objective import Objective
from limbeck_runtime.steps.outputs import example_of
from limbeck_runtime.steps.rehearsal import rehearse
from limbeck_runtime.steps.step import StepInputs, StepResult
from limbeck_runtime.steps.training import run_training
from limbeck_runtime.steps.training_task import TrainingTask

_WINDOW_SHARDS = TeacherOutputs().window_shards


def finetune(settings: Finetune, inputs: StepInputs, context: Context) -> StepResult:
    """Train all weights that are not frozen.

    Raises:
        InvalidSpecError: the data does not hold what the model is to learn.
        and what `run_training` raises.
    """
    objective = Objective(
        Task(inputs.bundle.task), hard_weight=1.0, label_smoothing=settings.label_smoothing_percent / 100
    )
    try:
        rehearse(objective, inputs.job.train, example_of(inputs.bundle, inputs.job.train, labels=objective.labels))
    except ValueError as error:
        raise InvalidSpecError(f"`{inputs.path}`: {error}") from error
    task = TrainingTask(
        bundle=inputs.bundle,
        index=inputs.job.train,
        augmentation=context.spec.data.augmentation,
        settings=settings,
        seed=context.spec.seed,
        window_shards=_WINDOW_SHARDS,
        objective=objective,
    )
    return StepResult(run_training(context, inputs.name, task, inputs.fingerprint))


def hard_label_settings(distil: Distil) -> Finetune:
    """The same budget as a distillation, spent on the data's own labels alone: the fair baseline."""
    shared = distil.model_dump(include=set(Training.model_fields))
    return Finetune.model_validate(shared)
