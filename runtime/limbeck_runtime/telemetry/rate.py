"""Rate: units per second over the last seconds, cheap enough to be told of every training step.

Left out: averages over a whole run, which hide a stall.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

WINDOW_SECONDS = 10.0
_MARK_SECONDS = 0.5


class Rate:
    """Counts units and tells their rate. One thread adds; any thread may read."""

    __slots__ = ("_clock", "_mark_due", "_marks", "total")

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.total = 0.0
        # (time, total) about every half second, newest last; enough of them to reach past the window.
        self._marks: deque[tuple[float, float]] = deque(maxlen=int(WINDOW_SECONDS / _MARK_SECONDS) + 2)
        self._mark_due = 0.0

    def add(self, units: float) -> None:
        """Count `units` more. The first call starts the clock, and its units took no time yet."""
        self.total += units
        now = self._clock()
        if now >= self._mark_due or not self._marks:
            self._marks.append((now, self.total))
            self._mark_due = now + _MARK_SECONDS

    def per_second(self) -> float | None:
        """Units per second over the window, or since the first; None before there is anything to tell."""
        now = self._clock()
        marks = list(self._marks)
        if not marks:
            return None
        # The newest mark older than the window, so that a stall shows as zero, not as the last speed.
        since, before = next((mark for mark in reversed(marks) if now - mark[0] >= WINDOW_SECONDS), marks[0])
        return (self.total - before) / (now - since) if now > since else None
