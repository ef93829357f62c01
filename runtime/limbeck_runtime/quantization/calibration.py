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
from limbeck_runtime.quantization.rounding import affine_range
from limbeck_runtime.quantization.selection import LayerKind

Inputs = Mapping[str, torch.Tensor]
Progress = Callable[[int, int], None]

# How the spread of a channel is shared between inputs and weights: half each (SmoothQuant's alpha).
SMOOTHING = 0.5
_SMALLEST = 1e-5


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


def smoothing_factor(largest_K: torch.Tensor, weight_NK: torch.Tensor) -> torch.Tensor:
    """What to multiply inputs with, (K,), so that large channels of the inputs meet finer levels."""
    inputs_K = largest_K.clamp_min(_SMALLEST) ** SMOOTHING
    weights_K = weight_NK.detach().abs().amax(0).clamp_min(_SMALLEST) ** (1 - SMOOTHING)
    return weights_K / inputs_K


def linear_rounding(
    observer: RowObserver, factor_K: torch.Tensor | None, activations: Activations, calibration: Calibration
) -> InputRounding:
    """For Static the range of all inputs, for Dynamic the zero point that suits the rows."""
    if activations is Activations.STATIC:
        return InputRounding(Activations.STATIC, *_range(observer.seen(factor_K), calibration))
    rows_MK = observer.rows(factor_K)
    return InputRounding(Activations.DYNAMIC, 1.0, row_zero_point(rows_MK.amin(1), rows_MK.amax(1)))


def conv_rounding(inputs: ValueObserver, outputs: ValueObserver, calibration: Calibration) -> InputRounding:
    """The ranges of a static convolution."""
    return InputRounding(Activations.STATIC, *_range(inputs.seen(), calibration), *_range(outputs.seen(), calibration))


def _range(seen: SeenValues, calibration: Calibration) -> tuple[float, int]:
    return affine_range(*CALIBRATIONS[calibration](seen))
