"""A factorised layer: two thin layers of torch in a row, `first` into the rank and `second` out of it.

The factors are plain Linear and Conv layers, so training, pruning, quantization and export do with them what they do
with any other. Left out on purpose: grouped and transposed convolutions.

Shapes: K inputs (of a convolution input channels times kernel), R rank, N outputs.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from limbeck_runtime.quantization.selection import LayerKind, kind_of


class LowRankLinear(nn.Module):
    """(..., K) to (..., N) through R features."""

    def __init__(self, first_RK: nn.Linear, second_NR: nn.Linear) -> None:
        super().__init__()
        self.first = first_RK
        self.second = second_NR

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.second(self.first(x))
        return outputs

    @property
    def weight(self) -> torch.Tensor:
        """(N, K), the product, computed at each access: for networks that multiply with a layer's weight themselves."""
        return self.second.weight @ self.first.weight

    @property
    def bias(self) -> torch.Tensor | None:
        return self.second.bias

    @property
    def in_features(self) -> int:
        return self.first.in_features

    @property
    def out_features(self) -> int:
        return self.second.out_features


class LowRankConv(nn.Module):
    """A convolution into R channels with the original's kernel and geometry, then one over single points."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first: Any = first
        self.second: Any = second

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.second(self.first(x))
        return outputs

    @property
    def weight(self) -> torch.Tensor:
        """The first factor's: what networks ask a convolution's weight is its type and its device."""
        weight: torch.Tensor = self.first.weight
        return weight

    @property
    def bias(self) -> torch.Tensor | None:
        bias: torch.Tensor | None = self.second.bias
        return bias


LowRank = LowRankLinear | LowRankConv


def matrix_of(layer: Any) -> torch.Tensor:
    """(N, K): what a layer multiplies its inputs, or each patch of them, with; float64, apart from the layer."""
    if isinstance(layer, LowRank):
        return matrix_of(layer.second) @ matrix_of(layer.first)
    weight: torch.Tensor = layer.weight.detach().double()
    if kind_of(layer) is LayerKind.LINEAR and not isinstance(layer, nn.Linear):
        return weight.t().clone()  # GPT-2's linear layer
    return weight.reshape(len(weight), -1).clone()


def num_weights(layer: Any) -> int:
    """Entries of a layer's matrix or of its factors; biases stay as they are and do not count."""
    if isinstance(layer, LowRank):
        return num_weights(layer.first) + num_weights(layer.second)
    return int(layer.weight.numel())


def factorised(layer: Any, rank: int) -> LowRank:
    """A factorised layer of that rank in place of `layer`, its factors still to be filled; the bias is taken over."""
    source = layer.first if isinstance(layer, LowRank) else layer
    weight, bias = source.weight, layer.bias
    made = {"device": weight.device, "dtype": weight.dtype}
    new: LowRank
    if isinstance(source, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        kind: Any = type(source)
        outputs = layer.second.out_channels if isinstance(layer, LowRank) else source.out_channels
        pointwise = kind(rank, outputs, 1, bias=bias is not None, **made)
        new = LowRankConv(_conv_like(source, rank, bias=False), pointwise)
    else:
        outputs, inputs = matrix_shape(layer)
        new = LowRankLinear(
            nn.Linear(inputs, rank, bias=False, **made), nn.Linear(rank, outputs, bias=bias is not None, **made)
        )
    _take_over(new.second, bias)
    for parameter in (new.first.weight, new.second.weight):
        parameter.requires_grad_(weight.requires_grad)
    return new.train(layer.training)


def fill(layer: LowRank, first_RK: torch.Tensor, second_NR: torch.Tensor) -> None:
    """Put the factors in."""
    with torch.no_grad():
        layer.first.weight.copy_(first_RK.reshape(layer.first.weight.shape))
        layer.second.weight.copy_(second_NR.reshape(layer.second.weight.shape))


def merged(layer: LowRank) -> nn.Module:
    """One plain layer that does the same."""
    plain: Any
    if isinstance(layer, LowRankConv):
        plain = _conv_like(layer.first, layer.second.out_channels, bias=layer.bias is not None)
    else:
        made = {"device": layer.first.weight.device, "dtype": layer.first.weight.dtype}
        plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, **made)
    with torch.no_grad():
        plain.weight.copy_(matrix_of(layer).reshape(plain.weight.shape))
    plain.weight.requires_grad_(layer.first.weight.requires_grad)
    _take_over(plain, layer.bias)
    plain.train(layer.training)
    return cast(nn.Module, plain)


def matrix_shape(layer: Any) -> tuple[int, int]:
    """(N, K)."""
    if isinstance(layer, LowRank):
        return len(layer.second.weight), layer.first.weight[0].numel()
    if kind_of(layer) is LayerKind.LINEAR and not isinstance(layer, nn.Linear):
        return layer.weight.shape[1], layer.weight.shape[0]
    return len(layer.weight), layer.weight[0].numel()


def _conv_like(source: Any, outputs: int, *, bias: bool) -> Any:
    return type(source)(
        source.in_channels, outputs, source.kernel_size, stride=source.stride, padding=source.padding,
        dilation=source.dilation, bias=bias, padding_mode=source.padding_mode,
        device=source.weight.device, dtype=source.weight.dtype,
    )  # fmt: skip


def _take_over(layer: Any, bias: torch.Tensor | None) -> None:
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)
