"""Runs one training task as part of a step: checkpoints, progress, and the model that comes out.

Left out: what is trained towards what (training_task.py, objective.py) and the loop itself (student/).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from limbeck_runtime.context import Context
from limbeck_runtime.errors import InterruptedRunError, InvalidSpecError
from limbeck_runtime.fingerprint import fingerprint
from limbeck_runtime.models.bundle import ModelBundle
from limbeck_runtime.models.normalization import batch_norm_warning
from limbeck_runtime.steps.training_task import TrainingTask
from limbeck_runtime.student.checkpoint import CheckpointPlace, SavedCheckpoint
from limbeck_runtime.student.gang import train_gang
from limbeck_runtime.student.records import Callbacks, Interrupted, Restart, StepRecord, TrainResult
from limbeck_runtime.telemetry.recorder import StepRecorder, Tracker

# Hears of shards and their views.
ComeTo = Callable[[Sequence[tuple[int, int]]], None]


def run_training(
    context: Context, name: str, task: TrainingTask, known: str, come_to: ComeTo = lambda places: None
) -> ModelBundle:
    """The bundle after training, or after what is left of it where a checkpoint of fingerprint `known` exists.

    `come_to` hears of each batch's shards and views before it is wanted; what it raises ends the training.

    Raises:
        InterruptedRunError: asked to stop; a checkpoint was written.
        InvalidSpecError: the loss is not a number any more, or settings or data do not fit the model.
    """
    plan = task.plan
    recorder = StepRecorder(
        name,
        plan.total_steps,
        events=context.events,
        metrics=context.metrics,
        progress=context.progress,
        trackers=_trackers(context, name),
    )

    reading = _Reading(task, come_to)
    _warn_about_batch_norm(context, name, task.bundle)

    def on_step(record: StepRecord) -> None:
        reading.follow(record.step)
        recorder.update(
            record.step,
            record.epoch,
            record.num_samples,
            record.loss,
            record.terms,
            learning_rate=record.learning_rate,
            data_wait_seconds=record.data_wait_seconds,
        )

    def on_checkpoint(saved: SavedCheckpoint) -> None:
        context.metrics.checkpoint_saved(saved.seconds)
        context.events.emit("checkpoint", step=name, at=saved.step, seconds=saved.seconds)

    def on_resume(steps: int) -> None:
        reading.follow(steps)
        if steps < plan.total_steps:
            context.events.emit("resumed", step=name, at=steps)

    def on_restart(restart: Restart) -> None:
        place = "the last checkpoint" if restart.memory_step is None else f"batch {restart.memory_step}, from memory"
        context.warn(f"step {name} goes on from {place}: {restart.reason}")

    callbacks = Callbacks(
        on_resume=on_resume,
        on_step=on_step,
        on_checkpoint=on_checkpoint,
        should_stop=context.stop.is_set,
        on_skipped=lambda skipped: context.warn(
            f"checkpoint {skipped.sequence} of {name} was passed over: {skipped.reason}"
        ),
        on_restart=on_restart,
    )
    place = CheckpointPlace(
        context.output.child(f"checkpoints/{name}"),
        fingerprint(known, task.settings.model_dump(mode="json")),
        context.fence,
    )
    reading.follow(0)
    try:
        result = train_gang(
            task,
            task.settings,
            num_workers=context.spec.cluster.student.replicas,
            checkpoints=place,
            callbacks=callbacks,
        )
    except Interrupted as interrupted:
        raise InterruptedRunError(
            f"stopped in step {name} after {interrupted.step} of {plan.total_steps} batches; "
            "run the same command again to go on from there"
        ) from interrupted
    except ValueError as error:  # about what the user can change; another attempt would end the same way
        raise InvalidSpecError(f"step {name}: {error}") from error
    return _trained(task.bundle, result)


class _Reading:
    """Tells which shards of teacher outputs the students come to: the order of samples says so."""

    def __init__(self, task: TrainingTask, come_to: ComeTo) -> None:
        self._batches = task.plan.rank_batches(0, 1) if task.outputs is not None else iter(())
        self._view_of = task.view_of
        self._come_to = come_to
        self._num_told = 0

    def follow(self, num_done: int) -> None:
        """So many batches are done (fewer than before, where workers were lost): the next one is wanted."""
        while self._num_told <= num_done:
            self._num_told += 1
            batch = next(self._batches, None)
            if batch is None:
                self._come_to(())
            else:
                positions, epoch = batch
                self._come_to([(shard, self._view_of(epoch)) for shard in np.unique(positions[:, 0]).tolist()])


def _warn_about_batch_norm(context: Context, name: str, bundle: ModelBundle) -> None:
    message = batch_norm_warning(bundle.module, context.spec.cluster.student.replicas)
    if message is not None:
        context.warn(f"{name}: {message}")


def _trained(bundle: ModelBundle, result: TrainResult) -> ModelBundle:
    """`bundle` with the trained weights in a module of its own."""
    module = copy.deepcopy(bundle.module)
    module.load_state_dict(dict(result.weights), strict=False)
    return replace(bundle, module=module.eval())


def _trackers(context: Context, name: str) -> tuple[Tracker, ...]:
    """Experiment trackers that the job asks for."""
    if not context.spec.tracking.tensor_board:
        return ()
    from limbeck_runtime import names
    from limbeck_runtime.telemetry.tensorboard import TensorBoardWriter

    return (TensorBoardWriter(context.progress_path.parent / names.FOLDER_TENSORBOARD, name, 1),)
