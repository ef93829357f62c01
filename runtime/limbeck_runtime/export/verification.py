"""Whether an exported file answers as the torch model does, on validation samples, before it counts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from limbeck_runtime.export.errors import VerificationError

# Float files differ by rounding alone. Int8 ones may round a value at the border of two levels to the other side,
# and layers amplify that; a wrong scale or a lost layer ends far below.
MIN_COSINE_FLOAT = 0.9999
MIN_COSINE_INT8 = 0.99


@dataclass(frozen=True)
class Comparison:
    """How far two models' outputs lie apart: over all numbers, and in the worst row."""

    num_compared: int
    max_difference: float
    min_cosine: float


def compare(expected: np.ndarray, got: np.ndarray) -> Comparison:
    """Outputs of shape (N, ..., C), rows along the last dimension; of sequences each position is a row.

    Numbers that are not finite count as the largest difference.
    """
    if expected.shape != got.shape:
        return Comparison(len(expected), float("inf"), -1.0)
    expected, got = expected.astype(np.float64), got.astype(np.float64)
    if not np.isfinite(got).all():
        return Comparison(len(expected), float("inf"), -1.0)
    rows, others = (array.reshape(-1, array.shape[-1]) for array in (expected, got))
    lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(others, axis=1)
    both_zero = ~rows.any(1) & ~others.any(1)
    cosines = np.where(both_zero, 1.0, (rows * others).sum(1) / np.maximum(lengths, 1e-30))
    return Comparison(len(expected), float(np.abs(expected - got).max()), float(cosines.min()))


def check(comparison: Comparison, name: str, *, quantized: bool) -> None:
    """Raises VerificationError, with the figures, where the file answers too differently."""
    wanted = MIN_COSINE_INT8 if quantized else MIN_COSINE_FLOAT
    if comparison.min_cosine < wanted:
        raise VerificationError(
            f"{name} must answer as the torch model does, with a cosine of at least {wanted} on each sample; got "
            f"{comparison.min_cosine:.6f} at worst and differences up to {comparison.max_difference:.3g} over "
            f"{comparison.num_compared} samples"
        )
