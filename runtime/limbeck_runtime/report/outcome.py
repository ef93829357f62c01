"""From the report to the few figures that the job's status holds. Pure."""

from __future__ import annotations

from limbeck.api.report import Report
from limbeck.api.status import MetricPair, Result

# As many as the status may hold.
MAX_METRICS = 64


def result_of(report: Report, report_uri: str, model_uri: str) -> Result | None:
    """What came out. None without a size ratio, which takes a teacher's artefact to compare with."""
    size_ratio = report.size_ratio(report.final)
    if size_ratio is None:
        return None
    main = report.final.metrics[report.main_metric]
    # The main metric first, whatever has to be left out.
    names = sorted(report.final.metrics, key=lambda name: name != report.main_metric)
    pairs = [
        MetricPair(name=name, teacher=report.teacher.metric(name) if report.teacher else None, student=value)
        for name in names
        if (value := report.final.metric(name)) is not None
    ]
    return Result(
        size_ratio=size_ratio,
        recovery_percent=main.recovery_percent,
        metrics=pairs[:MAX_METRICS],
        report_uri=report_uri,
        model_uri=model_uri,
    )
