"""Which range of inputs the 256 levels of a static layer cover, chosen from what calibration has seen.

MinMax covers all; Percentile leaves out the rarest values at both ends, MSE takes the range with the smallest mean
squared error, clipping included: both give up outliers for finer levels.
Left out on purpose: entropy calibration, which MSE does as well without a histogram's settings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from limbeck.api.v1alpha1.compression import Calibration
from limbeck_runtime.quantization.rounding import INPUT_MAX, TINY, affine_range, rounded_input

# Of 10,000 values the largest and the smallest one are left out.
TAIL = 1e-4
_MSE_VALUES = 2**15
_MSE_SHARES = [share / 100 for share in range(100, 29, -2)]
# A zero point at the very end would leave no level for the other sign.
ZERO_POINTS = range(8, 248, 4)
MIDDLE = 128


@dataclass(frozen=True)
class SeenValues:
    """Smallest and largest value ever seen (0 included), and a sample of the values, one-dimensional."""

    low: float
    high: float
    values: torch.Tensor


def min_max(seen: SeenValues) -> tuple[float, float]:
    """All that was seen."""
    return seen.low, seen.high


def percentile(seen: SeenValues) -> tuple[float, float]:
    """All but the rarest `TAIL` at each end."""
    ordered = seen.values.sort().values
    skipped = int(TAIL * len(ordered))
    return float(ordered[skipped]), float(ordered[-1 - skipped])


def least_squares(seen: SeenValues) -> tuple[float, float]:
    """The share of the whole range with the smallest mean squared error; both ends shrink alike."""
    values = seen.values[:: max(1, len(seen.values) // _MSE_VALUES)]

    def error(share: float) -> float:
        scale, zero_point = affine_range(seen.low * share, seen.high * share)
        return float((rounded_input(values, scale, zero_point) * scale - values).square().mean())

    best = min(_MSE_SHARES, key=error)
    return seen.low * best, seen.high * best


CALIBRATIONS: dict[Calibration, Callable[[SeenValues], tuple[float, float]]] = {
    Calibration.MIN_MAX: min_max,
    Calibration.PERCENTILE: percentile,
    Calibration.MSE: least_squares,
}


def row_zero_point(low_M: torch.Tensor, high_M: torch.Tensor) -> int:
    """The zero point at which rows from `low_M` to `high_M` get the finest levels, each row measured by its own range.

    Otherwise the few rows of huge values would decide (in language models those of special tokens).
    """
    low_M, high_M = low_M.clamp_max(0), high_M.clamp_min(0)
    finest_M = ((high_M - low_M) / INPUT_MAX).clamp_min(TINY)

    def error(zero_point: int) -> float:
        scale_M = torch.maximum(high_M / (INPUT_MAX - zero_point), -low_M / zero_point)
        return float((scale_M / finest_M).square().mean())

    return min(ZERO_POINTS, key=lambda zero_point: (error(zero_point), abs(zero_point - MIDDLE)))
