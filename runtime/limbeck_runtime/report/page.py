"""What the page says, in words: the dials, the sentence below them, the before/after table.

Pure: from a Report to small records that the template only lays out. Left out: markup and charts.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field

from limbeck.api.report import GateCheck, Report, Row, RowKind
from limbeck_runtime.report import wording

# Name and unit of each check as the page shows them.
_CHECKS = {
    "sizeRatio": ("Size", "x smaller"),
    "minRecoveryPercent": ("Quality kept", " %"),
    "maxLatencyPercent": ("Time for an answer", " %"),
}


@dataclass(frozen=True)
class Dial:
    """One part of the target as a bar with a mark; lengths are percent of the bar's full length."""

    label: str
    reached: str
    wanted: str
    passed: bool
    detail: str
    reached_length: float
    wanted_length: float


@dataclass(frozen=True)
class Cell:
    """One figure: the text, what stands small beside it, and the numbers of its notes."""

    text: str
    aside: str = ""
    note: int | None = None


@dataclass(frozen=True)
class Line:
    """One figure of all models; `hint` says what it is."""

    label: str
    cells: tuple[Cell, ...]
    hint: str = ""


@dataclass(frozen=True)
class Group:
    """Lines that belong together."""

    title: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Table:
    """The before/after table: a column for each model, and the reasons for what was not measured."""

    columns: tuple[Row, ...]
    groups: tuple[Group, ...]
    notes: tuple[str, ...]


def dials(report: Report) -> list[Dial]:
    """The target against what was reached."""
    return [_dial(check) for check in report.gate.checks]


def verdict(report: Report) -> tuple[str, str]:
    """The gate in a word, and in a sentence."""
    checks = report.gate.checks
    if not checks:
        return "No target", "The job names no target, so there is nothing to pass or fail."
    failed = [_CHECKS.get(check.name, (check.name, ""))[0].lower() for check in checks if not check.passed]
    if failed:
        return "Failed", f"The target was missed in: {', '.join(failed)}."
    return "Passed", "The target was reached."


def summary(report: Report) -> str:
    """What came out, in one or two sentences; only of what was measured."""
    final, teacher, baseline = report.final, report.teacher, report.baseline
    metric = wording.in_words(report.main_metric)
    value = wording.in_number(final.metric(report.main_metric))
    size = wording.in_bytes(final.artefact_bytes)
    if teacher is None:
        return f"The result, {final.label}, takes {size} and reaches {value} in {metric}."
    parts = []
    if (ratio := report.size_ratio(final)) is not None:
        parts.append(
            f"takes {size} instead of {wording.in_bytes(teacher.artefact_bytes)} ({wording.in_times(ratio)} smaller)"
        )
    recovery = final.metrics[report.main_metric].recovery_percent
    if recovery is not None:
        before = wording.in_number(teacher.metric(report.main_metric))
        parts.append(f"keeps {wording.in_percent(recovery)} of the teacher's {metric} ({value} of {before})")
    if (speed := _speed(report, final, teacher)) is not None:
        parts.append(speed)
    if not parts:
        return ""
    sentence = f"The result, {final.label}, {_joined(parts)}."
    if baseline is not None and (without := baseline.metric(report.main_metric)) is not None:
        sentence += f" Trained without the teacher, the same student reaches {wording.in_number(without)}."
    return sentence


def load_lines(report: Report) -> str:
    """Python that loads the result."""
    return f"import limbeck_runtime\n\nmodel = limbeck_runtime.load({json.dumps(report.model_uri or 'model')})"


def table(report: Report) -> Table:
    """All figures of all models."""
    notes = _Notes()
    rows = tuple(report.rows)

    def line(label: str, name: str, cell: Callable[[Row], Cell], hint: str = "") -> Line:
        return Line(label, tuple(notes.marked(cell(row), row, name) for row in rows), hint)

    def quality_line(name: str) -> Line:
        hint = "" if _higher_is_better(rows, name) else "lower is better"
        return line(wording.in_words(name), f"metrics.{name}", lambda row: _metric(row, name), hint)

    def speed_line(batch_size: int) -> Line:
        return line(f"Batch {batch_size}", "latency", lambda row: _latency(row, batch_size), "median")

    size = Group(
        "Size",
        (
            line("On disk", "artefactBytes", lambda row: _size(report, row)),
            line("Parameters", "parameters", lambda row: Cell(wording.in_count(row.parameters))),
            line("Operations", "macs", lambda row: Cell(wording.in_count(row.macs)), "multiply-accumulates a sample"),
            line("Peak memory", "peakMemoryBytes", lambda row: Cell(wording.in_bytes(row.peak_memory_bytes))),
        ),
    )
    batch_sizes = sorted({entry.batch_size for row in rows for entry in row.latency})
    speed = Group("Time for a call", tuple(speed_line(batch_size) for batch_size in batch_sizes))
    names = list(dict.fromkeys([report.main_metric, *(name for row in rows for name in row.metrics)]))
    quality = Group("Quality", tuple(quality_line(name) for name in names))
    trust = Group(
        "Trust",
        (
            line("Same answer as the teacher", "agreementPercent", _agreement),
            line("Calibration error", "ece", lambda row: Cell(wording.in_number(row.ece)), "expected, 0 is best"),
            line("Worst slice falls behind by", "worstGap", _gap),
        ),
    )
    groups = tuple(group for group in (size, speed, quality, trust) if group.lines)
    return Table(rows, groups, tuple(notes.texts))


@dataclass
class _Notes:
    """Numbers the reasons as they are met, each once."""

    texts: list[str] = field(default_factory=list)

    def marked(self, cell: Cell, row: Row, name: str) -> Cell:
        """The cell with the number of its note, if its figure was not measured."""
        if cell.text != wording.MISSING:
            return cell
        reason = row.unmeasured.get(name)
        # That the teacher has no agreement with itself needs no note.
        if reason is None or (row.kind is RowKind.TEACHER and name == "agreementPercent"):
            return cell
        if reason not in self.texts:
            self.texts.append(reason)
        return Cell(cell.text, cell.aside, self.texts.index(reason) + 1)


def _dial(check: GateCheck) -> Dial:
    label, unit = _CHECKS.get(check.name, (check.name, ""))
    bound = "at most" if check.at_most else "at least"
    full = 1.15 * max(check.wanted, check.reached or 0.0) or 1.0
    return Dial(
        label=label,
        reached="not measured" if check.reached is None else wording.unlike(check.reached, check.wanted, unit),
        wanted=f"wanted {bound} {check.wanted:g}{unit}",
        passed=check.passed,
        detail=wording.in_words(check.detail),
        reached_length=100 * (check.reached or 0.0) / full,
        wanted_length=100 * check.wanted / full,
    )


def _speed(report: Report, final: Row, teacher: Row) -> str | None:
    batch_size = wording.shown_batch_size(report)
    if batch_size is None:
        return None
    after, before = final.p50_seconds(batch_size), teacher.p50_seconds(batch_size)
    if after is None or before is None:
        return None
    return f"answers in {wording.in_seconds(after)} instead of {wording.in_seconds(before)} at batch {batch_size}"


def _size(report: Report, row: Row) -> Cell:
    ratio = report.size_ratio(row)
    aside = "" if ratio is None or row.kind is RowKind.TEACHER else f"{wording.in_times(ratio)} smaller"
    return Cell(wording.in_bytes(row.artefact_bytes), aside)


def _agreement(row: Row) -> Cell:
    return Cell(wording.in_percent(row.agreement_percent))


def _latency(row: Row, batch_size: int) -> Cell:
    entry = next((entry for entry in row.latency if entry.batch_size == batch_size), None)
    if entry is None:
        return Cell(wording.MISSING)
    return Cell(wording.in_seconds(entry.p50_seconds), f"p95 {wording.in_seconds(entry.p95_seconds)}")


def _metric(row: Row, name: str) -> Cell:
    metric = row.metrics.get(name)
    if metric is None:
        return Cell(wording.MISSING)
    return Cell(
        wording.in_number(metric.value),
        "" if metric.recovery_percent is None else wording.in_percent(metric.recovery_percent),
    )


def _higher_is_better(rows: tuple[Row, ...], name: str) -> bool:
    return all(row.metrics[name].higher_is_better for row in rows if name in row.metrics)


def _gap(row: Row) -> Cell:
    gap = row.worst_gap
    return Cell(wording.MISSING) if gap is None else Cell(wording.in_number(gap.gap), f"{gap.value}, n={gap.count}")


def _joined(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
