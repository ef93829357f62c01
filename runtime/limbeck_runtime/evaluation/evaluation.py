"""The result of evaluating one model, as plain data that can be put into a file and read again.

Left out on purpose: cost (cost.py) and the report's models (measurements.py brings the two together).
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from limbeck_runtime.evaluation.scores import Interval, SampleScores


@dataclass(frozen=True)
class Answers:
    """What the model says, one entry for each question, and whether that is the truth.

    A question is a sample, or a token of it for language models. `ids` are places among the candidates: of the
    validation's texts (ImageText), classes, samples (embeddings) or tokens. `correct` is 1, 0 or -1 (unknown).
    """

    ids: np.ndarray
    scores: np.ndarray
    correct: np.ndarray


@dataclass(frozen=True)
class SliceMetrics:
    """The metrics of the samples that share one value of a slice column."""

    count: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one model over the validation data.

    `scores` holds for each metric that is a mean over samples what each contributes, in the order of `keys`.
    `embeddings` (N, D) are kept by tasks whose metrics compare models by them.
    """

    metrics: Mapping[str, float]
    main_metric: str
    answers: Answers
    scores: Mapping[str, SampleScores]
    keys: tuple[str, ...]
    ece: float | None = None
    agreement_percent: float | None = None
    recovery_interval: Interval | None = None
    slices: Mapping[str, Mapping[str, SliceMetrics]] = field(default_factory=dict)
    embeddings: Mapping[str, np.ndarray] = field(default_factory=dict)
    unmeasured: Mapping[str, str] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """All of it as an uncompressed .npz without pickles."""
        plain = {
            "metrics": dict(self.metrics),
            "main_metric": self.main_metric,
            "scores": {name: score.exponential for name, score in self.scores.items()},
            "keys": list(self.keys),
            "ece": self.ece,
            "agreement_percent": self.agreement_percent,
            "recovery_interval": _pair(self.recovery_interval),
            "slices": {
                column: {value: [part.count, dict(part.metrics)] for value, part in values.items()}
                for column, values in self.slices.items()
            },
            "unmeasured": dict(self.unmeasured),
        }
        arrays: dict[str, np.ndarray] = {
            "plain": np.frombuffer(json.dumps(plain).encode(), np.uint8),
            "answers/ids": self.answers.ids,
            "answers/scores": self.answers.scores,
            "answers/correct": self.answers.correct,
        }
        for name, score in self.scores.items():
            arrays |= {f"values/{name}": score.values, f"weights/{name}": score.weights}
        arrays |= {f"embeddings/{name}": array for name, array in self.embeddings.items()}
        buffer = io.BytesIO()
        named: dict[str, Any] = arrays
        np.savez(buffer, **named)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> Evaluation:
        """Inverse of `to_bytes`; raises ValueError on anything else."""
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                return cls._from_arrays(dict(arrays))
        except (KeyError, OSError, EOFError, TypeError, ValueError) as error:
            raise ValueError(f"this is not a stored evaluation: {error!r}") from error

    @classmethod
    def _from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Evaluation:
        plain = json.loads(arrays["plain"].tobytes())
        interval = plain["recovery_interval"]
        return cls(
            metrics=plain["metrics"],
            main_metric=plain["main_metric"],
            answers=Answers(arrays["answers/ids"], arrays["answers/scores"], arrays["answers/correct"]),
            scores={
                name: SampleScores(arrays[f"values/{name}"], arrays[f"weights/{name}"], exponential)
                for name, exponential in plain["scores"].items()
            },
            keys=tuple(plain["keys"]),
            ece=plain["ece"],
            agreement_percent=plain["agreement_percent"],
            recovery_interval=None if interval is None else Interval(*interval),
            slices={
                column: {value: SliceMetrics(count, metrics) for value, (count, metrics) in values.items()}
                for column, values in plain["slices"].items()
            },
            embeddings={
                name.removeprefix("embeddings/"): array
                for name, array in arrays.items()
                if name.startswith("embeddings/")
            },
            unmeasured=plain["unmeasured"],
        )


def _pair(interval: Interval | None) -> list[float] | None:
    return None if interval is None else [interval.low, interval.high]
