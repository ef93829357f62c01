"""What a task's measuring hands back, before it is compared with the teacher and cut into slices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from limbeck_runtime.evaluation.evaluation import Answers
from limbeck_runtime.evaluation.scores import SampleScores


@dataclass(frozen=True)
class Labelled:
    """Class of each sample, -1 where it has none, int64 (N,), and the classes' names."""

    ids: np.ndarray
    classes: Sequence[str]


@dataclass(frozen=True)
class Findings:
    """Metrics of two kinds: means over samples, and figures of the whole; NaN where there was nothing to measure."""

    scores: Mapping[str, SampleScores]
    answers: Answers
    figures: Mapping[str, float] = field(default_factory=dict)
    ece: float | None = None
    embeddings: Mapping[str, np.ndarray] = field(default_factory=dict)
    unmeasured: Mapping[str, str] = field(default_factory=dict)
