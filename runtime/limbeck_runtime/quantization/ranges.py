"""Which range of inputs the 256 levels of a static layer cover, chosen from what calibration has seen.

MinMax covers all; Percentile leaves out the rarest values at both ends, MSE takes the range with the smallest mean
squared error, clipping included: both give up outliers for finer levels.
Left out on purpose: entropy calibration, which MSE does as well without a histogram's settings.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from limbeck.api.v1alpha1.compression import Calibration
from limbeck_runtime.quantization.rounding import INPUT_MAX, affine_range, rounded_input

# Of 10,000 values the largest and the smallest one are left out.
TAIL = 1e-4
# Values kept for each layer: 26 beyond each percentile, 1 MB.
MAX_VALUES = 2**18
_MSE_VALUES = 2**15
_MSE_SHARES = [share / 100 for share in range(100, 29, -2)]
# A zero point at the very end would leave no level for the other sign.
ZERO_POINTS = range(8, 248, 4)
MIDDLE = 128


class ValueSample:
    """Smallest and largest value ever seen, and an evenly spread sample of the values between.

    The sample holds every n-th value; n doubles whenever there are more than `max_values`, so that what is kept does
    not depend on how the values came in batches of one size.
    """

    def __init__(self, max_values: int = MAX_VALUES) -> None:
        self.low = 0.0
        self.high = 0.0
        self._max_values = max_values
        self._stride = 1
        self._num_seen = 0
        self._parts: list[torch.Tensor] = []

    def add(self, x: torch.Tensor) -> None:
        """Take in a tensor of any shape."""
        flat = x.detach().flatten().float()
        if not flat.numel():
            return
        self.low = min(self.low, float(flat.min()))
        self.high = max(self.high, float(flat.max()))
        first = -self._num_seen % self._stride
        self._parts.append(flat[first :: self._stride].clone())
        self._num_seen += flat.numel()
        if sum(len(part) for part in self._parts) > self._max_values:
            self._parts = [torch.cat(self._parts)[::2].clone()]
            self._stride *= 2

    def values(self) -> torch.Tensor:
        """The sample, one-dimensional."""
        return torch.cat(self._parts) if self._parts else torch.zeros(1)


def min_max(sample: ValueSample) -> tuple[float, float]:
    """All that was seen."""
    return sample.low, sample.high


def percentile(sample: ValueSample) -> tuple[float, float]:
    """All but the rarest `TAIL` at each end."""
    ordered = sample.values().sort().values
    skipped = int(TAIL * len(ordered))
    return float(ordered[skipped]), float(ordered[-1 - skipped])


def least_squares(sample: ValueSample) -> tuple[float, float]:
    """The share of the whole range with the smallest mean squared error; both ends shrink alike."""
    values = sample.values()
    values = values[:: max(1, len(values) // _MSE_VALUES)]

    def error(share: float) -> float:
        scale, zero_point = affine_range(sample.low * share, sample.high * share)
        return float((rounded_input(values, scale, zero_point) * scale - values).square().mean())

    best = min(_MSE_SHARES, key=error)
    return sample.low * best, sample.high * best


CALIBRATIONS: dict[Calibration, Callable[[ValueSample], tuple[float, float]]] = {
    Calibration.MIN_MAX: min_max,
    Calibration.PERCENTILE: percentile,
    Calibration.MSE: least_squares,
}


def row_zero_point(low_M: torch.Tensor, high_M: torch.Tensor) -> int:
    """The zero point at which rows from `low_M` to `high_M` get the finest levels, in the mean square."""

    def error(zero_point: int) -> float:
        return float(torch.maximum(high_M / (INPUT_MAX - zero_point), -low_M / zero_point).square().mean())

    return min(ZERO_POINTS, key=lambda zero_point: (error(zero_point), abs(zero_point - MIDDLE)))
