"""Gradients of one batch, whole or in parts, on one worker or on several, with the same result.

Each worker weighs its part's mean loss by the part's share of the whole batch, times the number of workers,
because DDP and FSDP2 average gradients over workers. So uneven parts and uneven workers come out right.

A loss that compares samples with each other cannot be cut. For it, outputs of all parts are computed without
gradients, the loss gives the gradients of the outputs, and each part is computed again to carry them on (Gao et
al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", RepL4NLP 2021).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from limbeck.api.v1alpha1.training import Precision
from limbeck_runtime.student.parallel import gradients_shared
from limbeck_runtime.student.parts import Loss, TrainBatch, part_of

Terms = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Part:
    """Samples from `start` to `stop` of a worker's batch, and their share of the batch of all workers."""

    start: int
    stop: int
    share: float


@dataclass(frozen=True)
class GradientContext:
    """What is the same for all batches. `seed_part(i)` makes random numbers those of part i of this step."""

    shared: nn.Module
    loss: Loss
    world_size: int
    autocast: Callable[[], AbstractContextManager[None]]
    seed_part: Callable[[int], None]

    def forward(self, module: nn.Module, batch: TrainBatch) -> dict[str, torch.Tensor]:
        """Outputs in the run's precision; all but those for each token of a sample come as float32."""
        with self.autocast():
            outputs = module(dict(batch.inputs))
        return {name: _float32_if_small(output) for name, output in outputs.items()}


def even_parts(num_samples: int, num_parts: int) -> list[tuple[int, int]]:
    """(start, stop) of parts that differ by at most one sample; fewer parts where there are fewer samples."""
    num = min(num_parts, num_samples)
    return [(index * num_samples // num, (index + 1) * num_samples // num) for index in range(num)]


def gradients_by_part(context: GradientContext, batch: TrainBatch, parts: Sequence[Part]) -> Terms:
    """Add the batch's gradients to the parameters; return this worker's terms, weighted by its share."""
    sums: Terms = {}
    for index, part in enumerate(parts):
        context.seed_part(index)
        piece = batch if len(parts) == 1 else part_of(batch, part.start, part.stop)
        with gradients_shared(context.shared, enabled=index == len(parts) - 1):
            terms = context.loss(context.forward(context.shared, piece), piece)
            torch.autograd.backward(_sum(terms) * (part.share * context.world_size))
        _add(sums, terms, part.share)
    return sums


def gradients_of_coupled(
    context: GradientContext, module: nn.Module, batch: TrainBatch, parts: Sequence[Part]
) -> Terms:
    """The same for a loss that must see the whole batch; `module` is the one inside `context.shared`."""
    if len(parts) == 1:
        return gradients_by_part(context, batch, parts)
    pieces = [part_of(batch, part.start, part.stop) for part in parts]
    outputs_of_parts = []
    for index, piece in enumerate(pieces):
        context.seed_part(index)
        with torch.no_grad():
            outputs_of_parts.append(context.forward(module, piece))
    outputs = _joined(outputs_of_parts)
    share = sum(part.share for part in parts)
    terms = context.loss(outputs, batch)
    torch.autograd.backward(_sum(terms) * (share * context.world_size))
    for index, (piece, part) in enumerate(zip(pieces, parts, strict=True)):
        context.seed_part(index)
        with gradients_shared(context.shared, enabled=index == len(parts) - 1):
            again = context.forward(context.shared, piece)
            _carry_on(again, outputs, part, first=index == 0)
    sums: Terms = {}
    _add(sums, terms, share)
    return sums


def autocast_for(precision: Precision, device: torch.device) -> Callable[[], AbstractContextManager[None]]:
    """bfloat16 where asked, or on a GPU where the precision is automatic; float32 otherwise."""
    if precision is Precision.BFLOAT16 or (precision is Precision.AUTO and device.type == "cuda"):
        return lambda: torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext


def _float32_if_small(output: torch.Tensor) -> torch.Tensor:
    """Embeddings, class logits and scales: a loss in bfloat16 would be coarse. Token logits are left to the
    losses, which upcast them a chunk at a time.
    """
    is_half = output.dtype in (torch.bfloat16, torch.float16)
    return output.float() if is_half and output.dim() <= 2 else output


def _sum(terms: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return torch.stack([_at_least_float32(term) for term in terms.values()]).sum()


def _at_least_float32(value: torch.Tensor) -> torch.Tensor:
    return value.to(torch.promote_types(value.dtype, torch.float32))


def _add(sums: Terms, terms: Mapping[str, torch.Tensor], share: float) -> None:
    for name, term in terms.items():
        weighted = _at_least_float32(term.detach()) * share
        sums[name] = sums[name] + weighted if name in sums else weighted


def _joined(outputs_of_parts: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Outputs of the whole batch as leaves of a new graph; an output without samples (a scale) is all parts'."""
    joined = {}
    for name, first in outputs_of_parts[0].items():
        whole = torch.cat([outputs[name] for outputs in outputs_of_parts]) if first.dim() else first
        joined[name] = whole.requires_grad_(whole.is_floating_point())
    return joined


def _carry_on(
    again: Mapping[str, torch.Tensor], outputs: Mapping[str, torch.Tensor], part: Part, *, first: bool
) -> None:
    """Backward through one part from the gradients of its outputs."""
    tensors, gradients = [], []
    for name, tensor in again.items():
        whole = outputs[name].grad
        if whole is None or not tensor.requires_grad:
            continue
        of_no_sample = whole if first else torch.zeros_like(whole)
        tensors.append(tensor)
        gradients.append(whole[part.start : part.stop] if tensor.dim() else of_no_sample)
    torch.autograd.backward(tensors, gradients)
