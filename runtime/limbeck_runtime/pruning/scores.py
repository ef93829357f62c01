"""How much each weight or unit counts, by the criterion that was asked for. What scores least goes first.

    L1, L2     |w|, w^2; of a unit the sum over all weights that go with it (Li et al., 2017)
    Taylor     |g w|, the first-order change of the loss; of a unit the same for its sum over what reads it, which is
               what removing it does (Molchanov et al., 2019). Mean over batches
    Fisher     (g w)^2 / 2, the second-order change with the empirical Fisher matrix (Theis et al., 2018)
    Wanda      |w| times the norm of what the weight reads (Sun et al., 2024)
    Random     uniform, as a control

Scores of units are divided by their space's mean, so that spaces can be ranked together.
Left out on purpose: SparseGPT's update of what stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from limbeck.api.v1alpha1.compression import Criterion
from limbeck_runtime.pruning.attention import is_transposed
from limbeck_runtime.pruning.cutting import named_tensors
from limbeck_runtime.pruning.signals import Inputs, Loss, each_gradient, input_norms
from limbeck_runtime.pruning.spaces import Role, Slice, Space, unit_sums

GRADIENTS = (Criterion.TAYLOR, Criterion.FISHER)
NEEDS_DATA = (*GRADIENTS, Criterion.WANDA)


@dataclass(frozen=True)
class Evidence:
    """What criteria may ask: batches of inputs, the loss of a batch, a seed."""

    batches: Sequence[Inputs] = field(default_factory=tuple)
    loss: Loss | None = None
    seed: int = 0


def unit_scores(
    module: nn.Module, spaces: Sequence[Space], criterion: Criterion, evidence: Evidence
) -> dict[Space, Tensor]:
    """(U,) float64 for each space, of mean 1."""
    if criterion is Criterion.RANDOM:
        generator = torch.Generator().manual_seed(evidence.seed)
        return {space: torch.rand(space.num_units, generator=generator, dtype=torch.float64) for space in spaces}
    if criterion in GRADIENTS:
        raw = _by_gradient(module, spaces, criterion, evidence)
    elif criterion is Criterion.WANDA:
        raw = _by_inputs(module, spaces, evidence)
    else:
        raw = _by_magnitude(module, spaces, criterion)
    return {space: scores / scores.mean().clamp(min=1e-30) for space, scores in raw.items()}


def weight_scores(
    module: nn.Module, names: Sequence[str], criterion: Criterion, evidence: Evidence
) -> dict[str, Tensor]:
    """A score for each entry of the named weights, in their shape."""
    tensors = named_tensors(module)
    if criterion is Criterion.RANDOM:
        generator = torch.Generator().manual_seed(evidence.seed)
        return {name: torch.rand(tensors[name].shape, generator=generator) for name in names}
    if criterion is Criterion.WANDA:
        paths = [name.rpartition(".")[0] for name in names]
        norms = input_norms(module, paths, evidence.batches)
        return {
            name: tensors[name].detach().abs() * _along_inputs(module, path, norms[path], tensors[name])
            for name, path in zip(names, paths, strict=True)
        }
    if criterion in GRADIENTS:
        sums = {name: torch.zeros_like(tensors[name], requires_grad=False) for name in names}
        assert evidence.loss is not None
        for _ in each_gradient(module, names, evidence.batches, evidence.loss):
            for name, total in sums.items():
                total += _change(_times_gradient(tensors[name]), criterion)
        return {name: total / max(1, len(evidence.batches)) for name, total in sums.items()}
    power = 1 if criterion is Criterion.L1 else 2
    return {name: tensors[name].detach().abs().pow(power) for name in names}


def _by_magnitude(module: nn.Module, spaces: Sequence[Space], criterion: Criterion) -> dict[Space, Tensor]:
    tensors = named_tensors(module)
    power = 1 if criterion is Criterion.L1 else 2
    return {
        space: unit_sums(
            space,
            lambda name: tensors[name].detach().abs().pow(power),
            [piece for piece in space.slices if piece.is_weight],
        )
        for space in spaces
    }


def _by_gradient(
    module: nn.Module, spaces: Sequence[Space], criterion: Criterion, evidence: Evidence
) -> dict[Space, Tensor]:
    tensors = named_tensors(module)
    names = {name for space in spaces for name in _asked(space)}
    sums = {space: torch.zeros(space.num_units, dtype=torch.float64) for space in spaces}
    assert evidence.loss is not None
    for _ in each_gradient(module, sorted(names), evidence.batches, evidence.loss):
        products = {name: _times_gradient(tensors[name]) for name in names}
        for space in spaces:
            sums[space] += _change(unit_sums(space, products.__getitem__, _reading(space)), criterion)
    return {space: total / max(1, len(evidence.batches)) for space, total in sums.items()}


def _by_inputs(module: nn.Module, spaces: Sequence[Space], evidence: Evidence) -> dict[Space, Tensor]:
    tensors = named_tensors(module)
    names = {name for space in spaces for name in _asked(space) if _reads_inputs(module, name)}
    norms = input_norms(module, sorted({name.rpartition(".")[0] for name in names}), evidence.batches)

    def values(name: str) -> Tensor:
        path, weight = name.rpartition(".")[0], tensors[name].detach()
        if name not in names:  # a block's embeddings or tables, which read no features
            return torch.zeros_like(weight)
        return weight.abs() * _along_inputs(module, path, norms[path], weight)

    return {space: unit_sums(space, values, _reading(space)) for space in spaces}


def _reads_inputs(module: nn.Module, name: str) -> bool:
    layer = module.get_submodule(name.rpartition(".")[0])
    return isinstance(layer, nn.Linear | nn.modules.conv._ConvNd) or is_transposed(layer)


def _asked(space: Space) -> list[str]:
    """Tensors whose gradients or inputs say how much the space's units count."""
    if space.blocks:
        return [name for names in space.blocks for name in names]
    return [piece.tensor for piece in _reading(space)]


def _reading(space: Space) -> list[Slice]:
    return [piece for piece in space.slices if piece.role is Role.READS]


def _along_inputs(module: nn.Module, path: str, norms_I: Tensor, weight: Tensor) -> Tensor:
    """The norms in a shape that multiplies the weight along its input channels."""
    layer = module.get_submodule(path)
    norms_I = norms_I.to(weight)
    if is_transposed(layer) or getattr(layer, "transposed", False):
        return norms_I.reshape(-1, *[1] * (weight.dim() - 1))
    groups = getattr(layer, "groups", 1)
    if groups == 1:
        return norms_I.reshape(1, -1, *[1] * (weight.dim() - 2))
    # Each output channel reads the inputs of its own group.
    by_output = norms_I.reshape(groups, -1).repeat_interleave(weight.shape[0] // groups, dim=0)
    return by_output.reshape(*by_output.shape, *[1] * (weight.dim() - 2))


def _times_gradient(tensor: Tensor) -> Tensor:
    gradient = tensor.grad
    return torch.zeros_like(tensor, requires_grad=False) if gradient is None else tensor.detach() * gradient


def _change(product: Tensor, criterion: Criterion) -> Tensor:
    return product.abs() if criterion is Criterion.TAYLOR else product.square() / 2
