"""Measure rows of the table and say which meet their targets.

python -m benchmarks            all rows
python -m benchmarks P5 P6      these
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from benchmarks.outcome import Outcome
from benchmarks.rows import ROWS, Row
from benchmarks.runner import ROOT, run_rows
from benchmarks.screen import listing, one_line, table, watched

OUTPUT = ROOT / "build" / "bench.json"
EXIT_STOPPED = 130


def main(
    arguments: Sequence[str] | None = None,
    rows: Mapping[str, Row] = ROWS,
    environment: Mapping[str, str] = os.environ,
) -> int:
    """Measure and return 0 when every row could be measured, whether it met its targets or not, else 1."""
    parser = _parser(rows)
    options = parser.parse_args(arguments)
    console = Console()
    if options.list:
        console.print(listing(rows))
        return 0
    unknown = [row_id for row_id in options.rows if row_id not in rows]
    if unknown:
        parser.error(f"rows must be among {' '.join(rows)}, got {' '.join(unknown)}")
    chosen = {row_id: row for row_id, row in rows.items() if not options.rows or row_id in options.rows}
    outcomes: list[Outcome] = []
    stopped = False
    try:
        with _interrupted_by_sigterm(), watched(console, len(chosen)) as observer:
            for outcome in run_rows(chosen, observer, environment):
                outcomes.append(outcome)
                _write(options.output, outcomes)
    except KeyboardInterrupt:
        stopped = True
    console.print(table(outcomes))
    for outcome in outcomes:
        if outcome.reason is not None:
            console.print(one_line(outcome), highlight=False, markup=False, soft_wrap=True)
    console.print(f"written to {options.output}", soft_wrap=True)
    if stopped:
        return EXIT_STOPPED
    return 0 if all(outcome.reason is None for outcome in outcomes) else 1


@contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """SIGTERM ends the row at work and shows what there is, as Ctrl-C does; else the row would go on alone."""
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


_DESCRIPTION = "Measure against named peers. The exit code is 0 when every row could be measured, met or not."


def _parser(rows: Mapping[str, Row]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=_DESCRIPTION)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"which of {' '.join(rows)}; all when none is named")
    parser.add_argument("--list", action="store_true", help="say what there is to measure, and measure nothing")
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="FILE", help="where the JSON goes (build/)")
    return parser


def _write(path: Path, outcomes: Sequence[Outcome]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps([outcome.to_json() for outcome in outcomes], indent=2, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
