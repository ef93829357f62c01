from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from limbeck.api.report import LossHistory, Report, Row, SliceValue, StepReport
from limbeck_runtime.report.charts import MAX_SLICES_SHOWN, loss_curves, slice_bars, trade_off

MAIN = "image_to_text_recall@10"
ReportOf = Callable[..., Report]


def changed(report: Report, **final: object) -> list[Row]:
    return [*report.rows[:-1], report.final.model_copy(update=final)]


def test_each_model_is_a_disc_at_its_size_and_quality_with_its_latency_as_area(report_of: ReportOf) -> None:
    chart = trade_off(report_of())
    assert chart is not None
    discs = {trace["text"][0]: trace for trace in chart.figure["data"] if "text" in trace}
    assert (discs["int8"]["x"], discs["int8"]["y"]) == ([8.76], [0.601])
    areas = {label: (trace["marker"]["size"] - 12) ** 2 for label, trace in discs.items()}
    assert areas["teacher"] / areas["int8"] == pytest.approx(21.2 / 6.2)


def test_the_target_is_a_corner_up_to_its_size_and_from_its_quality_on(report_of: ReportOf) -> None:
    chart = trade_off(report_of())
    assert chart is not None
    [corner] = chart.figure["layout"]["shapes"]
    assert corner["x1"] == pytest.approx(134.9 / 12)
    assert corner["y0"] == pytest.approx(0.612 * 0.97)
    assert math.log10(corner["x0"]) == pytest.approx(chart.figure["layout"]["xaxis"]["range"][0])


def test_a_model_without_a_size_is_left_out_and_one_alone_is_no_chart(report_of: ReportOf) -> None:
    report = report_of()
    unknown = changed(report, artefact_bytes=None, unmeasured=report.final.unmeasured | {"artefactBytes": "not saved"})
    chart = trade_off(report_of(rows=unknown))
    assert chart is not None
    assert "int8" not in [trace["text"][0] for trace in chart.figure["data"] if "text" in trace]
    assert trade_off(report_of(rows=[report.final])) is None


def test_slices_go_from_the_worst_on_and_the_furthest_behind_is_set_off(report_of: ReportOf) -> None:
    [chart] = slice_bars(report_of())
    bars, marks = chart.figure["data"]
    assert bars["x"] == sorted(bars["x"])
    assert bars["y"][0] == "Symbols  <i>31</i>"
    assert bars["marker"]["color"] == ["$fail"] + ["$copper"] * 9
    assert bars["marker"]["opacity"][bars["y"].index("Component  <i>3</i>")] < 0.5
    assert marks["y"] == bars["y"]
    assert "Furthest behind: Symbols, by 0.191." in chart.note


def test_of_many_slices_the_worst_are_shown_and_the_rest_counted(report_of: ReportOf) -> None:
    values = {f"value{index:03}": SliceValue(count=9, metrics={MAIN: index / 100}) for index in range(100)}
    [chart] = slice_bars(report_of(rows=changed(report_of(), slices={"subcategory": values})))
    assert len(chart.figure["data"][0]["x"]) == MAX_SLICES_SHOWN
    assert chart.figure["data"][0]["x"][0] == 0.0
    assert f"{100 - MAX_SLICES_SHOWN} better ones are in report.json" in chart.note


def training(**columns: list[float | None]) -> list[StepReport]:
    total = columns.pop("total")
    history = LossHistory(updates=list(range(1, len(total) + 1)), total=total, terms=columns)
    return [StepReport(name="distil", method="distil", seconds=1.0, history=history)]


def test_the_loss_is_drawn_in_total_and_by_term(report_of: ReportOf) -> None:
    [chart] = loss_curves(report_of(steps=training(total=[3.0, None], kl=[1.0, 0.5], hard=[2.0, 1.0])))
    assert [trace["name"] for trace in chart.figure["data"]] == ["total", "kl", "hard"]
    assert chart.figure["data"][0]["y"] == [3.0, None]


def test_a_single_term_is_not_drawn_twice(report_of: ReportOf) -> None:
    [chart] = loss_curves(report_of(steps=training(total=[3.0, 2.0], kl=[3.0, 2.0])))
    assert [trace["name"] for trace in chart.figure["data"]] == ["total"]


@pytest.mark.parametrize(("total", "scale"), [([3.0, 1.0], None), ([100.0, 1.0], "log"), ([100.0, 0.0], None)])
def test_a_loss_that_falls_by_far_is_drawn_on_a_logarithmic_scale(
    report_of: ReportOf, total: list[float | None], scale: str | None
) -> None:
    [chart] = loss_curves(report_of(steps=training(total=total)))
    assert chart.figure["layout"]["yaxis"].get("type") == scale
