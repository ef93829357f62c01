"""Expected calibration error: how far confidence and accuracy lie apart (Guo et al., 2017). Pure."""

from __future__ import annotations

import numpy as np

NUM_BINS = 15


def expected_calibration_error(confidences: np.ndarray, correct: np.ndarray) -> float:
    """Mean over samples of |accuracy - confidence| of the bin they fall into, 0 to 1; both (N,).

    Bins are equally wide and closed above, as torchmetrics has them.
    """
    bins = np.clip(np.ceil(confidences * NUM_BINS).astype(np.int64) - 1, 0, NUM_BINS - 1)
    gaps = np.bincount(bins, weights=correct.astype(np.float64) - confidences, minlength=NUM_BINS)
    return float(np.abs(gaps).sum() / len(confidences))
