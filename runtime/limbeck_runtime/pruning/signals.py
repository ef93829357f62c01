"""What data says about weights: gradients of a loss, and the size of what layers read. Collected batch by batch.

The loss is the task's own on the data's labels or pairs. Text embeddings have none: there the outputs times random
signs stand for it, whose squared gradients estimate how much each weight moves the embedding (the diagonal of J'J).
Left out on purpose: what scores are made of this (scores.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from limbeck_runtime.pruning.attention import is_transposed

Inputs = Mapping[str, Tensor]
# (outputs of the module, place of the batch) -> a scalar.
Loss = Callable[[Mapping[str, Tensor], int], Tensor]


def each_gradient(module: nn.Module, names: Sequence[str], batches: Sequence[Inputs], loss: Loss) -> Iterator[None]:
    """Yields after each batch's backward pass, while `grad` of the named parameters holds this batch's gradient.

    Other parameters get no gradient; the module is left as it was, in eval mode.
    """
    wanted = set(names)
    before = {name: parameter.requires_grad for name, parameter in module.named_parameters()}
    module.eval()
    try:
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name in wanted)
        for place, batch in enumerate(batches):
            module.zero_grad(set_to_none=True)
            with torch.enable_grad():
                torch.autograd.backward(loss(module(dict(batch)), place))
            yield
    finally:
        module.zero_grad(set_to_none=True)
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(before[name])


def signed_outputs(seed: int) -> Loss:
    """The loss for models whose data has no labels: outputs times random signs, the same for the same batch."""

    def loss(outputs: Mapping[str, Tensor], place: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + place)
        total = torch.zeros(())
        for name in sorted(outputs):
            value = outputs[name]
            if value.requires_grad and value.dim() > 1:
                signs = torch.randint(0, 2, value.shape, generator=generator).to(value) * 2 - 1
                total = total + (value * signs).sum() / len(value)
        return total

    return loss


def input_norms(module: nn.Module, paths: Sequence[str], batches: Sequence[Inputs]) -> dict[str, Tensor]:
    """Path of a linear or convolutional layer -> the L2 norm of each of its input channels over all that it read.

    Wanda's second factor (Sun et al., 2024). A layer that nothing reached has norms of zero.
    """
    sums: dict[str, Tensor] = {}
    with _reading(module, paths, sums), torch.no_grad():
        module.eval()
        for batch in batches:
            module(dict(batch))
    return {path: total.sqrt() for path, total in sums.items()}


@contextmanager
def _reading(module: nn.Module, paths: Sequence[str], sums: dict[str, Tensor]) -> Iterator[None]:
    handles = []
    for path in paths:
        layer: Any = module.get_submodule(path)
        is_conv = isinstance(layer, nn.modules.conv._ConvNd)
        num = layer.in_channels if is_conv else layer.weight.shape[0 if is_transposed(layer) else 1]
        sums[path] = torch.zeros(num, dtype=torch.float64)

        def add(_layer: nn.Module, arguments: Any, path: str = path, dim: int = 1 if is_conv else -1) -> None:
            value = arguments[0].detach().double()
            sums[path] += value.square().movedim(dim, 0).reshape(value.shape[dim], -1).sum(1).cpu()

        handles.append(layer.register_forward_pre_hook(add))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
