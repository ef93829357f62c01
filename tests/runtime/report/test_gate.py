from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from limbeck.api.report import LatencyFigure, Row
from limbeck.api.v1alpha1.outcome import Target
from limbeck_runtime.report.gate import decide, recovery_percent

RowOf = Callable[..., Row]


def times(**p50_by_batch: float) -> list[LatencyFigure]:
    return [
        LatencyFigure(batch_size=int(batch[1:]), p50_seconds=p50, p95_seconds=p50, num_calls=20)
        for batch, p50 in p50_by_batch.items()
    ]


def target(**fields: Any) -> Target:
    return Target(**({"size_ratio": 4, "min_recovery_percent": 97} | fields))


def outcome(
    row_of: RowOf, wanted: Target, before: dict[str, Any], after: dict[str, Any]
) -> dict[str, tuple[Any, bool]]:
    """Name of each check: what was reached, and whether that passed."""
    before = {"value": 1.0, "artefact_bytes": 400, "label": "teacher"} | before
    after = {"value": 1.0, "artefact_bytes": 100} | after
    verdict = decide(wanted, "score", row_of(**after), row_of(**before))
    assert verdict.passed == all(check.passed for check in verdict.checks)
    return {check.name: (check.reached, check.passed) for check in verdict.checks}


def test_without_a_target_the_gate_passes_and_checks_nothing(row_of: RowOf) -> None:
    verdict = decide(None, "score", row_of(0.1), row_of(0.9))
    assert verdict.passed
    assert verdict.checks == []


@pytest.mark.parametrize(("num_bytes", "passed"), [(100, True), (101, False), (99, True)])
def test_size_passes_from_the_wanted_ratio_on(row_of: RowOf, num_bytes: int, passed: bool) -> None:
    checks = outcome(row_of, target(), {}, {"artefact_bytes": num_bytes})
    assert checks["sizeRatio"] == (400 / num_bytes, passed)


@pytest.mark.parametrize(
    ("value", "before", "higher_is_better", "reached", "passed"),
    [
        (0.97, 1.0, True, 97.0, True),
        (0.96, 1.0, True, 96.0, False),
        (1.2, 1.0, True, 120.0, True),
        (10.0, 9.8, False, 98.0, True),  # perplexity: the quotient is turned over
        (10.0, 9.0, False, 90.0, False),
        (0.0, 0.5, False, None, True),  # an error of zero is as good as it gets, though no quotient says so
        (0.0, 0.0, True, None, False),
        (0.5, 0.0, True, None, False),
        (-0.5, 0.5, True, None, False),
        (None, 0.5, True, None, False),
        (0.5, None, True, None, False),
    ],
)
def test_recovery_follows_the_direction_of_the_metric(
    row_of: RowOf,
    value: float | None,
    before: float | None,
    higher_is_better: bool,
    reached: float | None,
    passed: bool,
) -> None:
    checks = outcome(
        row_of,
        target(),
        {"value": before, "higher_is_better": higher_is_better},
        {"value": value, "higher_is_better": higher_is_better},
    )
    assert checks["minRecoveryPercent"] == (pytest.approx(reached), passed)


def test_a_target_of_no_recovery_still_wants_a_value(row_of: RowOf) -> None:
    checks = outcome(row_of, target(min_recovery_percent=0), {}, {"value": None})
    assert checks["minRecoveryPercent"] == (None, False)


def test_latency_is_judged_at_the_worst_batch_size_that_both_were_timed_at(row_of: RowOf) -> None:
    wanted = target(max_latency_percent=50)
    before, after = {"latency": times(b1=1.0, b32=10.0)}, {"latency": times(b1=0.4, b32=6.0, b64=99.0)}
    assert outcome(row_of, wanted, before, after)["maxLatencyPercent"] == (pytest.approx(60), False)
    after = {"latency": times(b1=0.4, b32=5.0)}
    assert outcome(row_of, wanted, before, after)["maxLatencyPercent"] == (pytest.approx(50), True)


def test_latency_is_checked_only_when_it_is_asked_for(row_of: RowOf) -> None:
    assert "maxLatencyPercent" not in outcome(row_of, target(), {"latency": times(b1=1.0)}, {"latency": times(b1=9.0)})


@pytest.mark.parametrize(
    ("name", "after"), [("sizeRatio", {"artefact_bytes": None}), ("maxLatencyPercent", {"latency": []})]
)
def test_what_was_not_measured_fails_its_check_and_the_reason_is_told(
    row_of: RowOf, name: str, after: dict[str, Any]
) -> None:
    before = row_of(1.0, label="teacher", artefact_bytes=400, latency=times(b1=1.0))
    final = row_of(1.0, **({"artefact_bytes": 100, "latency": times(b1=0.1)} | after))
    verdict = decide(target(max_latency_percent=50), "score", final, before)
    [check] = [check for check in verdict.checks if not check.passed]
    assert check.name == name
    assert check.reached is None
    assert "int8: not of interest" in check.detail
    assert not verdict.passed


def test_batch_sizes_that_do_not_meet_fail_the_latency_check(row_of: RowOf) -> None:
    checks = outcome(row_of, target(max_latency_percent=50), {"latency": times(b1=1.0)}, {"latency": times(b8=0.1)})
    assert checks["maxLatencyPercent"] == (None, False)


def test_without_a_teacher_there_is_no_recovery_and_size_is_that_before_compression(row_of: RowOf) -> None:
    final = row_of(0.1, artefact_bytes=100)
    verdict = decide(target(), "score", final, None, reference=row_of(0.9, label="finetune", artefact_bytes=400))
    assert [(check.name, check.passed) for check in verdict.checks] == [("sizeRatio", True)]
    assert "finetune over int8" in verdict.checks[0].detail


def test_without_anything_to_compare_with_a_size_cannot_be_reached(row_of: RowOf) -> None:
    verdict = decide(target(), "score", row_of(0.9, artefact_bytes=1), None)
    assert not verdict.passed
    assert "no teacher" in verdict.checks[0].detail


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_recovery_of_a_value_that_is_not_finite_has_a_reason_instead(value: float) -> None:
    assert recovery_percent(value, 1.0, higher_is_better=True) == (None, "the result's metric is not finite")
