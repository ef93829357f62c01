"""Int8 layers as single operations: `limbeck::int8_linear` and `limbeck::int8_conv`.

An exported graph keeps each as one node, which limbeck_runtime.export translates; run directly they do the integer
kernels' arithmetic in float, for devices without such kernels and as the reference in tests.
Left out on purpose: embeddings, which are plain gathers, and gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from limbeck_runtime.quantization.rounding import affine_range_of, dequantize_weight, rounded_input, row_scales

# The values of limbeck.api's Activations, which an operation's schema can only take as texts.
_NONE, _DYNAMIC = "None", "Dynamic"


@dataclass(frozen=True)
class ConvGeometry:
    """What a convolution does, in tuples as long as it has dimensions."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def as_arguments(self) -> tuple[list[int], list[int], list[int], int]:
        """In the order of torch's operations."""
        return list(self.stride), list(self.padding), list(self.dilation), self.groups


def convolve(
    x: torch.Tensor, weight: torch.Tensor, bias_O: torch.Tensor | None, geometry: ConvGeometry
) -> torch.Tensor:
    """Float convolution of the weight's number of dimensions."""
    output: torch.Tensor = _CONVOLUTIONS[weight.ndim](x, weight, bias_O, *geometry.as_arguments())
    return output


_CONVOLUTIONS: dict[int, Any] = {3: functional.conv1d, 4: functional.conv2d, 5: functional.conv3d}


@torch.library.custom_op("limbeck::int8_linear", mutates_args=())
def int8_linear(
    x: torch.Tensor,
    weight_int8: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None,
    activations: str,
    input_scale: float,
    zero_point: int,
    float_channels: Sequence[int],
) -> torch.Tensor:
    """(..., K) to (..., N); see layers.Int8Linear."""
    if activations == _NONE:
        return functional.linear(x, dequantize_weight(weight_int8, weight_scale), bias)
    channels = torch.tensor(list(float_channels), dtype=torch.long, device=x.device)
    others = x.index_fill(-1, channels, 0.0)
    scale = row_scales(others, zero_point) if activations == _DYNAMIC else input_scale
    integers = rounded_input(others, scale, zero_point)
    output = functional.linear(integers, weight_int8.to(x.dtype)) * scale * weight_scale
    weight_NF = dequantize_weight(weight_int8[:, channels], weight_scale)
    return output + functional.linear(x[..., channels], weight_NF, bias)


@int8_linear.register_fake
def _(
    x: torch.Tensor,
    weight_int8: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None,
    activations: str,
    input_scale: float,
    zero_point: int,
    float_channels: Sequence[int],
) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], weight_int8.shape[0]))


@torch.library.custom_op("limbeck::int8_conv", mutates_args=())
def int8_conv(
    x: torch.Tensor,
    weight_int8: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    activations: str,
    input_scale: float,
    zero_point: int,
    output_scale: float,
    output_zero_point: int,
) -> torch.Tensor:
    """(B, I, ...) to (B, O, ...); see layers.Int8Conv.

    The output's range is for graphs that round the outputs too; here they stay as they are."""
    geometry = ConvGeometry(tuple(stride), tuple(padding), tuple(dilation), groups)
    if activations != _NONE:
        range_: tuple[Any, Any] = affine_range_of(x) if activations == _DYNAMIC else (input_scale, zero_point)
        x = rounded_input(x, *range_) * range_[0]
    return convolve(x, dequantize_weight(weight_int8, weight_scale), bias, geometry)


@int8_conv.register_fake
def _(
    x: torch.Tensor,
    weight_int8: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    activations: str,
    input_scale: float,
    zero_point: int,
    output_scale: float,
    output_zero_point: int,
) -> torch.Tensor:
    geometry = ConvGeometry(tuple(stride), tuple(padding), tuple(dilation), groups)
    return convolve(x, weight_int8.to(x.dtype), bias, geometry)
