"""The whole way of a newcomer, as the README's first screen has it: data, teacher, compression, report."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "01-image-text"
LIMBECK = Path(sys.executable).with_name("limbeck")

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the example, with its data prepared."""
    folder = tmp_path_factory.mktemp("quickstart")
    for name in ("teacher.yaml", "job.yaml"):
        shutil.copy(EXAMPLE / name, folder / name)
    subprocess.run([sys.executable, str(EXAMPLE / "prepare.py"), "--out", str(folder)], check=True)
    return folder


@pytest.fixture(scope="module")
def run(place: Path) -> Run:
    """`run("job.yaml")`: limbeck local with events as JSON."""

    def local(job: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(LIMBECK), "local", str(place / job), "--log-format", "json"],
            capture_output=True,
            text=True,
            check=False,
        )

    return local


@pytest.fixture(scope="module")
def teacher(run: Run) -> subprocess.CompletedProcess[str]:
    return run("teacher.yaml")


@pytest.fixture(scope="module")
def compressed(run: Run, teacher: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    assert teacher.returncode == 0, teacher.stderr
    return run("job.yaml")


def _events(result: subprocess.CompletedProcess[str], kind: str) -> list[dict[str, Any]]:
    events = [json.loads(line) for line in result.stdout.splitlines()]
    return [event for event in events if event["event"] == kind]


def _report(place: Path, output: str) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((place / "out" / output / "report.json").read_text())
    return report


def test_preparing_the_data_again_does_nothing(place: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*.tar")}
    subprocess.run([sys.executable, str(EXAMPLE / "prepare.py"), "--out", str(place)], check=True)
    assert before == {path: path.stat().st_mtime_ns for path in place.rglob("*.tar")}
    assert before


def test_the_teacher_learns_to_find_unseen_drawings(teacher: subprocess.CompletedProcess[str], place: Path) -> None:
    assert teacher.returncode == 0, teacher.stderr
    (row,) = _report(place, "teacher")["rows"]
    # Chance is 0.05.
    assert row["metrics"]["mean_recall@10"]["value"] > 0.4


# Standard error of a recall over the example's 193 validation pairs: one seed cannot tell smaller differences.
NOISE = 0.03


def test_the_compression_passes_its_gate_and_keeps_up_with_hard_labels(
    compressed: subprocess.CompletedProcess[str], place: Path
) -> None:
    assert compressed.returncode == 0, compressed.stderr
    report = _report(place, "compressed")
    assert report["gate"]["passed"]
    rows = {row["label"]: row for row in report["rows"]}
    assert list(rows) == ["teacher", "baseline", "distil", "int8"]
    recall = {label: row["metrics"]["mean_recall@10"]["value"] for label, row in rows.items()}
    assert recall["distil"] > recall["baseline"] - NOISE
    assert rows["teacher"]["artefactBytes"] / rows["int8"]["artefactBytes"] > 8


def test_the_last_event_names_report_model_and_card(compressed: subprocess.CompletedProcess[str]) -> None:
    (finished,) = _events(compressed, "run_finished")
    assert finished["state"] == "Complete"
    for name in ("report", "model", "card"):
        assert Path(finished[name]).exists(), name


def test_the_model_loads_in_one_line_and_finds_a_drawing(
    compressed: subprocess.CompletedProcess[str], place: Path
) -> None:
    import limbeck_runtime

    bundle = limbeck_runtime.load(place / "out" / "compressed" / "model")
    assert bundle.task == "ImageText"
    assert bundle.num_parameters() > 0


def test_the_same_command_again_does_nothing_anew(
    compressed: subprocess.CompletedProcess[str], run: Run, place: Path
) -> None:
    shards = {path: path.stat().st_ino for path in (place / "out" / "compressed" / "store").rglob("*.arrow")}
    again = run("job.yaml")
    assert again.returncode == 0, again.stderr
    assert {event["step"] for event in _events(again, "step_skipped")} == {"baseline", "distil", "int8"}
    assert shards == {path: path.stat().st_ino for path in (place / "out" / "compressed" / "store").rglob("*.arrow")}
