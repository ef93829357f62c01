"""How long to wait before the next try."""

from __future__ import annotations

import random
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Backoff:
    """Doubling from `base_seconds` to `cap_seconds`, each spread by up to `spread` of it so that many do not meet."""

    base_seconds: float = 0.1
    cap_seconds: float = 30.0
    spread: float = 0.2
    random: random.Random = field(default_factory=random.Random, repr=False, compare=False)

    def delay(self, num_failures: int, at_least: float | None = None) -> float:
        """Seconds to wait after the `num_failures`-th failure in a row; `at_least` is what the server asked for."""
        exponent = min(max(num_failures, 1) - 1, 60)  # 2**60 is beyond every cap, and still a float
        seconds = min(self.base_seconds * 2.0**exponent, self.cap_seconds)
        seconds *= 1.0 - self.spread * self.random.random()
        return max(seconds, at_least or 0.0)
