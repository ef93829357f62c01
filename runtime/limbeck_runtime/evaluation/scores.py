"""A metric as what each sample contributes, so that it can be taken over a slice, or over samples drawn anew.

Left out on purpose: metrics that are no mean over samples (F1, rank correlation); they have a value and no slices.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

NUM_RESAMPLES = 1000
# Of the resampled values, this share lies within the interval.
CONFIDENCE = 0.95


@dataclass(frozen=True)
class SampleScores:
    """The metric is sum(values) / sum(weights), or exp of that; both float64 (N,).

    A sample with weight 0 has no say (a sample without a label, a text of one token).
    """

    values: np.ndarray
    weights: np.ndarray
    exponential: bool = False

    @classmethod
    def mean_of(cls, values: np.ndarray) -> SampleScores:
        """Every sample counts the same."""
        return cls(values.astype(np.float64), np.ones(len(values)))

    def value(self, rows: np.ndarray | None = None) -> float:
        """The metric over all samples or over `rows`; NaN over none."""
        values, weights = (self.values, self.weights) if rows is None else (self.values[rows], self.weights[rows])
        total = float(weights.sum())
        if total <= 0:
            return float("nan")
        mean = float(values.sum()) / total
        return float(np.exp(mean)) if self.exponential else mean

    def resampled(self, draws: np.ndarray) -> np.ndarray:
        """The metric over each row of `draws`, counts of every sample, (R, N) to (R,)."""
        with np.errstate(invalid="ignore", divide="ignore"):
            means = (draws @ self.values) / (draws @ self.weights)
        resampled: np.ndarray = np.exp(means) if self.exponential else means
        return resampled


@dataclass(frozen=True)
class Interval:
    """Where a figure lies with the confidence `CONFIDENCE`."""

    low: float
    high: float


def recovery_interval(
    student: SampleScores, teacher: SampleScores, *, higher_is_better: bool, seed: int = 0
) -> Interval | None:
    """Of the recovery in percent, by the paired bootstrap (Efron and Tibshirani, 1993): both on the same draws.

    None where the two do not cover the same number of samples, or where a draw leaves nothing to divide by.
    """
    num_samples = len(student.values)
    if num_samples == 0 or num_samples != len(teacher.values):
        return None
    generator = np.random.default_rng(seed)
    draws = generator.multinomial(num_samples, np.full(num_samples, 1 / num_samples), size=NUM_RESAMPLES)
    above, below = student.resampled(draws), teacher.resampled(draws)
    if not higher_is_better:
        above, below = below, above
    with np.errstate(invalid="ignore", divide="ignore"):
        percents = 100 * above / below
    if not np.isfinite(percents).all():
        return None
    low, high = np.quantile(percents, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(low), float(high))


def spread(scores: SampleScores, *, seed: int = 0) -> Interval | None:
    """Of the metric itself, by the bootstrap; None where it cannot be taken."""
    num_samples = len(scores.values)
    if num_samples == 0:
        return None
    generator = np.random.default_rng(seed)
    draws = generator.multinomial(num_samples, np.full(num_samples, 1 / num_samples), size=NUM_RESAMPLES)
    values = scores.resampled(draws)
    if not np.isfinite(values).all():
        return None
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(low), float(high))
