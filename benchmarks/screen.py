"""What a person sees of a run: the row at work with its time while it runs, and a table at the end."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.outcome import Check, Outcome
from benchmarks.rows import Row
from benchmarks.runner import Observer


@contextmanager
def watched(console: Console, num_rows: int) -> Iterator[Observer]:
    """An observer that shows bars in a terminal, and one line a row where there is none."""
    if not console.is_terminal:
        yield _plain(console, num_rows)
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, auto_refresh=False) as progress:
        rows = progress.add_task("rows", total=num_rows)
        current = progress.add_task("", total=None)

        def start(row_id: str, row: Row) -> None:
            progress.reset(current, description=f"{row_id} {row.what}")
            progress.refresh()

        def end(outcome: Outcome) -> None:
            progress.advance(rows)
            progress.console.print(one_line(outcome), highlight=False)

        yield Observer(start, progress.refresh, end)
        progress.remove_task(current)


def _plain(console: Console, num_rows: int) -> Observer:
    started = 0.0
    number = 0

    def start(row_id: str, row: Row) -> None:
        nonlocal started, number
        started, number = time.monotonic(), number + 1
        console.print(f"{row_id} ({number} of {num_rows}): {row.what}", highlight=False, soft_wrap=True)

    def end(outcome: Outcome) -> None:
        seconds = time.monotonic() - started
        console.print(f"{one_line(outcome)} ({seconds:.0f} s)", highlight=False, soft_wrap=True, markup=False)

    return Observer(start, on_end=end)


def one_line(outcome: Outcome) -> str:
    """A row's end in one line."""
    if outcome.reason is not None:
        return f"{outcome.row_id} could not be measured: {outcome.reason}"
    figures = ", ".join(f"{check.target.what} {_value(check)}" for check in outcome.checks)
    return f"{outcome.row_id} {'met' if outcome.met else 'missed'}: {figures}"


def table(outcomes: Sequence[Outcome]) -> Table:
    """A line for each figure, and one for each row that gave none (why stands in `one_line`)."""
    drawn = Table(title="Measured against named peers", show_lines=False)
    for name in ("row", "figure", "measured", "lowest..highest", "runs", "target", "met"):
        drawn.add_column(name, justify="right" if name in ("measured", "runs") else "left", overflow="fold")
    for outcome in outcomes:
        if outcome.reason is not None:
            drawn.add_row(outcome.row_id, "not measured", "-", "-", "-", "-", "[red]no[/]")
        for place, check in enumerate(outcome.checks):
            low, high = check.figure.spread
            drawn.add_row(
                "" if place else outcome.row_id,
                check.target.what,
                _value(check),
                f"{_number(low)}..{_number(high)}",
                str(check.figure.runs),
                str(check.target).removeprefix(check.target.what).strip(),
                "[green]yes[/]" if check.met else "[red]no[/]",
            )
        drawn.add_section()
    return drawn


def listing(rows: Mapping[str, Row]) -> Table:
    """The rows that there are."""
    drawn = Table(show_lines=False)
    for name in ("row", "what", "against", "target"):
        drawn.add_column(name, overflow="fold")
    for row_id, row in rows.items():
        drawn.add_row(row_id, row.what, row.peer, row.target)
    return drawn


def _value(check: Check) -> str:
    return f"{_number(check.figure.value)} {check.target.unit}".rstrip()


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
