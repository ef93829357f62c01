"""The integer kernels that serve int8 layers on CPUs, chosen by measurement (torch 2.15, AMD EPYC 9004, AVX512-VNNI).

MiniLM, 32 captions of 17 tokens, one thread, float 130 ms:
  torch._int_mm between eager rounding, a scale for each row    47 ms   served
  fbgemm's product with the same scales                         50 ms   torch's quantized tensors, deprecated in 2.15
  fbgemm's linear_dynamic, one scale for the whole input        45 ms   0.02 of cosine worse, depends on the batch
For one product of 16 rows, 384 by 1536, float 0.45 ms: _weight_int8pack_mm takes 14 ms, onednn.qlinear_pointwise with
int8 inputs (uint8 ones are fast) 300 ms. torch._int_mm is what torchao stands on too; it takes the weight as it is
stored, without a second copy.
Convolutions go to oneDNN's qconv_pointwise on uint8 inputs: 3 to 4 times faster than float at batch 32, and faster
than fbgemm's where there are few input channels; depthwise ones are slower than float and keep float inputs.
Both add pairs of products in 16 bits where the CPU lacks VNNI, and saturate; there, and on other devices, the same
arithmetic runs in float.
Left out on purpose: torch.compile, which wants a C++ compiler where the model is served, and its time at each start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from limbeck_runtime.quantization.integer_ops import ConvGeometry
from limbeck_runtime.quantization.rounding import INPUT_MAX, TINY, affine_range

_FLOAT_OUTPUT: tuple[Any, ...] = (1.0, 0, torch.float32, "none", [], None)


@dataclass(frozen=True)
class KernelSupport:
    """Whether integer kernels serve here, and if not, what it costs and how to avoid it."""

    integer: bool
    detail: str


@cache
def kernel_support() -> KernelSupport:
    """What serves int8 layers on this machine."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return KernelSupport(False, "this torch has no oneDNN: int8 layers compute in float; install the usual wheel")
    if not torch.cpu._is_vnni_supported():
        return KernelSupport(
            False,
            "this CPU lacks VNNI: int8 layers compute in float, as fast as before; run on a CPU with AVX512-VNNI",
        )
    return KernelSupport(True, "oneDNN's int8 kernels")


@dataclass(frozen=True)
class FloatPart:
    """The few input channels that are multiplied in float, and the others."""

    channels: torch.Tensor  # (F,)
    weight: torch.Tensor  # (F, N)
    others: torch.Tensor  # (K,), 0 at the channels, else 1


def float_part(weight_NK: torch.Tensor, channels: Sequence[int]) -> FloatPart:
    """From the layer's weight in float."""
    index_F = torch.tensor(channels)
    others_K = torch.ones(weight_NK.shape[1]).index_fill_(0, index_F, 0.0)
    return FloatPart(index_F, weight_NK[:, index_F].t().contiguous(), others_K)


@dataclass(frozen=True)
class LinearConstants:
    """What a linear layer's kernel wants beside the input, computed once.

    `offset` () is the zero point and a half: cutting off what follows the point then rounds. `correction` takes the
    zero point's part off each output's sum of products; with one scale for all inputs the bias is in it.
    """

    weight: torch.Tensor  # (K, N)
    scale: torch.Tensor  # (N,)
    correction: torch.Tensor  # (N,)
    offset: torch.Tensor
    float_part: FloatPart | None


def linear_constants(
    weight_int8_NK: torch.Tensor,
    scale_N: torch.Tensor,
    bias_N: torch.Tensor | None,
    zero_point: int,
    float_part: FloatPart | None,
) -> LinearConstants:
    """`scale_N` is the weight's times whatever all inputs share."""
    sums_N = weight_int8_NK.sum(1, dtype=torch.int64)
    correction_N = -scale_N * (sums_N * zero_point).to(torch.float32)
    if bias_N is not None:
        correction_N = correction_N + bias_N
    offset = torch.tensor(zero_point + 0.5)
    return LinearConstants(weight_int8_NK.t(), scale_N, correction_N, offset, float_part)


def dynamic_linear(
    x: torch.Tensor, constants: LinearConstants, bias_N: torch.Tensor | None, zero_point: int
) -> torch.Tensor:
    """(..., K) to (..., N), a scale for each row; `constants` hold the weight's scale over 255 - zero_point."""
    x_MK = x.detach().flatten(0, -2)
    added = bias_N
    if (part := constants.float_part) is not None:
        kept_MF = x_MK.index_select(1, part.channels)
        added = kept_MF @ part.weight if bias_N is None else torch.addmm(bias_N, kept_MF, part.weight)
        x_MK = x_MK * part.others
    top = INPUT_MAX - zero_point
    # The scale of a row times `top`. amax and amin apart: aminmax over a dimension is 30 times slower (torch 2.15).
    low_M1 = x_MK.amin(1, keepdim=True).mul_(-top / zero_point)
    reach_M1 = torch.maximum(x_MK.amax(1, keepdim=True), low_M1).clamp_min_(TINY)
    rounded_MK = torch.addcmul(constants.offset, x_MK, reach_M1.reciprocal(), value=top).to(torch.uint8)
    output_MN = _integer_product(rounded_MK, constants)
    if added is None:
        output_MN.mul_(reach_M1)
    else:
        torch.addcmul(added, output_MN, reach_M1, out=output_MN)
    return output_MN.view(*x.shape[:-1], -1)


def static_linear(x: torch.Tensor, constants: LinearConstants, input_scale: float) -> torch.Tensor:
    """(..., K) to (..., N), one scale for all; `constants` hold the weight's scale times `input_scale`."""
    x_MK = x.detach().flatten(0, -2)
    kept_MF = None
    if (part := constants.float_part) is not None:
        kept_MF = x_MK.index_select(1, part.channels)
        x_MK = x_MK * part.others
    rounded_MK = torch.add(constants.offset, x_MK, alpha=1 / input_scale).clamp_(0, INPUT_MAX).to(torch.uint8)
    output_MN = _integer_product(rounded_MK, constants)
    if part is not None and kept_MF is not None:
        output_MN.addmm_(kept_MF, part.weight)
    return output_MN.view(*x.shape[:-1], -1)


def _integer_product(rounded_MK: torch.Tensor, constants: LinearConstants) -> torch.Tensor:
    sums_MN = torch._int_mm(rounded_MK, constants.weight).to(torch.float32)
    return torch.addcmul(constants.correction, sums_MN, constants.scale, out=sums_MN)


@dataclass(frozen=True)
class ConvConstants:
    """What a convolution's kernel wants beside the input, computed once: the weight in oneDNN's own layout."""

    packed: torch.Tensor
    scale: torch.Tensor  # (O,)
    zero_points: torch.Tensor  # (O,)
    bias: torch.Tensor | None  # (O,)
    geometry: ConvGeometry


def conv_constants(
    weight_int8: torch.Tensor, scale_O: torch.Tensor, bias_O: torch.Tensor | None, geometry: ConvGeometry
) -> ConvConstants:
    """For inputs of any scale and zero point."""
    # The layout depends on whether there is a zero point, not on which: 1 stands for all.
    packed = torch.ops.onednn.qconv_prepack(weight_int8, scale_O, 1.0, 1, *geometry.as_arguments(), None)
    return ConvConstants(packed, scale_O, torch.zeros_like(scale_O, dtype=torch.int32), bias_O, geometry)


def dynamic_conv(x: torch.Tensor, constants: ConvConstants) -> torch.Tensor:
    """(B, I, ...) to (B, O, ...), scale and zero point from the whole of `x`."""
    x = _channels_last(x)
    in_order = x.permute(0, 2, 3, 1) if x.ndim == 4 else x  # otherwise aminmax would copy
    low, high = torch.aminmax(in_order.flatten())
    return _integer_conv(x, constants, *affine_range(float(low), float(high)))


def static_conv(x: torch.Tensor, constants: ConvConstants, scale: float, zero_point: int) -> torch.Tensor:
    """(B, I, ...) to (B, O, ...), scale and zero point calibrated."""
    return _integer_conv(_channels_last(x), constants, scale, zero_point)


def _channels_last(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x.contiguous()


def _integer_conv(x: torch.Tensor, constants: ConvConstants, scale: float, zero_point: int) -> torch.Tensor:
    offset = torch.tensor(zero_point + 0.5)
    output: torch.Tensor = torch.ops.onednn.qconv_pointwise(
        torch.add(offset, x, alpha=1 / scale).clamp_(0, INPUT_MAX).to(torch.uint8),
        scale,
        zero_point,
        constants.packed,
        constants.scale,
        constants.zero_points,
        constants.bias,
        *constants.geometry.as_arguments(),
        *_FLOAT_OUTPUT,
    )
    return output
