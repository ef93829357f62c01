"""From the report to the few figures that the job's status holds. Pure."""

from __future__ import annotations

from limbeck.api.report import Report
from limbeck.api.status import MetricPair, Result

# As many as the status may hold.
MAX_METRICS = 64


def result_of(report: Report, report_uri: str, model_uri: str) -> Result:
    """What came out. Without a teacher to compare with there is neither a size ratio nor a recovery."""
    main = report.final.metrics[report.main_metric]
    # The main metric first, whatever has to be left out.
    names = sorted(report.final.metrics, key=lambda name: name != report.main_metric)
    pairs = [
        MetricPair(name=name, teacher=report.teacher.metric(name) if report.teacher else None, student=value)
        for name in names
        if (value := report.final.metric(name)) is not None
    ]
    return Result(
        size_ratio=report.size_ratio(report.final),
        recovery_percent=main.recovery_percent,
        metrics=pairs[:MAX_METRICS],
        report_uri=report_uri,
        model_uri=model_uri,
    )
