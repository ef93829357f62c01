"""The arithmetic of int8: scales, rounding and back. Pure tensor functions.

Weights are symmetric with one scale for each output channel (Linear, Conv) or row (Embedding):
w = q * s with q in -127..127. Inputs are asymmetric: x = (q - z) * s with q in 0..255, so that 0 is exact.
Shapes: O output channels, R the rest of a weight, M rows (samples times tokens), K input channels.
Left out on purpose: per-tensor weight scales, which lose MiniLM's quality (cosine 0.91), and -128, which some
kernels cannot negate.
"""

from __future__ import annotations

import torch

WEIGHT_MAX = 127
INPUT_MAX = 255
# Where all of a row is zero any scale will do; it must only not be zero.
TINY = 1e-10


def channel_scales(weight_OR: torch.Tensor) -> torch.Tensor:
    """Largest magnitude of each output channel over 127, float32 (O,); 1 for a channel of zeros."""
    largest_O = weight_OR.detach().float().abs().flatten(1).amax(1)
    return torch.where(largest_O > 0, largest_O / WEIGHT_MAX, torch.ones_like(largest_O))


def quantize_weight(weight_OR: torch.Tensor, scale_O: torch.Tensor) -> torch.Tensor:
    """Nearest integers, ties to even, int8 in the weight's shape."""
    scaled_OR = weight_OR.detach().float() / _over_channels(scale_O, weight_OR)
    return scaled_OR.round().clamp(-WEIGHT_MAX, WEIGHT_MAX).to(torch.int8)


def dequantize_weight(weight_int8_OR: torch.Tensor, scale_O: torch.Tensor) -> torch.Tensor:
    """The float weight that the integers stand for."""
    return weight_int8_OR.to(scale_O.dtype) * _over_channels(scale_O, weight_int8_OR)


def _over_channels(scale_O: torch.Tensor, weight_OR: torch.Tensor) -> torch.Tensor:
    return scale_O.reshape(-1, *[1] * (weight_OR.ndim - 1))


def affine_range(low: float, high: float) -> tuple[float, int]:
    """Scale and zero point that cover low..high and zero."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / INPUT_MAX
    if scale <= TINY:
        return 1.0, 0
    return scale, min(INPUT_MAX, max(0, round(-low / scale)))


def affine_range_of(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same for all of a tensor: scale, and zero point int32, both 0-dim."""
    low, high = torch.aminmax(x)
    low, high = low.clamp_max(0), high.clamp_min(0)
    scale = ((high - low) / INPUT_MAX).clamp_min(TINY)
    return scale, (-low / scale).round().clamp(0, INPUT_MAX).to(torch.int32)


def row_scales(x_MK: torch.Tensor, zero_point: int) -> torch.Tensor:
    """The smallest scale of each row at which all of it fits around `zero_point` (1..254), (M, 1)."""
    # amax and amin apart: aminmax over a dimension is 30 times slower on CPUs (torch 2.15).
    high_M1 = x_MK.amax(-1, keepdim=True)
    low_M1 = x_MK.amin(-1, keepdim=True)
    return torch.maximum(high_M1.div_(INPUT_MAX - zero_point), low_M1.div_(-zero_point)).clamp_min_(TINY)


def rounded_input(x: torch.Tensor, scale: float | torch.Tensor, zero_point: int | torch.Tensor) -> torch.Tensor:
    """q - z as a float tensor: what the integer kernels multiply with the weight's integers."""
    return (x / scale).round().add(zero_point).clamp(0, INPUT_MAX).sub(zero_point)
