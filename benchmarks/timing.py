"""How times are taken: side by side in one process, alternated, the median of at least five.

Two things are compared by the ratio within each round, so that a machine that slows down slows both. Left out on
purpose: statistics beyond median and range, and any waiting for a quiet machine.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
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
    """Time both in turns, after so many untimed turns."""
    works = {"first": lambda: timed(first, clock), "second": lambda: timed(second, clock)}
    seconds = in_turns(works, runs=runs, warmups=warmups)
    return Comparison.of(seconds["first"], seconds["second"])


def in_turns(works: Mapping[str, Callable[[], float]], *, runs: int = RUNS, warmups: int = 1) -> dict[str, list[float]]:
    """What each of several works says of itself (say, its seconds), run after run, after so many rounds unheard.

    The order turns around from round to round, so that none always profits from what another leaves behind.
    """
    for _ in range(warmups):
        for work in works.values():
            work()
    said: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(runs):
        for name in works if turn % 2 == 0 else reversed(list(works)):
            said[name].append(works[name]())
    return said


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
