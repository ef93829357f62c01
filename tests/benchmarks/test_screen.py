"""What a terminal shows while rows run."""

from __future__ import annotations

import io

from benchmarks.rows import Row
from benchmarks.runner import run_rows
from benchmarks.screen import watched
from rich.console import Console


def _shown(rows: dict[str, Row], environment: dict[str, str], *, terminal: bool) -> str:
    file = io.StringIO()
    with watched(Console(file=file, force_terminal=terminal, width=200), len(rows)) as observer:
        list(run_rows(rows, observer, environment))
    return file.getvalue()


def test_a_terminal_shows_the_row_at_work_and_what_came_of_it(
    rows: dict[str, Row], environment: dict[str, str]
) -> None:
    shown = _shown({"F1": rows["F1"]}, environment, terminal=True)
    assert "F1 a row that meets" in shown
    assert "F1 met: peer / ours 2 x" in shown
    assert "\x1b[" in shown


def test_plain_lines_have_no_control_characters(rows: dict[str, Row], environment: dict[str, str]) -> None:
    shown = _shown({"F2": rows["F2"]}, environment, terminal=False)
    assert "F2 missed: peer / ours 1 x" in shown
    assert "\x1b" not in shown
