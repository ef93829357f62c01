from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import ValidationError

from limbeck.api.report import Environment, LossHistory, Report, Row, SampleComparison

FIGURES = ("parameters", "macs", "artefactBytes", "peakMemoryBytes", "latency", "agreementPercent", "ece", "worstGap")


def row(label: str = "int8", kind: str = "Step", **changes: Any) -> dict[str, Any]:
    nothing: dict[str, Any] = {"parameters": None, "macs": None, "artefactBytes": None, "peakMemoryBytes": None}
    return (
        {"label": label, "kind": kind, "latency": [], "unmeasured": dict.fromkeys(FIGURES, "not tried"), **nothing}
        | {"metrics": {"score": {"value": 0.5, "recoveryPercent": 90.0}}}
        | changes
    )


def report(**changes: Any) -> dict[str, Any]:
    return {
        "version": 1,
        "job": "emoji",
        "task": "ImageText",
        "createdAt": datetime(2026, 11, 24, tzinfo=UTC),
        "mainMetric": "score",
        "environment": {"device": "cpu", "cpu": "x", "numCores": 2, "numThreads": 1, "platform": "p", "versions": {}},
        "rows": [row("teacher", "Teacher"), row()],
        "gate": {"passed": True},
        "badSamples": {"total": 0, "seen": 10},
    } | changes


@pytest.mark.parametrize("field", FIGURES)
def test_a_null_figure_without_a_reason_is_refused_by_its_field(field: str) -> None:
    reasons = {name: "not tried" for name in FIGURES if name != field}
    with pytest.raises(ValidationError, match=rf"'int8' must give a reason in `unmeasured`.*got none for {field};"):
        Row.model_validate(row(unmeasured=reasons))


def test_a_metric_without_a_value_needs_a_reason_too() -> None:
    with pytest.raises(ValidationError, match=r"got none for metrics\.score;"):
        Row.model_validate(row(metrics={"score": {"value": None, "recoveryPercent": 1.0}}))


@pytest.mark.parametrize("field", ["artefactBytes", "peakMemoryBytes"])
def test_zero_cannot_stand_for_what_was_not_measured(field: str) -> None:
    with pytest.raises(ValidationError, match=field):
        Row.model_validate(row(**{field: 0}))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_figure_that_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(ValidationError, match="finite"):
        Row.model_validate(row(metrics={"score": {"value": value, "recoveryPercent": 1.0}}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": []}, "at least 1 item"),
        ({"rows": [row("teacher", "Teacher")]}, "must end with a step's result, got 'teacher'"),
        ({"rows": [row(), row()]}, "must have unique labels"),
        ({"mainMetric": "other"}, "must be a metric of the result, got 'other'; take one of score"),
        ({"version": 2}, "version"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_report_that_does_not_hang_together_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Report.model_validate(report(**changes))


def test_a_report_is_camel_case_on_the_wire_and_reads_back() -> None:
    original = Report.model_validate(report())
    wire = original.to_json()
    assert '"artefactBytes": null' in wire
    assert Report.model_validate_json(wire) == original


def test_a_row_reads_back_from_its_wire_form() -> None:
    original = Row.model_validate(row())
    assert original.to_wire()["artefactBytes"] is None
    assert Row.model_validate(original.to_wire()) == original


def test_rows_are_found_by_what_they_speak_of() -> None:
    rows = [row("teacher", "Teacher", artefactBytes=400), row("baseline", "Baseline"), row("a"), row(artefactBytes=100)]
    whole = Report.model_validate(report(rows=rows))
    assert whole.teacher is whole.rows[0]
    assert whole.baseline is whole.rows[1]
    assert whole.final is whole.rows[3]
    assert whole.size_ratio(whole.final) == 4.0
    assert whole.size_ratio(whole.rows[2]) is None


def test_without_a_teacher_there_is_no_ratio() -> None:
    whole = Report.model_validate(report(rows=[row(artefactBytes=100)]))
    assert whole.teacher is None
    assert whole.size_ratio(whole.final) is None


def test_columns_of_a_history_are_equally_long() -> None:
    with pytest.raises(ValidationError, match=r"must hold 2 values as `updates` does, got \{'kl': 1\}"):
        LossHistory(updates=[1, 2], total=[1.0, 0.5], terms={"kl": [1.0]})


@pytest.mark.parametrize(
    "image",
    ["https://example.org/a.png", "data:text/html;base64,AAAA", "data:image/svg+xml;base64,AAAA", "javascript:x"],
)
def test_an_image_that_is_no_inline_bitmap_is_refused(image: str) -> None:
    with pytest.raises(ValidationError, match="image"):
        SampleComparison.model_validate({"key": "a", "image": image, "student": {"text": "b"}})


def test_an_environment_without_threads_is_refused() -> None:
    with pytest.raises(ValidationError, match="numThreads"):
        Environment.model_validate(report()["environment"] | {"numThreads": 0})


def test_every_field_of_the_report_is_described() -> None:
    schema = Report.model_json_schema()
    undescribed = [
        f"{name}.{field}"
        for name, model in {"Report": schema, **schema["$defs"]}.items()
        for field, entry in model.get("properties", {}).items()
        if not entry.get("description")
    ]
    assert undescribed == []
