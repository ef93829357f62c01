"""Samples of different lengths in one flat array, such as one row a token.

Shapes: N samples, L rows of all samples together, T rows of the longest sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Ragged:
    """`values` (L, ...) holds the samples' rows one after the other, `lengths` (N,) how many each has."""

    values: Array
    lengths: Array

    def __post_init__(self) -> None:
        if self.lengths.ndim != 1 or len(self.values) != self.lengths.sum():
            raise ValueError(f"lengths must add up to the {len(self.values)} rows of values, got {self.lengths.sum()}")

    @classmethod
    def from_padded(cls, values_NT: Array, lengths_N: Array) -> Ragged:
        """Drop the padding behind each sample's first `length` rows."""
        if len(lengths_N) and not 0 <= lengths_N.min() <= lengths_N.max() <= values_NT.shape[1]:
            raise ValueError(
                f"lengths must be from 0 to {values_NT.shape[1]}, got {lengths_N.min()} to {lengths_N.max()}"
            )
        keep_NT = np.arange(values_NT.shape[1]) < lengths_N[:, None]
        return cls(values_NT[keep_NT], np.asarray(lengths_N, np.int64))

    @classmethod
    def concatenate(cls, pieces: Sequence[Ragged]) -> Ragged:
        """The samples of all pieces, in their order."""
        return cls(
            np.concatenate([piece.values for piece in pieces]), np.concatenate([piece.lengths for piece in pieces])
        )

    def padded(self, fill: float) -> Array:
        """Shape (N, T, ...), `fill` behind each sample's rows."""
        width = int(self.lengths.max(initial=0))
        padded_NT = np.full((len(self.lengths), width, *self.values.shape[1:]), fill, self.values.dtype)
        padded_NT[np.arange(width) < self.lengths[:, None]] = self.values
        return padded_NT


def starts_of(lengths_N: Array) -> Array:
    """Where each of the pieces of these lengths begins when they lie one after the other."""
    starts_N = np.zeros(len(lengths_N), np.int64)
    np.cumsum(lengths_N[:-1], out=starts_N[1:])
    return starts_N


def flat_positions(starts_N: Array, lengths_N: Array) -> Array:
    """starts[0], starts[0] + 1, ... up to lengths[0] of them, then the same for the next, as one array."""
    before_N = starts_of(lengths_N)
    return np.repeat(starts_N - before_N, lengths_N) + np.arange(lengths_N.sum())
