"""What calibration learns from one pass over samples: smoothing factors, ranges and zero points.

Shapes: M rows (samples times tokens), K input channels, N output channels.
Left out on purpose: choosing the layers (selection.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from limbeck.api.v1alpha1.compression import Activations, Calibration
from limbeck_runtime.quantization.layers import InputRounding
from limbeck_runtime.quantization.observers import RowObserver, ValueObserver
from limbeck_runtime.quantization.ranges import CALIBRATIONS, SeenValues, row_zero_point
from limbeck_runtime.quantization.rounding import (
    TINY,
    affine_range,
    channel_scales,
    dequantize_weight,
    quantize_weight,
    rounded_input,
    row_scales,
)
from limbeck_runtime.quantization.selection import LayerKind

Inputs = Mapping[str, torch.Tensor]
Progress = Callable[[int, int], None]

# How the spread of a channel is shared between inputs and weights: half each (SmoothQuant's alpha).
SMOOTHING = 0.5
_SMALLEST = 1e-5
# Rows on which a layer is tried with smoothing and without.
_MAX_COMPARED_ROWS = 256


@dataclass
class Observed:
    """What was seen of the layers that a batch has reached, by path."""

    rows: dict[str, RowObserver] = field(default_factory=dict)
    inputs: dict[str, ValueObserver] = field(default_factory=dict)
    outputs: dict[str, ValueObserver] = field(default_factory=dict)


def observe(
    module: nn.Module,
    layers: Mapping[str, LayerKind],
    batches: Sequence[Inputs],
    progress: Progress | None = None,
) -> Observed:
    """Run `module` over `batches` and watch `layers`: linear ones by rows, convolutions at both ends."""
    observed = Observed()
    with _watching(module, layers, observed), torch.inference_mode():
        for done, inputs in enumerate(batches, start=1):
            module(inputs)
            if progress is not None:
                progress(done, len(batches))
    return observed


@contextmanager
def _watching(module: nn.Module, layers: Mapping[str, LayerKind], observed: Observed) -> Iterator[None]:
    def look(path: str, kind: LayerKind, _layer: nn.Module, arguments: Sequence[Any], output: torch.Tensor) -> None:
        if kind is LayerKind.LINEAR:
            observed.rows.setdefault(path, RowObserver()).see(arguments[0])
        else:
            observed.inputs.setdefault(path, ValueObserver()).see(arguments[0])
            observed.outputs.setdefault(path, ValueObserver()).see(output)

    handles = [
        module.get_submodule(path).register_forward_hook(partial(look, path, kind)) for path, kind in layers.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class LinearCalibration:
    """How one linear layer rounds its inputs, and its smoothing factor (K,) where it has one."""

    rounding: InputRounding
    factor: torch.Tensor | None = None


def calibrate_linear(
    observer: RowObserver, weight_NK: torch.Tensor, activations: Activations, calibration: Calibration, *, smooth: bool
) -> LinearCalibration:
    """The range or zero point for what was seen; smoothed where `smooth` allows it and that lowers the error.

    Smoothing is not always for the better: where the large inputs are few and scattered, as after an activation
    function, it spreads them over the weights of all. On MiniLM choosing lowers the worst cosine's loss by half.
    """
    plain = LinearCalibration(_linear_rounding(observer, None, activations, calibration))
    if not smooth:
        return plain
    factor_K = smoothing_factor(observer.largest(), weight_NK)
    smoothed = LinearCalibration(_linear_rounding(observer, factor_K, activations, calibration), factor_K)
    rows_MK = observer.rows(None)[:_MAX_COMPARED_ROWS]
    return min(plain, smoothed, key=lambda candidate: _relative_error(rows_MK, weight_NK, candidate))


def smoothing_factor(largest_K: torch.Tensor, weight_NK: torch.Tensor) -> torch.Tensor:
    """What to multiply inputs with, (K,), so that large channels of the inputs meet finer levels."""
    inputs_K = largest_K.clamp_min(_SMALLEST) ** SMOOTHING
    weights_K = weight_NK.detach().abs().amax(0).clamp_min(_SMALLEST) ** (1 - SMOOTHING)
    return weights_K / inputs_K


def _relative_error(rows_MK: torch.Tensor, weight_NK: torch.Tensor, candidate: LinearCalibration) -> float:
    """Squared error of the layer's outputs over their squares, the mean over rows."""
    exact_MN = rows_MK @ weight_NK.T
    rounding = candidate.rounding
    if candidate.factor is not None:
        rows_MK, weight_NK = rows_MK * candidate.factor, weight_NK / candidate.factor
    scale_N = channel_scales(weight_NK)
    rounded_NK = dequantize_weight(quantize_weight(weight_NK, scale_N), scale_N)
    is_static = rounding.activations is Activations.STATIC
    scale = rounding.scale if is_static else row_scales(rows_MK, rounding.zero_point)
    error_MN = rounded_input(rows_MK, scale, rounding.zero_point) * scale @ rounded_NK.T - exact_MN
    return float((error_MN.square().sum(1) / exact_MN.square().sum(1).clamp_min(TINY)).mean())


def _linear_rounding(
    observer: RowObserver, factor_K: torch.Tensor | None, activations: Activations, calibration: Calibration
) -> InputRounding:
    if activations is Activations.STATIC:
        return InputRounding(Activations.STATIC, *_range(observer.seen(factor_K), calibration))
    rows_MK = observer.rows(factor_K)
    return InputRounding(Activations.DYNAMIC, 1.0, row_zero_point(rows_MK.amin(1), rows_MK.amax(1)))


def conv_rounding(inputs: ValueObserver, outputs: ValueObserver, calibration: Calibration) -> InputRounding:
    """The ranges of a static convolution."""
    return InputRounding(Activations.STATIC, *_range(inputs.seen(), calibration), *_range(outputs.seen(), calibration))


def _range(seen: SeenValues, calibration: Calibration) -> tuple[float, int]:
    return affine_range(*CALIBRATIONS[calibration](seen))
