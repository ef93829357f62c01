"""The integer kernels that serve int8 layers on CPUs, chosen by measurement.

Measured on 2 cores of an AMD EPYC 9004 (AVX512-VNNI), torch 2.15, MiniLM, 32 captions of 17 tokens, against float:
  torch._int_mm between eager rounding (served)   2.6x faster   fbgemm's linear_dynamic, one scale for all   2.9x
  fbgemm with our scales for rows                 2.5x          torch._weight_int8pack_mm                    0.1x
  torch.compile of torchao's int8                 2.2x, after a minute of compiling and only with a C++ compiler
  onednn.qlinear_pointwise, uint8 inputs          2x            with int8 inputs a reference kernel, 1000x slower
One scale for all inputs costs MiniLM 0.02 of cosine; fbgemm wants torch's quantized tensors, which are deprecated, and
a second copy of each weight. torch._int_mm is what torchao stands on too; it takes the plain int8 weight as stored.
Convolutions go to oneDNN's qconv_pointwise, on plain uint8 inputs: 3 to 4 times faster than float at batch 32.
Both add pairs of products in 16 bits where the CPU lacks VNNI, and saturate; there, and on other devices, the same
arithmetic runs in float.
Left out on purpose: depthwise convolutions, whose int8 kernels are slower than float ones at batch 32.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from limbeck_runtime.quantization.integer_ops import ConvGeometry
from limbeck_runtime.quantization.rounding import INPUT_MAX

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


def rounded_to_uint8(
    x: torch.Tensor, scale: float | torch.Tensor, zero_point: int | torch.Tensor, *, fits: bool = False
) -> torch.Tensor:
    """x / scale + zero_point to the nearest of 0..255; `fits` where nothing can lie outside."""
    # Two passes over the numbers: cutting off what follows the point, after adding a half, rounds.
    inverse = torch.as_tensor(1 / scale, dtype=x.dtype)
    offset = torch.as_tensor(zero_point + 0.5, dtype=x.dtype)
    shifted = torch.addcmul(offset, x, inverse)
    return (shifted if fits else shifted.clamp_(0, INPUT_MAX)).to(torch.uint8)


def zero_point_terms(weight_int8_NK: torch.Tensor, zero_point: int) -> torch.Tensor:
    """What the zero point adds to each output's sum of products, to be taken off again, float32 (N,)."""
    return (weight_int8_NK.sum(1, dtype=torch.int64) * zero_point).to(torch.float32)


def integer_product(rounded: torch.Tensor, weight_int8_NK: torch.Tensor) -> torch.Tensor:
    """uint8 (..., K) times int8 (N, K) summed exactly, then to float32 (..., N)."""
    sums_MN = torch._int_mm(rounded.reshape(-1, rounded.shape[-1]), weight_int8_NK.t())
    return sums_MN.to(torch.float32).view(*rounded.shape[:-1], weight_int8_NK.shape[0])


def pack_conv(weight_int8: torch.Tensor, scale_O: torch.Tensor, geometry: ConvGeometry) -> torch.Tensor:
    """The weight in oneDNN's own layout, for any scale and zero point of the inputs."""
    # The layout depends on whether there is a zero point, not on which: 1 stands for all.
    packed: torch.Tensor = torch.ops.onednn.qconv_prepack(weight_int8, scale_O, 1.0, 1, *geometry.as_arguments(), None)
    return packed


def run_conv(
    x: torch.Tensor,
    scale: float | torch.Tensor,
    zero_point: int | torch.Tensor,
    packed: torch.Tensor,
    scale_O: torch.Tensor,
    bias_O: torch.Tensor | None,
    geometry: ConvGeometry,
) -> torch.Tensor:
    """Convolve rounded inputs; (B, I, ...) float to (B, O, ...) float; a `zero_point` tensor is 0-dim int32."""
    if x.ndim == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    rounded = rounded_to_uint8(x, scale, zero_point)
    zero_points_O = torch.zeros_like(scale_O, dtype=torch.int32)
    output: torch.Tensor = torch.ops.onednn.qconv_pointwise(
        rounded,
        scale,
        zero_point,
        packed,
        scale_O,
        zero_points_O,
        bias_O,
        *geometry.as_arguments(),
        *_FLOAT_OUTPUT,
    )
    return output
