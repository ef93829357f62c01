from __future__ import annotations

from collections.abc import Callable

from limbeck.api.report import Report
from limbeck_runtime.report.outcome import MAX_METRICS, result_of


def test_the_status_holds_ratio_recovery_and_the_main_metric_first(report_of: Callable[..., Report]) -> None:
    report = report_of()
    result = result_of(report, "s3://results/report.html", "s3://results/model")
    assert result.size_ratio == report.size_ratio(report.final)
    assert result.recovery_percent == report.final.metrics[report.main_metric].recovery_percent
    assert result.metrics[0].name == report.main_metric
    assert report.teacher is not None
    assert result.metrics[0].teacher == report.teacher.metric(report.main_metric)
    assert result.metrics[0].student == report.final.metric(report.main_metric)
    assert (result.report_uri, result.model_uri) == ("s3://results/report.html", "s3://results/model")


def test_metrics_that_find_no_room_are_left_out_but_never_the_main_one(report_of: Callable[..., Report]) -> None:
    report = report_of()
    main = report.final.metrics[report.main_metric]
    many = {f"m{number}": main for number in range(MAX_METRICS + 5)} | {report.main_metric: main}
    final = report.final.model_copy(update={"metrics": many})
    result = result_of(report.model_copy(update={"rows": [*report.rows[:-1], final]}), "", "")
    assert len(result.metrics) == MAX_METRICS
    assert result.metrics[0].name == report.main_metric


def test_without_a_teacher_to_compare_with_there_is_a_result_without_ratio(report_of: Callable[..., Report]) -> None:
    report = report_of()
    result = result_of(report.model_copy(update={"rows": report.rows[1:]}), "s3://results/report.html", "")
    assert result.size_ratio is None
    assert result.report_uri == "s3://results/report.html"
    assert (result.metrics[0].name, result.metrics[0].teacher) == (report.main_metric, None)
    assert result.metrics[0].student == report.final.metric(report.main_metric)
