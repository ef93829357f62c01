"""The page's charts as plotly figures in plain data: trade-off, loss by term, slices.

Colours are names such as `$teacher`, which the page's script replaces by those of the scheme in use,
light, dark or print. Texts that come from data are escaped here, because plotly reads tags in them.
Left out: drawing, which happens in the reader's browser.
"""

from __future__ import annotations

import html
import math
from dataclasses import dataclass
from typing import Any

from limbeck.api.report import LossHistory, Report, Row, RowKind, SliceValue
from limbeck_runtime.report import wording
from limbeck_runtime.report.build import MIN_SLICE_COUNT

Figure = dict[str, Any]
MAX_SLICES_SHOWN = 24
_TERM_COLOURS = ("$copper", "$teacher", "$pass", "$violet", "$ochre", "$muted")


@dataclass(frozen=True)
class Chart:
    """A figure with the title and the note that stand above and below it."""

    id: str
    title: str
    figure: Figure
    note: str = ""


def trade_off(report: Report) -> Chart | None:
    """Size against the main metric, one disc for each model, its area the latency; None with fewer than two."""
    metric = report.main_metric
    placed = [row for row in report.rows if row.artefact_bytes is not None and row.metric(metric) is not None]
    if len(placed) < 2:
        return None
    batch_size = wording.shown_batch_size(report)
    sizes = [(row.artefact_bytes or 1) / 1e6 for row in placed]
    values = [row.metric(metric) or 0.0 for row in placed]
    # Labels need room beside the outermost discs.
    x_range = [math.log10(min(sizes)) - 0.3, math.log10(max(sizes)) + 0.3]
    pad = 0.25 * (max(values) - min(values)) or 0.1 * abs(values[0]) or 0.1
    y_range = [min(values) - pad, max(values) + pad]
    path = [index for index, row in enumerate(placed) if row.kind is not RowKind.BASELINE]
    traces: list[Figure] = [
        {
            "type": "scatter",
            "mode": "lines",
            "x": [sizes[index] for index in path],
            "y": [values[index] for index in path],
            "line": {"color": "$faint", "width": 1.5, "dash": "dot"},
            "hoverinfo": "skip",
        }
    ]
    slowest = max((row.p50_seconds(batch_size) or 0.0 for row in placed), default=0.0) if batch_size else 0.0
    for row, size, value in zip(placed, sizes, values, strict=True):
        seconds = row.p50_seconds(batch_size) if batch_size else None
        label = _safe(row.label)
        described = f"{label}<br>{wording.in_bytes(row.artefact_bytes)}, {_safe(metric)} {wording.in_number(value)}"
        if seconds is not None:
            described += f"<br>{wording.in_seconds(seconds)} at batch {batch_size}"
        traces.append(
            {
                "type": "scatter",
                "mode": "markers+text",
                "x": [size],
                "y": [value],
                "text": [label],
                "textposition": "top center",
                "textfont": {"color": "$ink"},
                "marker": {
                    "color": _row_colour(report, row),
                    "size": 12 + 26 * math.sqrt(seconds / slowest) if seconds and slowest else 14,
                    "opacity": 0.85,
                    "line": {"color": "$surface", "width": 2},
                },
                "hovertemplate": described + "<extra></extra>",
            }
        )
    layout = _layout(
        height=380,
        xaxis={"type": "log", "range": x_range, "title": {"text": "on disk, MB"}} | _log_ticks(x_range),
        yaxis={"range": y_range, "title": {"text": _safe(wording.in_words(metric))}},
        shapes=_target_region(report, x_range, y_range),
    )
    note = f"The area of a disc is the median time of a call at batch {batch_size}." if slowest else ""
    if layout["shapes"]:
        note = f"{note} The shaded corner is the target.".strip()
    return Chart("trade-off", "Size against quality", {"data": traces, "layout": layout}, note)


def loss_curves(report: Report) -> list[Chart]:
    """One chart for each step that trained: the loss, and its terms where there are several."""
    charts = []
    for index, step in enumerate(report.steps):
        if step.history is None or not step.history.updates:
            continue
        figure = {"data": _loss_traces(step.history), "layout": _layout(
            height=300,
            xaxis={"title": {"text": "updates"}, "rangemode": "tozero"},
            yaxis={"title": {"text": "loss"}} | ({"type": "log"} if _spans_decades(step.history) else {}),
            showlegend=True,
        )}  # fmt: skip
        charts.append(Chart(f"loss-{index}", step.name, figure))
    return charts


def slice_bars(report: Report) -> list[Chart]:
    """One chart for each slice column: bars of the result, a mark for the teacher, the worst value set off."""
    final, teacher = report.final, report.teacher
    charts = []
    for index, (column, values) in enumerate(final.slices.items()):
        metric = report.main_metric
        shown = sorted(
            ((value, part) for value, part in values.items() if metric in part.metrics),
            key=lambda entry: entry[1].metrics[metric],
            reverse=not final.metrics[metric].higher_is_better,
        )
        if not shown:
            continue
        omitted = len(shown) - MAX_SLICES_SHOWN
        shown = shown[:MAX_SLICES_SHOWN]
        before = teacher.slices.get(column, {}) if teacher is not None else {}
        charts.append(
            Chart(
                f"slices-{index}",
                wording.in_words(column),
                _slice_figure(report, column, shown, before),
                _slice_note(final, column, omitted, has_teacher=bool(before)),
            )
        )
    return charts


def bars(labels: list[str], values: list[float], title: str, name: str) -> Figure:
    """Percentages as horizontal bars, the first on top."""
    layout = _layout(
        height=70 + 18 * len(labels),
        xaxis={"title": {"text": _safe(title)}, "range": [0, 100]},
        yaxis={"autorange": "reversed", "showgrid": False, "ticks": "", "automargin": True, "dtick": 1},
        bargap=0.25,
    )
    trace = {
        "type": "bar",
        "orientation": "h",
        "name": _safe(name),
        "x": values,
        "y": [_safe(label) for label in labels],
        "marker": {"color": "$copper", "opacity": 0.9},
        "hovertemplate": "%{x:.1f} %<extra></extra>",
    }
    return {"data": [trace], "layout": layout}


def _slice_figure(
    report: Report, column: str, shown: list[tuple[str, SliceValue]], before: dict[str, SliceValue]
) -> Figure:
    metric, gap = report.main_metric, report.final.worst_gap
    worst = gap.value if gap is not None and gap.slice == column and gap.gap > 0 else None
    labels = [f"{_safe(value)}  <i>{part.count}</i>" for value, part in shown]
    data: list[Figure] = [
        {
            "type": "bar",
            "orientation": "h",
            "name": _safe(report.final.label),
            "x": [part.metrics[metric] for _, part in shown],
            "y": labels,
            "marker": {
                "color": ["$fail" if value == worst else "$copper" for value, _ in shown],
                "opacity": [0.35 if part.count < MIN_SLICE_COUNT else 0.9 for _, part in shown],
            },
            "hovertemplate": "%{x:.3f}<extra>" + _safe(report.final.label) + "</extra>",
        }
    ]
    known = [(label, before[value]) for label, (value, _) in zip(labels, shown, strict=True) if value in before]
    if known:
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": "teacher",
                "x": [part.metrics.get(metric) for _, part in known],
                "y": [label for label, _ in known],
                "marker": {"symbol": "line-ns", "size": 15, "line": {"color": "$teacher", "width": 3}},
                "hovertemplate": "%{x:.3f}<extra>teacher</extra>",
            }
        )
    whole = report.final.metric(metric)
    layout = _layout(
        height=70 + 27 * len(shown),
        xaxis={"title": {"text": _safe(wording.in_words(metric))}, "rangemode": "tozero"},
        yaxis={"autorange": "reversed", "showgrid": False, "ticks": "", "automargin": True},
        bargap=0.35,
        shapes=[] if whole is None else [
            {"type": "line", "x0": whole, "x1": whole, "y0": 0, "y1": 1, "yref": "paper",
             "line": {"color": "$muted", "width": 1, "dash": "dash"}}
        ],
    )  # fmt: skip
    return {"data": data, "layout": layout}


def _slice_note(final: Row, column: str, omitted: int, *, has_teacher: bool) -> str:
    parts = ["Bars are the result" + (", marks the teacher" if has_teacher else "") + "; the dashed line is the whole."]
    parts.append(f"Beside each name: its samples, pale where fewer than {MIN_SLICE_COUNT}.")
    gap = final.worst_gap
    if gap is not None and gap.slice == column and gap.gap > 0:
        parts.append(f"Furthest behind: {gap.value}, by {wording.in_number(gap.gap)}.")
    if omitted > 0:
        parts.append(f"The {MAX_SLICES_SHOWN} worst are shown, {omitted} better ones are in report.json.")
    return " ".join(parts)


def _loss_traces(history: LossHistory) -> list[Figure]:
    columns = {"total": history.total}
    if len(history.terms) > 1:
        columns |= {wording.in_words(name): column for name, column in history.terms.items()}
    return [
        {
            "type": "scatter",
            "mode": "lines" if len(history.updates) > 1 else "markers",
            "name": _safe(name),
            "x": history.updates,
            "y": column,
            "line": {
                "color": "$ink" if index == 0 else _TERM_COLOURS[(index - 1) % len(_TERM_COLOURS)],
                "width": 2 if index == 0 else 1.5,
            },
            "hovertemplate": "%{y:.4g}<extra>" + _safe(name) + "</extra>",
        }
        for index, (name, column) in enumerate(columns.items())
    ]


def _spans_decades(history: LossHistory) -> bool:
    columns = [history.total, *(history.terms.values() if len(history.terms) > 1 else ())]
    losses = [value for column in columns for value in column if value is not None]
    return bool(losses) and min(losses) > 0 and max(losses) / min(losses) > 50


def _target_region(report: Report, x_range: list[float], y_range: list[float]) -> list[Figure]:
    """The corner of the plane that is small and good enough, as far as the gate knows it."""
    wanted = {check.name: check.wanted for check in report.gate.checks}
    teacher = report.teacher
    if teacher is None or teacher.artefact_bytes is None or "sizeRatio" not in wanted:
        return []
    largest = teacher.artefact_bytes / 1e6 / wanted["sizeRatio"]
    bound = teacher.metric(report.main_metric)
    if bound is None or "minRecoveryPercent" not in wanted:
        return []
    share = wanted["minRecoveryPercent"] / 100
    if report.final.metrics[report.main_metric].higher_is_better:
        y_0, y_1 = bound * share, y_range[1]
    elif share > 0:
        y_0, y_1 = y_range[0], bound / share
    else:
        y_0, y_1 = y_range
    return [
        {"type": "rect", "layer": "below", "x0": 10 ** x_range[0], "x1": largest, "y0": y_0, "y1": y_1,
         "fillcolor": "$pass", "opacity": 0.12, "line": {"width": 0}}
    ]  # fmt: skip


def _log_ticks(x_range: list[float]) -> Figure:
    """Ticks at 1, 2 and 5 times powers of ten, written out: plotly's own leave the powers away."""
    ticks = [
        step * 10.0**power for power in range(math.floor(x_range[0]), math.ceil(x_range[1]) + 1) for step in (1, 2, 5)
    ]
    return {"tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}


def _layout(*, xaxis: Figure, yaxis: Figure, height: int, **rest: Any) -> Figure:
    axis = {"gridcolor": "$line", "linecolor": "$line", "zeroline": False, "tickcolor": "$line", "fixedrange": True}
    small = {"font": {"size": 12, "color": "$muted"}, "standoff": 14}
    xaxis = axis | xaxis | {"title": xaxis.get("title", {}) | small, "automargin": True}
    yaxis = axis | yaxis | {"title": yaxis.get("title", {}) | small, "automargin": True}
    return {
        "height": height,
        "margin": {"l": 8, "r": 12, "t": 12, "b": 8},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "inherit", "size": 12, "color": "$muted"},
        "hoverlabel": {"bgcolor": "$surface", "bordercolor": "$line", "font": {"color": "$ink"}},
        "showlegend": False,
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "font": {"color": "$ink"}},
        "dragmode": False,
        "xaxis": xaxis,
        "yaxis": yaxis,
    } | rest


def _row_colour(report: Report, row: Row) -> str:
    if row.kind is RowKind.TEACHER:
        return "$teacher"
    if row.kind is RowKind.BASELINE:
        return "$muted"
    return "$copper" if row.label == report.final.label else "$ochre"


def _safe(text: str) -> str:
    return html.escape(text)
