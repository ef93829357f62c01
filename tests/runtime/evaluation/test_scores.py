"""Metrics as sums over samples: slices, and the paired bootstrap."""

from __future__ import annotations

import math

import numpy as np
import pytest

from limbeck_runtime.evaluation.scores import SampleScores, recovery_interval, spread


def test_a_metric_over_rows_counts_only_those_rows() -> None:
    scores = SampleScores(np.array([1.0, 0.0, 3.0, 5.0]), np.array([1.0, 0.0, 2.0, 1.0]))
    assert scores.value() == pytest.approx(9 / 4)
    assert scores.value(np.array([0, 2])) == pytest.approx(4 / 3)
    assert math.isnan(scores.value(np.array([1])))


def test_perplexity_is_the_exponential_of_the_mean_over_tokens_not_over_samples() -> None:
    scores = SampleScores(np.array([6.0, 1.0]), np.array([2.0, 1.0]), exponential=True)
    assert scores.value() == pytest.approx(math.exp(7 / 3))


def test_the_interval_is_narrow_where_student_and_teacher_fail_on_the_same_samples() -> None:
    generator = np.random.default_rng(0)
    teacher = generator.random(400) < 0.6
    same = SampleScores.mean_of(teacher & (generator.random(400) < 0.95))
    apart = SampleScores.mean_of(generator.random(400) < same.value())
    paired = recovery_interval(same, SampleScores.mean_of(teacher), higher_is_better=True)
    unpaired = recovery_interval(apart, SampleScores.mean_of(teacher), higher_is_better=True)
    assert paired is not None
    assert unpaired is not None
    recovery = 100 * same.value() / teacher.mean()
    assert paired.low < recovery < paired.high
    assert paired.high - paired.low < 0.5 * (unpaired.high - unpaired.low)


def test_the_interval_turns_the_quotient_over_where_lower_is_better() -> None:
    teacher = SampleScores(np.full(50, 1.0), np.ones(50), exponential=True)
    student = SampleScores(np.full(50, 2.0), np.ones(50), exponential=True)
    interval = recovery_interval(student, teacher, higher_is_better=False)
    assert interval is not None
    assert interval.low == pytest.approx(100 / math.e)


def test_there_is_no_interval_over_other_samples_or_of_nothing() -> None:
    some, fewer = SampleScores.mean_of(np.ones(5)), SampleScores.mean_of(np.ones(4))
    assert recovery_interval(some, fewer, higher_is_better=True) is None
    assert recovery_interval(some, SampleScores.mean_of(np.zeros(5)), higher_is_better=True) is None
    assert spread(SampleScores.mean_of(np.ones(0))) is None


def test_the_spread_of_a_share_is_that_of_the_binomial() -> None:
    interval = spread(SampleScores.mean_of(np.arange(400) < 200))
    assert interval is not None
    half = 1.96 * math.sqrt(0.25 / 400)
    assert interval.low == pytest.approx(0.5 - half, abs=0.006)
    assert interval.high == pytest.approx(0.5 + half, abs=0.006)
