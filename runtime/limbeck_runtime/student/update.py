"""One update of the weights: gradients of a batch over all its parts and workers, clipping, AdamW, averaging."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from limbeck.api.v1alpha1.training import Training
from limbeck_runtime.student.determinism import seed_everything
from limbeck_runtime.student.gradients import (
    GradientContext,
    Part,
    Terms,
    autocast_for,
    even_parts,
    gradients_by_part,
    gradients_of_coupled,
)
from limbeck_runtime.student.optimization import (
    WeightAverage,
    adamw,
    enter_training,
    set_learning_rate,
    trained_parameters,
)
from limbeck_runtime.student.parallel import average_gradients, is_sharded, share_module, unshared_parameters
from limbeck_runtime.student.parts import TrainBatch, TrainParts, Worker, part_of, to_device
from limbeck_runtime.student.sampler import share_of_batch
from limbeck_runtime.student.schedule import learning_rate_factor
from limbeck_runtime.student.state import TrainingState, persistent_buffers, whole_tensors


class Updater:
    """What turns batches into updates on one worker; `updating` is true while the state is between two steps."""

    def __init__(self, parts: TrainParts, settings: Training, worker: Worker, first_batch: TrainBatch | None) -> None:
        """Make the state of step 0. Without a first batch (all steps are done) nothing is shared with workers."""
        self._parts = parts
        self._settings = settings
        self._worker = worker
        shared = parts.module
        if first_batch is not None:
            shared = share_module(parts, worker, settings.parallelism, first_batch)
        enter_training(parts.module)
        parameters = trained_parameters(parts.module, parts.loss)
        sharded = is_sharded(shared)
        self._unshared = unshared_parameters(shared, parts.loss)
        self.state = TrainingState(
            parameters,
            persistent_buffers(parts.module, parts.loss),
            adamw(
                parameters,
                settings.learning_rate,
                settings.weight_decay,
                parts.learning_rates,
                fused=not sharded,
            ),
            WeightAverage(parameters, settings.ema_decay_percent / 100) if settings.ema_decay_percent else None,
            sharded,
        )
        # Weights that were pruned: without gradient AdamW leaves a zero a zero, its decay and its average too.
        self._masks = [
            (parameter, parameter.detach() != 0)
            for name in parts.held_zeros
            if (parameter := parameters.get(f"model/{name}")) is not None
        ]
        self.updating = False
        self._step = 0
        self._context = GradientContext(
            shared=shared,
            loss=parts.loss,
            world_size=worker.world_size,
            autocast=autocast_for(settings.precision, worker.device),
            seed_part=lambda part: seed_everything(parts.plan.seed, self._step, worker.rank, part),
        )

    def gradients(self, batch: TrainBatch, step: int) -> Terms:
        """Gradients of step `step` (0 is the first) into the parameters; this worker's share of each term."""
        self._step = step
        plan, worker = self._parts.plan, self._worker
        worker.gather.expect(plan.samples_in(step % plan.steps_per_epoch))
        batch = to_device(batch, worker.device)
        parts = self._cut(batch, step)
        if self._parts.couples_samples:
            terms = gradients_of_coupled(self._context, self._parts.module, batch, parts)
        else:
            terms = gradients_by_part(self._context, batch, parts)
        if worker.world_size > 1:
            average_gradients(self._unshared, worker.world_size)
        return terms

    def apply(self, step: int) -> torch.Tensor:
        """Update the weights from the gradients; the gradient's norm before clipping, a scalar."""
        self.updating = True
        settings, optimizer = self._settings, self.state.optimizer
        set_learning_rate(optimizer, self.learning_rate_factor(step))
        for parameter, mask in self._masks:
            if parameter.grad is not None:
                parameter.grad.mul_(mask)
        norm = self._clip(settings.gradient_clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if self.state.average is not None:
            self.state.average.update(step + 1)
        self.updating = False
        return norm.detach()

    def _clip(self, highest_norm: float) -> torch.Tensor:
        """Scale gradients down to the norm (0 does not); the norm before, over sharded and whole ones."""
        alike: dict[type, list[nn.Parameter]] = {}
        for parameter in self.state.parameters.values():
            if parameter.grad is not None:
                alike.setdefault(type(parameter), []).append(parameter)
        norms = {
            str(kind): get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
            for kind, parameters in alike.items()
        }
        if self.state.sharded:
            norms = whole_tensors(norms)
        norm: torch.Tensor = torch.linalg.vector_norm(torch.stack(list(norms.values())))
        if highest_norm:
            for parameters in alike.values():
                clip_grads_with_norm_(parameters, highest_norm, norm)
        return norm

    def learning_rate_factor(self, step: int) -> float:
        """Factor on each group's highest learning rate at a step."""
        settings = self._settings
        total_steps = self._parts.plan.total_steps
        return learning_rate_factor(step, total_steps, settings.warmup_percent, settings.schedule)

    def _cut(self, batch: TrainBatch, step: int) -> list[Part]:
        """The parts of this worker's batch with their shares of the batch of all workers.

        All workers make equally many parts, since under FSDP2 each pass exchanges weights.
        """
        plan, worker = self._parts.plan, self._worker
        num_samples = len(batch.keys)
        num_all = plan.samples_in(step % plan.steps_per_epoch)
        fewest = num_all // worker.world_size or num_all
        bounds = even_parts(num_samples, min(self._settings.gradient_accumulation, fewest))
        if self._parts.count is None:
            share = share_of_batch(num_all, worker.rank, worker.world_size)
            return [Part(start, stop, share * (stop - start) / num_samples) for start, stop in bounds]
        counts = [self._parts.count(part_of(batch, start, stop)) for start, stop in bounds]
        total = torch.tensor(float(sum(counts)), dtype=torch.float64, device=worker.device)
        if worker.world_size > 1:
            dist.all_reduce(total)
        return [
            Part(start, stop, count / max(1.0, float(total)))
            for (start, stop), count in zip(bounds, counts, strict=True)
        ]
