"""How many operations an int8 kernel does, for torch's counter: as many as the float layer it stands for.

Each formula gets the shapes of a call's tensors in their places, and counts a multiply-accumulate as two.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch

Formula = Callable[..., int]


def linear(x_shape: Any, *_rest: Any, out_shape: Any = None, **_options: Any) -> int:
    """(..., K) to (..., N)."""
    return int(2 * prod(out_shape) * x_shape[-1])


def matrix_product(x_shape: Any, weight_shape: Any, *_rest: Any, out_shape: Any = None, **_options: Any) -> int:
    """(M, K) times (K, N)."""
    return int(2 * prod(out_shape) * x_shape[-1])


def packed_convolution(
    x_shape: Any, _scale: Any, _zero: Any, weight_shape: Any, *_rest: Any, out_shape: Any = None, **_options: Any
) -> int:
    """oneDNN's convolution; of its weight only the number of elements is sure."""
    return int(2 * prod(weight_shape) * prod(out_shape) // out_shape[1])


def convolution(x_shape: Any, weight_shape: Any, *_rest: Any, out_shape: Any = None, **_options: Any) -> int:
    """(B, I, ...) to (B, O, ...): each output element sums over a filter."""
    return int(2 * prod(weight_shape[1:]) * prod(out_shape))


FLOP_FORMULAS: dict[Any, Formula] = {
    torch.ops.aten._int_mm: matrix_product,
    torch.ops.onednn.qconv_pointwise: packed_convolution,
    torch.ops.limbeck.int8_linear: linear,
    torch.ops.limbeck.int8_conv: convolution,
}
