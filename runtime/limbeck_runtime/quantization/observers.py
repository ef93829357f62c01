"""What calibration remembers of the tensors that pass through a layer: extremes exactly, the rest by a sample.

A sample holds every n-th entry; n doubles whenever there are too many, so that memory is bounded and what is kept
follows from the data alone.
Shapes: M rows (samples times tokens), K channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from limbeck_runtime.quantization.ranges import SeenValues

# Numbers kept for each layer, 1 MB: 26 beyond each percentile, or 170 rows of a wide layer.
MAX_NUMBERS = 2**18


class EveryNth:
    """Every n-th of the entries along the first dimension, at most `max_entries`."""

    def __init__(self, max_entries: int) -> None:
        self._max_entries = max(1, max_entries)
        self._stride = 1
        self._num_seen = 0
        self._parts: list[torch.Tensor] = []

    def add(self, entries: torch.Tensor) -> None:
        """Take in (M, ...)."""
        first = -self._num_seen % self._stride
        self._parts.append(entries[first :: self._stride].clone())
        self._num_seen += len(entries)
        while sum(len(part) for part in self._parts) > self._max_entries:
            self._parts = [torch.cat(self._parts)[::2].clone()]
            self._stride *= 2

    def kept(self) -> torch.Tensor:
        """The entries that were kept, in their order."""
        return torch.cat(self._parts)


class ValueObserver:
    """For layers with one range for the whole tensor."""

    def __init__(self) -> None:
        self._low = 0.0
        self._high = 0.0
        self._sample = EveryNth(MAX_NUMBERS)

    def see(self, x: torch.Tensor) -> None:
        """Take in a tensor of any shape."""
        low, high = torch.aminmax(x)
        self._low, self._high = min(self._low, float(low)), max(self._high, float(high))
        self._sample.add(x.flatten())

    def seen(self) -> SeenValues:
        """All that was seen."""
        return SeenValues(self._low, self._high, self._sample.kept())


class RowObserver:
    """For linear layers: the extremes of each channel, and some whole rows."""

    def __init__(self) -> None:
        self.low_K = torch.zeros(0)
        self.high_K = torch.zeros(0)
        self._rows = EveryNth(1)

    def see(self, x: torch.Tensor) -> None:
        """Take in (..., K)."""
        x_MK = x.flatten(0, -2)
        if not len(self.low_K):
            self.low_K, self.high_K = x_MK.new_zeros(x_MK.shape[1]), x_MK.new_zeros(x_MK.shape[1])
            self._rows = EveryNth(MAX_NUMBERS // x_MK.shape[1])
        self.low_K = torch.minimum(self.low_K, x_MK.amin(0))
        self.high_K = torch.maximum(self.high_K, x_MK.amax(0))
        self._rows.add(x_MK)

    def largest(self) -> torch.Tensor:
        """Largest magnitude of each channel, (K,)."""
        return torch.maximum(self.high_K, -self.low_K)

    def rows(self, without: Sequence[int] = ()) -> torch.Tensor:
        """The rows that were kept, zeros in some channels."""
        rows_MK = self._rows.kept()
        return rows_MK.index_fill(1, torch.tensor(without, dtype=torch.long), 0.0) if without else rows_MK

    def seen(self, without: Sequence[int] = ()) -> SeenValues:
        """All that was seen, but for some channels."""
        kept = torch.tensor([channel for channel in range(len(self.low_K)) if channel not in set(without)])
        return SeenValues(float(self.low_K[kept].min()), float(self.high_K[kept].max()), self.rows(without).flatten())
