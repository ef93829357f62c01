from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from limbeck.api.report import BadSampleRecord, LatencyFigure, MetricValue, Report, Row, RowKind, SliceValue
from limbeck_runtime.report.build import (
    MAX_BAD_SAMPLES_NAMED,
    Measurements,
    build_row,
    loss_history,
    short_table,
    summarise_bad_samples,
    worst_gap,
)
from limbeck_runtime.telemetry.progress import ProgressRecord

UNMEASURED = dict.fromkeys(["parameters", "macs", "artefactBytes", "peakMemoryBytes", "latency", "ece"], "not tried")


def row(measured: Measurements, kind: RowKind = RowKind.STEP, teacher: Row | None = None) -> Row:
    return build_row("a", kind, "distil", measured, "score", teacher)


def measured(unmeasured: Mapping[str, str] = UNMEASURED, **metrics: float) -> Measurements:
    return Measurements(metrics=metrics, agreement_percent=50.0, unmeasured=unmeasured)


def slices(**parts: tuple[int, float]) -> dict[str, dict[str, SliceValue]]:
    return {
        "category": {name: SliceValue(count=count, metrics={"score": value}) for name, (count, value) in parts.items()}
    }


def test_each_metric_is_set_against_the_teachers() -> None:
    teacher = row(measured(score=0.8, loss=2.0), RowKind.TEACHER)
    student = row(measured(score=0.6, loss=2.5), teacher=teacher)
    recovered = {name: (metric.value, metric.higher_is_better) for name, metric in student.metrics.items()}
    assert recovered == {"score": (0.6, True), "loss": (2.5, False)}
    assert student.metrics["score"].recovery_percent == pytest.approx(75)
    assert student.metrics["loss"].recovery_percent == pytest.approx(80)


@pytest.mark.parametrize(
    ("kind", "teacher_score", "reason"),
    [
        (RowKind.TEACHER, None, "recovery is taken of the teacher"),
        (RowKind.STEP, None, "the job has no teacher"),
        (RowKind.STEP, 0.0, "the teacher's metric is 0, and a share of that says nothing"),
    ],
)
def test_a_recovery_that_cannot_be_had_has_its_reason(kind: RowKind, teacher_score: float | None, reason: str) -> None:
    teacher = None if teacher_score is None else row(measured(score=teacher_score), RowKind.TEACHER)
    built = row(measured(score=0.6), kind, teacher)
    assert built.metrics["score"].recovery_percent is None
    assert built.unmeasured["metrics.score.recoveryPercent"] == reason


def test_a_metric_that_is_not_finite_is_null_and_says_what_it_was() -> None:
    built = row(measured(score=math.nan))
    assert built.metrics["score"].value is None
    assert built.unmeasured["metrics.score"] == "the value is nan"


def test_a_figure_that_is_missing_without_a_reason_is_refused_by_name() -> None:
    reasons = {name: reason for name, reason in UNMEASURED.items() if name != "macs"}
    with pytest.raises(ValueError, match=r"must give a reason in `unmeasured`.*got none for macs"):
        row(measured(reasons, score=0.5))


def test_a_figure_of_zero_is_refused_where_zero_cannot_be_measured() -> None:
    with pytest.raises(ValueError, match="artefact_bytes"):
        row(Measurements(metrics={"score": 0.5}, artefact_bytes=0, agreement_percent=1.0, unmeasured=UNMEASURED))


def test_latencies_are_in_the_order_of_their_batch_sizes() -> None:
    figures = [LatencyFigure(batch_size=n, p50_seconds=1, p95_seconds=1, num_calls=5) for n in (32, 1)]
    built = row(Measurements(metrics={}, latency=figures, agreement_percent=1.0, unmeasured=UNMEASURED))
    assert [entry.batch_size for entry in built.latency] == [1, 32]


@pytest.mark.parametrize(
    ("parts", "higher_is_better", "value", "gap"),
    [
        ({"flags": (20, 0.3), "food": (20, 0.7)}, True, "flags", 0.2),
        ({"flags": (20, 0.3), "food": (20, 0.7)}, False, "food", 0.2),
        ({"rare": (4, 0.0), "food": (5, 0.4)}, True, "food", 0.1),
        ({"food": (20, 0.6)}, True, "food", 0.0),
    ],
    ids=["the lowest", "the highest where lower is better", "too few samples do not count", "none is behind"],
)
def test_the_worst_gap_is_the_furthest_behind_the_whole(
    parts: Any, higher_is_better: bool, value: str, gap: float
) -> None:
    found = worst_gap(slices(**parts), "score", MetricValue(value=0.5, higher_is_better=higher_is_better))
    assert found is not None
    assert (found.slice, found.value, found.gap) == ("category", value, pytest.approx(gap))


@pytest.mark.parametrize(
    ("parts", "reason"), [({}, "the job names no slices"), ({"rare": (2, 0.1)}, "no slice has enough samples")]
)
def test_without_slices_to_compare_the_gap_is_null_with_its_reason(parts: Any, reason: str) -> None:
    given = slices(**parts) if parts else {}
    built = row(Measurements(metrics={"score": 0.5}, slices=given, agreement_percent=1.0, unmeasured=UNMEASURED))
    assert built.worst_gap is None
    assert built.unmeasured["worstGap"] == reason


def test_bad_samples_are_counted_by_reason_and_the_first_are_named() -> None:
    bad = [BadSampleRecord(shard="a.tar", key=str(index), reason="EmptyText") for index in range(150)]
    bad.append(BadSampleRecord(shard="b.tar", key="x", reason="TruncatedImage"))
    summary = summarise_bad_samples(iter(bad), 4000)
    assert (summary.total, summary.seen, summary.by_reason) == (151, 4000, {"EmptyText": 150, "TruncatedImage": 1})
    assert [record.key for record in summary.examples] == [str(index) for index in range(MAX_BAD_SAMPLES_NAMED)]


def history(num: int, step: str = "distil") -> list[ProgressRecord]:
    return [ProgressRecord(step, update, 0.0, 1 / update, {"kl": 1 / update}) for update in range(1, num + 1)]


@pytest.mark.parametrize("num", [1, 2, 399, 400, 401, 1000, 12_345])
def test_a_long_history_is_thinned_with_its_first_and_last_kept(num: int) -> None:
    curve = loss_history(history(num), "distil", max_points=400)
    assert curve is not None
    assert len(curve.updates) <= 401
    assert len(curve.updates) >= min(num, 200)
    assert (curve.updates[0], curve.updates[-1]) == (1, num)
    assert curve.total[-1] == curve.terms["kl"][-1] == 1 / num


def test_the_history_is_that_of_the_step_alone() -> None:
    curve = loss_history([*history(3), *history(5, "recover")], "recover")
    assert curve is not None
    assert curve.updates == [1, 2, 3, 4, 5]
    assert loss_history(history(3), "int8") is None


def test_a_loss_that_was_not_finite_and_a_term_that_came_later_leave_gaps_in_the_curves() -> None:
    records = [
        ProgressRecord("distil", 1, 0.0, math.nan, {"kl": 1.0}),
        ProgressRecord("distil", 2, 0.0, 3.0, {"kl": 1.0, "hard": 2.0}),
    ]
    curve = loss_history(records, "distil")
    assert curve is not None
    assert curve.total == [None, 3.0]
    assert curve.terms == {"kl": [1.0, 1.0], "hard": [None, 2.0]}


def test_the_short_table_has_a_line_for_each_row(report_of: Callable[..., Report]) -> None:
    assert short_table(report_of()) == [
        ["model", "size", "smaller", "parameters", "image to text recall@10", "recovery", "latency (batch 1)"],
        ["teacher", "135 MB", "1x", "33.7 M", "0.612", "-", "21.2 ms"],
        ["baseline", "33.6 MB", "4.01x", "8.40 M", "0.508", "83.0 %", "8.10 ms"],
        ["distil", "33.6 MB", "4.01x", "8.40 M", "0.604", "98.7 %", "8.00 ms"],
        ["int8", "8.76 MB", "15.4x", "8.40 M", "0.601", "98.2 %", "6.20 ms"],
    ]


def test_the_report_as_json_is_the_reviewed_one_and_reads_back(
    report_of: Callable[..., Report], golden: Callable[[str, str], None]
) -> None:
    report = report_of(samples=[], steps=[])
    golden("report.json", report.to_json() + "\n")
    assert Report.model_validate_json(report.to_json()) == report
