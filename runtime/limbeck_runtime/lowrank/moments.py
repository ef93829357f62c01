"""The second moment of what each layer reads, over samples: sums of x x', where x is a row or a convolution's patch.

Tokens that are padding do not count. Layers are taken in groups whose moments fit into memory together, each group
with a pass of its own over the samples.

Shapes: M rows, K inputs (of a convolution input channels times kernel), B samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from limbeck_runtime.lowrank.layers import LowRank, matrix_shape

Inputs = Mapping[str, torch.Tensor]
Progress = Callable[[int, int], None]
_CONV = nn.modules.conv._ConvNd
# Numbers: 1 GiB of float64 for the moments of a group, 128 MiB for the patches of a part of a batch.
_MOST_OF_A_GROUP = 1 << 27
_MOST_PATCHES = 1 << 24


def second_moments(
    module: nn.Module, paths: Sequence[str], batches: Sequence[Inputs], progress: Progress | None = None
) -> dict[str, torch.Tensor]:
    """Path -> (K, K) float64. What no sample reaches is not among them. `progress` gets (passes done, in all)."""
    groups = list(_groups(module, paths))
    total = len(groups) * len(batches)
    found: dict[str, torch.Tensor] = {}
    module.eval()
    for number, group in enumerate(groups):
        reader = _Reader(found)
        handles = [module.get_submodule(path).register_forward_pre_hook(reader.of(path)) for path in group]
        try:
            with torch.no_grad():
                for place, batch in enumerate(batches, start=1):
                    reader.mask = batch.get("attention_mask")
                    module(dict(batch))
                    if progress is not None:
                        progress(number * len(batches) + place, total)
        finally:
            for handle in handles:
                handle.remove()
    return found


def _groups(module: nn.Module, paths: Sequence[str]) -> Iterator[list[str]]:
    group: list[str] = []
    size = 0
    for path in paths:
        inputs = matrix_shape(module.get_submodule(path))[1]
        if group and size + inputs**2 > _MOST_OF_A_GROUP:
            yield group
            group, size = [], 0
        group.append(path)
        size += inputs**2
    if group:
        yield group


class _Reader:
    """Adds up what layers read."""

    def __init__(self, sums: dict[str, torch.Tensor]) -> None:
        self.mask: torch.Tensor | None = None
        self._sums = sums

    def of(self, path: str) -> Callable[[nn.Module, Any], None]:
        def see(layer: nn.Module, arguments: Any) -> None:
            for rows_MK in self._rows(layer, arguments[0].detach()):
                doubles_MK = rows_MK.double()
                moment_KK = doubles_MK.t() @ doubles_MK
                self._sums[path] = self._sums[path] + moment_KK if path in self._sums else moment_KK

        return see

    def _rows(self, layer: nn.Module, x: torch.Tensor) -> Iterator[torch.Tensor]:
        source = layer.first if isinstance(layer, LowRank) else layer
        if isinstance(source, _CONV):
            yield from _patches(source, x)
        elif self.mask is not None and x.ndim == 3 and x.shape[:2] == self.mask.shape:
            yield x[self.mask.bool()]
        else:
            yield x.reshape(-1, x.shape[-1])


def _patches(conv: Any, x: torch.Tensor) -> Iterator[torch.Tensor]:
    """(M, K): every patch that the kernel meets, in the order of the flat kernel; a part of the batch at a time."""
    spatial = len(conv.kernel_size)
    if x.ndim == spatial + 1:
        x = x.unsqueeze(0)
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    x = functional.pad(x, conv._reversed_padding_repeated_twice, mode=mode)
    num_kernel = torch.Size(conv.kernel_size).numel()
    at_a_time = max(1, _MOST_PATCHES // max(1, num_kernel * x[0].numel()))
    for part in torch.split(x, at_a_time):
        windows = part
        for dim, (size, stride, dilation) in enumerate(
            zip(conv.kernel_size, conv.stride, conv.dilation, strict=True), start=2
        ):
            windows = windows.unfold(dim, dilation * (size - 1) + 1, stride)[..., ::dilation]
        # (B, channels, places..., kernel...) -> (B, places..., channels, kernel...)
        yield windows.movedim(1, spatial + 1).reshape(-1, x.shape[1] * num_kernel)
