"""The integer kernels that serve int8 layers on CPUs, chosen by measurement.

Measured on 2 cores of an AMD EPYC 9004 (AVX512-VNNI), torch 2.15, MiniLM, 32 captions of 17 tokens, against float:
  fbgemm, one scale for each row (served)      2.6x faster     one scale for the whole tensor    2.9x, cosine 0.978
  torch._int_mm with eager rounding            2.5x            _weight_int8pack_mm               10x slower
  torch.compile of torchao's int8              2.2x, after 30 to 60 s of compiling and only with a C++ compiler
  onednn.qlinear_pointwise with signed inputs  falls to a reference kernel, 1000x slower
Hence eager modules over fbgemm for Linear and over oneDNN for convolutions (3 to 4 times faster than float at batch
32): no compiler, no warm-up, and the artefact is plain int8 tensors.
Both accumulate pairs of products in 16 bits where the CPU lacks VNNI, and saturate; there, and on other devices, the
same arithmetic runs in float.
Left out on purpose: depthwise convolutions, whose int8 kernels are slower than float ones at batch 32.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from limbeck_runtime.quantization.integer_ops import ConvGeometry

_FLOAT_OUTPUT: tuple[Any, ...] = (1.0, 0, torch.float32, "none", [], None)


@dataclass(frozen=True)
class KernelSupport:
    """Whether integer kernels serve here, and if not, what it costs and how to avoid it."""

    integer: bool
    detail: str


@cache
def kernel_support() -> KernelSupport:
    """What serves int8 layers on this machine."""
    if not {"fbgemm", "x86"} & set(torch.backends.quantized.supported_engines):
        return KernelSupport(
            False, "this torch has no fbgemm: int8 layers compute in float, as fast as before; use x86"
        )
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return KernelSupport(False, "this torch has no oneDNN: int8 layers compute in float; install the usual wheel")
    if not torch.cpu._is_vnni_supported():
        return KernelSupport(
            False,
            "this CPU lacks VNNI: int8 layers compute in float, as fast as before; run on a CPU with AVX512-VNNI",
        )
    return KernelSupport(True, "fbgemm and oneDNN int8 kernels")


def pack_linear(weight_int8_NK: torch.Tensor, scale_N: torch.Tensor, bias_N: torch.Tensor | None) -> Any:
    """The weight in fbgemm's own layout."""
    zero_points_N = torch.zeros_like(scale_N, dtype=torch.long)
    quantized = torch._make_per_channel_quantized_tensor(weight_int8_NK, scale_N.double(), zero_points_N, 0)
    return torch.ops.quantized.linear_prepack(quantized, bias_N)


def run_linear(x: torch.Tensor, scale: float, zero_point: int, packed: Any) -> torch.Tensor:
    """Round float inputs, multiply integers, give float outputs, all in one kernel; (..., K) to (..., N)."""
    output: torch.Tensor = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
        x, scale, zero_point, packed
    )
    return output


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
    quantized: Any = torch.quantize_per_tensor  # typed without its form for numbers
    rounded = quantized(x, scale, zero_point, torch.quint8).int_repr()
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
