"""The training loop of one worker, the same for one worker and for many.

A step: take a batch, compute gradients and update (update.py), maybe start a checkpoint, tell. The position (steps
done) and the state (state.py) say all that a resumed run needs; learning rate, random numbers and sample order are
functions of the position.
Left out on purpose: gradient scaling (float16 is not offered), and validation in between (a step of its own).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from limbeck.api.v1alpha1.training import Training
from limbeck_runtime.student.checkpoint import Checkpoints, Snapshot
from limbeck_runtime.student.determinism import reproducible
from limbeck_runtime.student.gradients import Terms
from limbeck_runtime.student.image import TensorImage
from limbeck_runtime.student.optimization import freeze, trained_parameters
from limbeck_runtime.student.parallel import snapshot_of_rank
from limbeck_runtime.student.parts import TrainBatch, TrainParts, Worker
from limbeck_runtime.student.records import Callbacks, DivergedError, Interrupted, StepRecord, TrainResult
from limbeck_runtime.student.state import whole_tensors
from limbeck_runtime.student.update import Updater

# Reading a value from a GPU waits for it, so there a loss that is not a number is looked for only now and then
# (and before every checkpoint).
_CHECK_EVERY_STEPS = 50


def train(
    parts: TrainParts,
    settings: Training,
    worker: Worker | None = None,
    *,
    checkpoints: Checkpoints | None = None,
    callbacks: Callbacks | None = None,
) -> TrainResult:
    """Train `parts.module` in place, from the newest checkpoint if there is one, and leave it in eval mode.

    With averaging the module ends with the averaged weights. `checkpoints` and `callbacks` are for rank 0.
    Raises Interrupted (after a checkpoint), DivergedError, and what stream or checkpoints raise.
    """
    run = TrainingRun(parts, settings, worker or Worker(), checkpoints, callbacks)
    return run.run(checkpoints.load() if checkpoints is not None else None)


class TrainingRun:
    """One run on one worker. It keeps its state when `run` fails, so that a new gang can go on from `memory`."""

    def __init__(
        self,
        parts: TrainParts,
        settings: Training,
        worker: Worker,
        checkpoints: Checkpoints | None = None,
        callbacks: Callbacks | None = None,
    ) -> None:
        plan = parts.plan
        assert (plan.epochs, plan.batch_size) == (settings.epochs, settings.batch_size), "the plan is another run's"
        if plan.num_samples == 0:
            raise ValueError("`data.train` must hold samples, got none that can be used; see the bad samples")
        self._parts = parts
        self._settings = settings
        self._worker = worker
        self._checkpoints = checkpoints
        self._callbacks = callbacks or Callbacks()
        self._steps_done = 0
        self._steps_saved = -1
        self._updater: Updater | None = None
        self._last_values: tuple[tuple[str, ...], torch.Tensor] | None = None
        # [stop, save] that the workers agreed on in the step before; see `_decide`.
        self._wishes = torch.zeros(2, device=worker.device)
        self._save_is_wished = False
        parts.module.to(worker.device)
        if isinstance(parts.loss, nn.Module):
            parts.loss.to(worker.device)
        freeze(parts.module, settings.freeze)
        if not trained_parameters(parts.module, parts.loss):
            raise ValueError("the model must have parameters that train, got none; see `freeze`")

    def run(self, snapshot: Snapshot | None = None, *, source_rank: int = 0) -> TrainResult:
        """Train to the end, starting from the snapshot that the worker `source_rank` has, if it has one."""
        with reproducible(self._worker.device):
            snapshot = snapshot_of_rank(source_rank, snapshot, self._worker)
            if snapshot is not None:
                self._steps_done = self._steps_saved = snapshot.step
                if self._worker.rank == 0:
                    self._callbacks.on_resume(self._steps_done)
            with self._batches() as batches:
                timed = next(batches, None)
                updater = Updater(self._parts, self._settings, self._worker, timed[0] if timed else None)
                if snapshot is not None:
                    _restore(updater, snapshot)
                self._updater = updater
                while timed is not None:
                    self._step(updater, *timed)
                    timed = next(batches, None)
            self._save(updater, wait=True)
            return self._finish(updater)

    def memory(self) -> Snapshot | None:
        """The state as of the last whole step, if `run` came that far and this worker has all of it."""
        updater = self._updater
        if updater is None or updater.updating or updater.state.sharded:
            return None
        tensors = updater.state.all()
        image = TensorImage(tensors)
        image.copy_from(tensors, tensors)
        return Snapshot(self._steps_done, bytes(image.data))

    @contextmanager
    def _batches(self) -> Iterator[Iterator[tuple[TrainBatch, float]]]:
        """Batches from the position to the end of the run, each with the seconds that it was waited for."""
        plan = self._parts.plan
        if self._steps_done == plan.total_steps:
            yield iter(())
            return
        stream = self._parts.stream(*divmod(self._steps_done, plan.steps_per_epoch))
        try:
            yield self._timed(stream)
        finally:
            close = getattr(stream, "close", None)
            if close is not None:
                close()

    def _timed(self, stream: Iterator[Any]) -> Iterator[tuple[TrainBatch, float]]:
        total_steps = self._parts.plan.total_steps
        for step in range(self._steps_done, total_steps):
            started = time.perf_counter()
            batch = next(stream, None)
            if batch is None:
                raise ValueError(f"the stream of batches must reach step {total_steps}, got an end at step {step}")
            yield batch, time.perf_counter() - started

    def _step(self, updater: Updater, batch: TrainBatch, waited_seconds: float) -> None:
        started = time.perf_counter() - waited_seconds
        step = self._steps_done
        terms = updater.gradients(batch, step)
        sums, exchange = self._exchange(terms)
        if self._checkpoints is not None:
            self._checkpoints.before_update()
        norm = updater.apply(step)
        self._steps_done += 1
        if exchange is not None:
            exchange.wait()
        self._last_values = names, values = tuple(terms), torch.cat([sums[: len(terms)], norm.reshape(1)])
        if values.device.type == "cpu" or self._steps_done % _CHECK_EVERY_STEPS == 0:
            self._check_last_values()
        stop, save = self._decide(updater, sums[len(terms) :])
        if stop or save:
            self._save(updater, wait=stop)
        if self._worker.rank == 0:
            self._callbacks.on_step(self._record(updater, names, values, started, waited_seconds))
        self._tell_saved()
        if stop:
            raise Interrupted(self._steps_done)

    def _exchange(self, terms: Terms) -> tuple[torch.Tensor, dist.Work | None]:
        """Sums over workers of each term and of rank 0's wishes, under way while the update is computed."""
        values = torch.stack(list(terms.values()))
        if self._worker.world_size == 1:
            return values, None
        sums = torch.cat([values, torch.tensor(self._own_wishes(), device=values.device)])
        return sums, dist.all_reduce(sums, async_op=True)

    def _own_wishes(self) -> tuple[float, float]:
        """(stop, save) as rank 0 wishes; a wish to save is not repeated before it is granted."""
        if self._worker.rank != 0:
            return 0.0, 0.0
        save = self._due() and not self._save_is_wished
        self._save_is_wished |= save
        return float(self._callbacks.should_stop()), float(save)

    def _due(self) -> bool:
        return self._checkpoints is not None and self._checkpoints.due()

    def _decide(self, updater: Updater, wishes: torch.Tensor) -> tuple[bool, bool]:
        """Whether to stop after this step, and whether to save.

        Among several workers, rank 0's wish to stop takes effect one step later, so that to read it from a GPU does
        not wait for the step that has just been enqueued. So does its wish to save where the state is sharded;
        elsewhere rank 0 saves alone, and need not ask.
        """
        if self._worker.world_size == 1:
            return self._callbacks.should_stop(), self._due()
        (stop, save), self._wishes = self._wishes.tolist(), wishes
        return stop > 0, save > 0 if updater.state.sharded else self._due()

    def _save(self, updater: Updater, *, wait: bool = False) -> None:
        """Start a checkpoint. If the state is sharded, all workers put it together and rank 0 writes it."""
        if self._steps_saved != self._steps_done:
            self._check_last_values()
            self._steps_saved, self._save_is_wished = self._steps_done, False
            updated, buffers = updater.state.updated(), updater.state.buffers
            if updater.state.sharded:
                updated = whole_tensors(updated)
            if self._checkpoints is not None:
                self._checkpoints.save(updated, buffers, self._steps_done)
        if wait and self._checkpoints is not None:
            self._checkpoints.wait()
        self._tell_saved()

    def _tell_saved(self) -> None:
        for saved in self._checkpoints.take_saved() if self._checkpoints is not None else ():
            self._callbacks.on_checkpoint(saved)

    def _check_last_values(self) -> None:
        if self._last_values is None:
            return
        names, values = self._last_values
        if not torch.isfinite(values).all():
            found = ", ".join(f"{name} {value:g}" for name, value in zip(names, values.tolist(), strict=False))
            raise DivergedError(
                f"`learningRate` must keep the loss finite, got {found} at step {self._steps_done}; "
                f"lower it from {self._settings.learning_rate:g}, or raise `warmupPercent`"
            )

    def _record(
        self, updater: Updater, names: tuple[str, ...], values: torch.Tensor, started: float, waited_seconds: float
    ) -> StepRecord:
        plan, step = self._parts.plan, self._steps_done - 1
        return StepRecord(
            step=self._steps_done,
            total_steps=plan.total_steps,
            epoch=self._steps_done / plan.steps_per_epoch,
            num_samples=plan.samples_in(step % plan.steps_per_epoch),
            learning_rate=self._settings.learning_rate * updater.learning_rate_factor(step),
            seconds=time.perf_counter() - started,
            data_wait_seconds=waited_seconds,
            names=names,
            values=values,
        )

    def _finish(self, updater: Updater) -> TrainResult:
        if updater.state.average is not None:
            updater.state.average.copy_to_parameters()
        self._parts.module.eval()
        trained = {**updater.state.parameters, **updater.state.buffers}
        weights = {
            name.removeprefix("model/"): tensor.detach().cpu()
            for name, tensor in (whole_tensors(trained) if updater.state.sharded else trained).items()
            if name.startswith("model/")
        }
        return TrainResult(self._steps_done, weights)


@torch.no_grad()
def _restore(updater: Updater, snapshot: Snapshot) -> None:
    image = TensorImage(updater.state.all())
    image.load(snapshot.data)
    updater.state.restore(image)
