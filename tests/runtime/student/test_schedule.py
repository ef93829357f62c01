"""The learning rate of each step."""

from __future__ import annotations

import pytest

from limbeck.api.v1alpha1.training import LearningRateSchedule
from limbeck_runtime.student.schedule import learning_rate_factor

CONSTANT, COSINE, LINEAR = (
    LearningRateSchedule.CONSTANT,
    LearningRateSchedule.COSINE,
    LearningRateSchedule.LINEAR,
)


@pytest.mark.parametrize(
    ("schedule", "warmup_percent", "expected"),
    [
        (CONSTANT, 0, [1, 1, 1, 1, 1]),
        (CONSTANT, 40, [0.5, 1, 1, 1, 1]),
        (LINEAR, 0, [1, 0.8, 0.6, 0.4, 0.2]),
        (LINEAR, 60, [1 / 3, 2 / 3, 1, 1, 0.5]),
        (COSINE, 0, [1, 0.9045085, 0.6545085, 0.3454915, 0.0954915]),
        (COSINE, 20, [1, 1, 0.8535534, 0.5, 0.1464466]),
        (COSINE, 100, [0.2, 0.4, 0.6, 0.8, 1]),
    ],
)
def test_the_rate_rises_in_the_warm_up_and_then_follows_its_schedule(
    schedule: LearningRateSchedule, warmup_percent: float, expected: list[float]
) -> None:
    factors = [learning_rate_factor(step, 5, warmup_percent, schedule) for step in range(5)]
    assert factors == pytest.approx(expected, abs=1e-7)


def test_a_run_of_one_step_trains_at_the_full_rate() -> None:
    assert [learning_rate_factor(0, 1, percent, COSINE) for percent in (0, 5, 100)] == [1, 1, 1]
