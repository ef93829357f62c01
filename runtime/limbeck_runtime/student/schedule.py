"""The learning rate of each step: a pure function, so that a resumed run needs no scheduler's state."""

from __future__ import annotations

import math

from limbeck.api.v1alpha1.training import LearningRateSchedule


def learning_rate_factor(step: int, total_steps: int, warmup_percent: float, schedule: LearningRateSchedule) -> float:
    """Factor on the highest learning rate at `step` (0 is the first) of `total_steps`.

    Rises in equal parts over the warm-up, whose last step has factor 1 (no step has 0); then stays (Constant)
    or falls to 0, which would be reached one step after the last, in a line or half a cosine.
    """
    warmup_steps = round(total_steps * warmup_percent / 100)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    if schedule is LearningRateSchedule.CONSTANT:
        return 1.0
    if schedule is LearningRateSchedule.LINEAR:
        return 1.0 - done
    return 0.5 * (1.0 + math.cos(math.pi * done))
