"""How times are taken: side by side in one process, alternated, the median of at least five.

Two things are compared by the ratio within each round, so that a machine that slows down slows both. Left out on
purpose: statistics beyond median and range, and any waiting for a quiet machine.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

RUNS = 5


@dataclass(frozen=True)
class Figure:
    """The median of some runs with the lowest and the highest of them."""

    value: float
    spread: tuple[float, float]
    runs: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Figure:
        """The figure of at least one value."""
        return cls(statistics.median(values), (min(values), max(values)), len(values))

    def scaled(self, factor: float) -> Figure:
        """In another unit."""
        low, high = self.spread
        return Figure(self.value * factor, (low * factor, high * factor), self.runs)

    def to_json(self) -> dict[str, Any]:
        """As a row's `measure` gives it."""
        return {"value": self.value, "spread": list(self.spread), "runs": self.runs}


@dataclass(frozen=True)
class Comparison:
    """How much longer the first takes than the second."""

    ratio: Figure
    first_seconds: Figure
    second_seconds: Figure

    @classmethod
    def of(cls, first_seconds: Sequence[float], second_seconds: Sequence[float]) -> Comparison:
        """From times taken in turns: run i of the first beside run i of the second."""
        ratios = [first / second for first, second in zip(first_seconds, second_seconds, strict=True)]
        return cls(Figure.of(ratios), Figure.of(first_seconds), Figure.of(second_seconds))


def alternate(
    first: Callable[[], object],
    second: Callable[[], object],
    *,
    runs: int = RUNS,
    warmups: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> Comparison:
    """Time both in turns, after so many untimed turns.

    The one that goes first changes from round to round, so that neither always profits from what the other leaves
    behind.
    """
    for _ in range(warmups):
        first()
        second()
    seconds: tuple[list[float], list[float]] = ([], [])
    for turn in range(runs):
        for which in (0, 1) if turn % 2 == 0 else (1, 0):
            seconds[which].append(timed((first, second)[which], clock))
    return Comparison.of(*seconds)


def repeat(
    work: Callable[[], object],
    *,
    runs: int = RUNS,
    warmups: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> Figure:
    """Seconds that `work` takes, after so many untimed runs."""
    for _ in range(warmups):
        work()
    return Figure.of([timed(work, clock) for _ in range(runs)])


def timed(work: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of one run. The garbage of runs before is collected outside of the time."""
    gc.collect()
    started = clock()
    work()
    return clock() - started
