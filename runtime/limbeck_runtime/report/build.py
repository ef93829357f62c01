"""From measurements to the report's models: rows with recovery and worst gap, loss curves, bad samples.

Pure. Left out: measuring (`limbeck_runtime.evaluation`), the verdict (`gate`) and drawing (`html`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from limbeck.api.report import (
    BadSampleRecord,
    BadSamples,
    LatencyFigure,
    LossHistory,
    MetricValue,
    Report,
    Row,
    RowKind,
    SliceValue,
    WorstGap,
)
from limbeck_runtime.report import wording
from limbeck_runtime.report.gate import recovery_percent
from limbeck_runtime.telemetry.progress import ProgressRecord

# A slice value with fewer samples says more about chance than about the model.
MIN_SLICE_COUNT = 5
MAX_BAD_SAMPLES_NAMED = 100
MAX_CURVE_POINTS = 400

# Metrics where less is better; all others are scores.
LOWER_IS_BETTER = frozenset({"ece", "loss", "perplexity", "word_error_rate", "modality_gap"})


@dataclass(frozen=True)
class Measurements:
    """What was measured of one model; None where something was not, with the reason in `unmeasured`.

    `unmeasured` is keyed by the report's field names: parameters, macs, artefactBytes, peakMemoryBytes,
    latency, agreementPercent, ece, worstGap, metrics.<name>.
    """

    metrics: Mapping[str, float]
    parameters: int | None = None
    macs: int | None = None
    artefact_bytes: int | None = None
    peak_memory_bytes: int | None = None
    latency: Sequence[LatencyFigure] = ()
    agreement_percent: float | None = None
    ece: float | None = None
    slices: Mapping[str, Mapping[str, SliceValue]] = field(default_factory=dict)
    artefact: str = ""
    unmeasured: Mapping[str, str] = field(default_factory=dict)


def build_row(
    label: str, kind: RowKind, method: str, measured: Measurements, main_metric: str, teacher: Row | None
) -> Row:
    """The row of one model, with its recovery against `teacher` and its worst gap.

    Raises ValueError when a figure is None and `measured.unmeasured` does not say why.
    """
    unmeasured = dict(measured.unmeasured)
    metrics = {name: _metric(name, value, kind, teacher, unmeasured) for name, value in measured.metrics.items()}
    if kind is RowKind.TEACHER:
        unmeasured.setdefault("agreementPercent", "the teacher agrees with itself")
    elif teacher is None and measured.agreement_percent is None:
        unmeasured.setdefault("agreementPercent", "the job has no teacher")
    gap = worst_gap(measured.slices, main_metric, metrics.get(main_metric))
    if gap is None:
        reason = "no slice has enough samples" if measured.slices else "the job names no slices"
        unmeasured.setdefault("worstGap", reason)
    return Row(
        label=label,
        kind=kind,
        method=method,
        artefact=measured.artefact,
        parameters=measured.parameters,
        macs=measured.macs,
        artefact_bytes=measured.artefact_bytes,
        peak_memory_bytes=measured.peak_memory_bytes,
        latency=sorted(measured.latency, key=lambda entry: entry.batch_size),
        metrics=metrics,
        agreement_percent=measured.agreement_percent,
        ece=measured.ece,
        slices={column: dict(values) for column, values in measured.slices.items()},
        worst_gap=gap,
        unmeasured=unmeasured,
    )


def worst_gap(
    slices: Mapping[str, Mapping[str, SliceValue]], main_metric: str, whole: MetricValue | None
) -> WorstGap | None:
    """The slice value that is furthest behind the whole in the main metric, 0 where none is behind.

    Values with fewer than `MIN_SLICE_COUNT` samples do not count. None without any value to compare.
    """
    if whole is None or whole.value is None:
        return None
    sign = 1 if whole.higher_is_better else -1
    gaps = [
        (sign * (whole.value - part.metrics[main_metric]), column, value, part.count)
        for column, values in slices.items()
        for value, part in values.items()
        if part.count >= MIN_SLICE_COUNT and main_metric in part.metrics
    ]
    if not gaps:
        return None
    gap, column, value, count = max(gaps, key=lambda entry: entry[0])
    return WorstGap(slice=column, value=value, count=count, gap=max(gap, 0.0))


def summarise_bad_samples(bad: Iterable[BadSampleRecord], num_seen: int) -> BadSamples:
    """Counts by reason, and the first of the samples by name."""
    records = list(bad)
    return BadSamples(
        total=len(records),
        seen=num_seen,
        by_reason=dict(Counter(record.reason for record in records).most_common()),
        examples=records[:MAX_BAD_SAMPLES_NAMED],
    )


def loss_history(
    records: Sequence[ProgressRecord], step: str, max_points: int = MAX_CURVE_POINTS
) -> LossHistory | None:
    """The loss of one step as a chart needs it, evenly thinned, first and last kept; None if it has none."""
    mine = [record for record in records if record.step == step]
    if not mine:
        return None
    stride = max(1, math.ceil((len(mine) - 1) / max(1, max_points - 1)))
    kept = mine[::stride]
    if kept[-1] is not mine[-1]:
        kept.append(mine[-1])
    terms = list(dict.fromkeys(term for record in kept for term in record.terms))
    return LossHistory(
        updates=[record.update for record in kept],
        total=[_finite(record.loss) for record in kept],
        terms={term: [_finite(record.terms.get(term)) for record in kept] for term in terms},
    )


def short_table(report: Report) -> list[list[str]]:
    """The few figures that a terminal shows: headings, then a line for each row."""
    batch_size = wording.shown_batch_size(report)
    speed = "latency" if batch_size is None else f"latency (batch {batch_size})"
    head = ["model", "size", "smaller", "parameters", wording.in_words(report.main_metric), "recovery", speed]
    lines = []
    for row in report.rows:
        metric = row.metrics.get(report.main_metric)
        lines.append(
            [
                row.label,
                wording.in_bytes(row.artefact_bytes),
                wording.in_times(report.size_ratio(row)),
                wording.in_count(row.parameters),
                wording.in_number(metric.value if metric else None),
                wording.in_percent(metric.recovery_percent if metric else None),
                wording.in_seconds(row.p50_seconds(batch_size) if batch_size else None),
            ]
        )
    return [head, *lines]


def _metric(name: str, value: float, kind: RowKind, teacher: Row | None, unmeasured: dict[str, str]) -> MetricValue:
    higher_is_better = name not in LOWER_IS_BETTER
    finite = _finite(value)
    if finite is None:
        unmeasured.setdefault(f"metrics.{name}", f"the value is {value}")
    if kind is RowKind.TEACHER:
        recovery, reason = None, "recovery is taken of the teacher"
    elif teacher is None:
        recovery, reason = None, "the job has no teacher"
    else:
        recovery, reason = recovery_percent(value, teacher.metric(name), higher_is_better=higher_is_better)
    if recovery is None:
        unmeasured.setdefault(f"metrics.{name}.recoveryPercent", reason)
    return MetricValue(value=finite, higher_is_better=higher_is_better, recovery_percent=recovery)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
