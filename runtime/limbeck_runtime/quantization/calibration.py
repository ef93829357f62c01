"""What calibration learns from samples: how large each input channel gets, then which ranges the inputs take.

Two passes over the same batches, because smoothing changes the ranges.
Shapes: M rows (samples times tokens), K input channels, N output channels.
Left out on purpose: choosing the layers (selection.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from limbeck.api.v1alpha1.compression import Activations, Calibration
from limbeck_runtime.quantization.layers import InputRounding
from limbeck_runtime.quantization.ranges import CALIBRATIONS, ValueSample, row_zero_point
from limbeck_runtime.quantization.rounding import affine_range

Inputs = Mapping[str, torch.Tensor]
Progress = Callable[[int, int], None]

# How the spread of a channel is shared between inputs and weights: half each (SmoothQuant's alpha).
SMOOTHING = 0.5
_SMALLEST = 1e-5
_MAX_ROWS = 2**14


def smoothing_factor(largest_K: torch.Tensor, weight_NK: torch.Tensor) -> torch.Tensor:
    """What to multiply inputs with, (K,), so that large channels of the inputs meet finer levels."""
    inputs_K = largest_K.clamp_min(_SMALLEST) ** SMOOTHING
    weights_K = weight_NK.detach().abs().amax(0).clamp_min(_SMALLEST) ** (1 - SMOOTHING)
    return weights_K / inputs_K


class RowRanges:
    """Smallest and largest value of rows, an evenly spread sample of them."""

    def __init__(self) -> None:
        self.low = ValueSample(_MAX_ROWS)
        self.high = ValueSample(_MAX_ROWS)

    def add(self, x: torch.Tensor) -> None:
        """Take in (..., K)."""
        self.low.add(x.amin(-1))
        self.high.add(x.amax(-1))


def channel_magnitudes(
    module: nn.Module, names: Iterable[str], batches: Sequence[Inputs], progress: Progress | None = None
) -> dict[str, torch.Tensor]:
    """Largest magnitude of each input channel of the named layers, (K,)."""
    found: dict[str, torch.Tensor] = {}

    def see(name: str, x: torch.Tensor) -> None:
        largest_K = x.abs().flatten(0, -2).amax(0)
        found[name] = torch.maximum(found[name], largest_K) if name in found else largest_K

    with _watching(module, names, see):
        _run(module, batches, progress)
    return found


def input_roundings(
    module: nn.Module,
    kinds: Mapping[str, Activations],
    factors: Mapping[str, torch.Tensor],
    calibration: Calibration,
    batches: Sequence[Inputs],
    progress: Progress | None = None,
) -> dict[str, InputRounding]:
    """How the named layers round their inputs; a layer that no batch reaches is left out.

    `kinds` names Static layers of any kind, and Dynamic linear ones.
    """
    seen: dict[str, ValueSample | RowRanges] = {
        name: ValueSample() if kind is Activations.STATIC else RowRanges() for name, kind in kinds.items()
    }
    reached: set[str] = set()

    def see(name: str, x: torch.Tensor) -> None:
        reached.add(name)
        seen[name].add(x * factors[name] if name in factors else x)

    with _watching(module, kinds, see):
        _run(module, batches, progress)
    return {name: _rounding(what, calibration) for name, what in seen.items() if name in reached}


def _rounding(seen: ValueSample | RowRanges, calibration: Calibration) -> InputRounding:
    if isinstance(seen, RowRanges):
        return InputRounding(Activations.DYNAMIC, 1.0, row_zero_point(seen.low.values(), seen.high.values()))
    return InputRounding(Activations.STATIC, *affine_range(*CALIBRATIONS[calibration](seen)))


@contextmanager
def _watching(module: nn.Module, names: Iterable[str], see: Callable[[str, torch.Tensor], None]) -> Iterator[None]:
    def look(name: str, _layer: nn.Module, arguments: Sequence[Any]) -> None:
        see(name, arguments[0].detach())

    handles = [module.get_submodule(name).register_forward_pre_hook(partial(look, name)) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _run(module: nn.Module, batches: Sequence[Inputs], progress: Progress | None) -> None:
    with torch.inference_mode():
        for done, inputs in enumerate(batches, start=1):
            module(inputs)
            if progress is not None:
                progress(done, len(batches))
