"""`python -m benchmarks` as a person and as a program see it."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from benchmarks.__main__ import main
from benchmarks.rows import ROWS, Row
from benchmarks.runner import ROOT

ENTRY = {"id", "what", "peer", "ratio", "target", "met", "spread", "runs", "checks", "details", "reason"}


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "new folder" / "bench.json"


def _entries(output: Path) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads(output.read_text())
    return entries


def test_all_rows_are_measured_and_written_as_a_list(
    rows: dict[str, Row], environment: dict[str, str], output: Path
) -> None:
    code = main(["--output", str(output)], rows, environment)
    entries = _entries(output)
    assert [entry["id"] for entry in entries] == ["F1", "F2", "F3"]
    assert [entry["met"] for entry in entries] == [True, False, False]
    assert all(set(entry) == ENTRY for entry in entries)
    assert code == 1  # F3 could not be measured


def test_a_row_that_misses_its_target_is_no_failure_of_the_run(
    rows: dict[str, Row], environment: dict[str, str], output: Path
) -> None:
    assert main(["F2", "--output", str(output)], rows, environment) == 0
    assert [entry["id"] for entry in _entries(output)] == ["F2"]


def test_rows_come_in_the_order_of_the_table_and_once(
    rows: dict[str, Row], environment: dict[str, str], output: Path
) -> None:
    main(["F2", "F1", "F2", "--output", str(output)], rows, environment)
    assert [entry["id"] for entry in _entries(output)] == ["F1", "F2"]


def test_the_screen_shows_figures_and_reasons(
    rows: dict[str, Row], environment: dict[str, str], output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["--output", str(output)], rows, environment)
    shown = capsys.readouterr().out
    assert "F1 (1 of 3): a row that meets" in shown
    assert "F1 met: peer / ours 2 x, size 10 B" in shown
    assert "F2 missed: peer / ours 1 x, size 10 B" in shown
    assert shown.count("F3 could not be measured: ended with 1: RuntimeError: the peer said no") == 2
    assert "1.5..2.5" in shown


def test_an_unknown_row_is_a_usage_error_that_names_the_rows(
    rows: dict[str, Row], environment: dict[str, str], output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["F1", "P99", "--output", str(output)], rows, environment)
    assert raised.value.code == 2
    assert "rows must be among F1 F2 F3, got P99" in capsys.readouterr().err
    assert not output.exists()


_RUN = """
import sys
from benchmarks.__main__ import main
from benchmarks.rows import Row, at_least
rows = {name: Row(name, "", (at_least("ratio", "ratio", 2),), name) for name in ("meets", "hangs")}
sys.exit(main(["--output", sys.argv[1]], rows))
"""


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped_ends_its_row_and_keeps_what_was_measured(
    stop: signal.Signals, environment: dict[str, str], output: Path, tmp_path: Path
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    environment |= {"HELD_PIPE": str(pipe), "PYTHONPATH": f"{environment['PYTHONPATH']}:{ROOT}"}
    command = [sys.executable, "-c", _RUN, str(output)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        with pipe.open() as held:  # the row has come so far that it opened its end
            process.send_signal(stop)
            assert held.read() == ""  # the row has ended
        shown, _ = process.communicate()
    assert process.returncode == 130
    assert "written to" in shown
    assert [entry["id"] for entry in _entries(output)] == ["meets"]


def test_list_says_what_there_is_and_measures_nothing(
    rows: dict[str, Row], environment: dict[str, str], output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--list", "--output", str(output)], rows, environment) == 0
    shown = capsys.readouterr().out
    assert all(row_id in shown for row_id in rows)
    assert not output.exists()


def test_help_names_the_rows(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["--help"])
    assert raised.value.code == 0
    assert " ".join(ROWS) in capsys.readouterr().out


@pytest.mark.parametrize("row_id", ROWS)
def test_each_row_of_the_real_table_has_a_module_that_measures(row_id: str) -> None:
    spec = importlib.util.find_spec(ROWS[row_id].module)
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse(Path(spec.origin).read_text())
    assert "measure" in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert ROWS[row_id].targets
