"""A pruning record from the command line: shown, compared, and refused where there is none."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from limbeck.api.prune_record import PruneRecord


def _limbeck(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "limbeck.cli.main", "prune-record", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def write_record(tmp_path: Path) -> Callable[..., Path]:
    """Writes a record as a job's output has it, and gives the output's folder."""

    def write(output: str = "out", *, removed: tuple[int, ...] = (1,), step: str = "thin", **changes: Any) -> Path:
        space = {"name": "body.fc1", "kind": "MlpWidth", "units": 4, "removed": removed, "scores": [2, 0.5, 1, 0.5]}
        record = {
            "step": step,
            "method": "L1",
            "granularity": "Structured",
            "scope": "Layer",
            "rounds": [{"sparsityPercent": 25, "parameters": 75}],
            "layers": [{"name": "body.fc1.weight", "weights": 40, "removed": 10 * len(removed)}],
            "spaces": [space],
            "kept": {"head": "no layer reads its channels"},
            "parametersBefore": 100,
            "parametersAfter": 75,
            "macsBefore": 1000,
            "macsAfter": 750,
            "weightsBefore": "a",
            "weightsAfter": "b",
            "architectureBefore": {},
            "undo": "Removed",
            **changes,
        }
        folder = tmp_path / output / "records" / step
        folder.mkdir(parents=True)
        (folder / "prune.json").write_text(PruneRecord.model_validate(record).to_json())
        return tmp_path / output

    return write


def test_a_record_shows_layers_units_with_scores_and_what_stayed(write_record: Callable[..., Path]) -> None:
    shown = _limbeck("show", str(write_record()))
    assert shown.returncode == 0, shown.stderr
    assert "parameters 100 -> 75" in shown.stdout
    assert "25.0 %" in shown.stdout
    assert "1 of     4 MlpWidth      body.fc1: 1 (0.5)" in shown.stdout
    assert "head: no layer reads its channels" in shown.stdout


def test_a_record_as_json_is_the_file_itself(write_record: Callable[..., Path]) -> None:
    output = write_record()
    path = output / "records" / "thin" / "prune.json"
    assert json.loads(_limbeck("show", str(path), "-o", "json").stdout) == json.loads(path.read_text())


def test_two_records_differ_in_units_and_shares(write_record: Callable[..., Path]) -> None:
    first, second = write_record(), write_record("other", removed=(1, 3), method="L2")
    told = _limbeck("diff", str(first), str(second)).stdout
    assert "method: L1 -> L2" in told
    assert "25.0 % ->   50.0 %  body.fc1.weight" in told
    assert "body.fc1: only the first removed none; only the second 3" in told
    assert _limbeck("diff", str(first), str(first)).stdout == "both removed the same\n"


def test_one_of_several_records_must_be_named(write_record: Callable[..., Path]) -> None:
    write_record()
    output = write_record(step="thinner")
    refused = _limbeck("show", str(output))
    assert refused.returncode == 2
    assert "found thin, thinner; name the step with --step" in refused.stderr
    assert "step thinner" in _limbeck("show", str(output), "--step", "thinner").stdout


def test_what_is_no_record_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "prune.json").write_text("{}")
    refused = _limbeck("show", str(tmp_path))
    assert (refused.returncode, "is not a pruning record" in refused.stderr) == (2, True)


def test_undoing_what_is_not_there_is_refused_by_the_runtime(tmp_path: Path) -> None:
    refused = _limbeck("undo", str(tmp_path / "out"), "--to", str(tmp_path / "before"))
    assert refused.returncode == 2
    assert "must hold the result of a step prune, found none" in refused.stderr
