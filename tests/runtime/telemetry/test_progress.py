from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from limbeck_runtime.telemetry.progress import ProgressLog, ProgressRecord, read_history


def record(update: int, loss: float = 1.0, step: str = "distil") -> ProgressRecord:
    return ProgressRecord(step=step, update=update, epoch=update / 10, loss=loss, terms={"kl": loss})


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    log = ProgressLog(tmp_path / "progress.jsonl")
    records = [record(1), record(2, 0.5), record(1, 0.4, step="recover")]
    for entry in records:
        log.write(entry)
    log.close()
    assert read_history((tmp_path / "progress.jsonl").read_bytes()) == records


def test_an_update_that_is_made_again_after_a_crash_counts_once() -> None:
    lines = "".join(entry.to_line() for entry in [record(1), record(2), record(3, 9.0), record(2), record(3, 0.5)])
    assert [(entry.update, entry.loss) for entry in read_history(lines.encode())] == [(1, 1.0), (2, 1.0), (3, 0.5)]


def test_a_step_that_began_anew_has_only_its_newest_updates() -> None:
    before = [record(1), record(2), record(3), record(1, step="recover")]
    lines = "".join(entry.to_line() for entry in [*before, record(1, 0.5), record(2, 0.4)])
    assert [(entry.step, entry.update, entry.loss) for entry in read_history(lines.encode())] == [
        ("distil", 1, 0.5),
        ("distil", 2, 0.4),
        ("recover", 1, 1.0),
    ]


def test_a_line_that_a_crash_cut_short_is_dropped_and_the_next_run_starts_a_new_one(tmp_path: Path) -> None:
    path = tmp_path / "progress.jsonl"
    path.write_text(record(1).to_line() + record(2).to_line()[:25])
    log = ProgressLog(path)
    log.write(record(3))
    log.close()
    assert [json.loads(line)["update"] for line in path.read_text().splitlines()] == [1, 3]


def test_a_file_that_holds_only_half_a_line_is_emptied(tmp_path: Path) -> None:
    path = tmp_path / "progress.jsonl"
    path.write_text("{")
    ProgressLog(path).close()
    assert path.read_bytes() == b""


@pytest.mark.parametrize(("total", "expected"), [(10, 10), (1000, 1000), (50_000, 1001), (1_000_000, 1001)])
def test_about_a_thousand_updates_of_a_step_are_recorded(tmp_path: Path, total: int, expected: int) -> None:
    log = ProgressLog(tmp_path / "progress.jsonl")
    wanted = [update for update in range(1, total + 1) if log.wants(update, total)]
    log.close()
    assert len(wanted) == expected
    assert wanted[0] == 1
    assert wanted[-1] == total


def test_draining_gives_each_line_once(tmp_path: Path) -> None:
    log = ProgressLog(tmp_path / "progress.jsonl")
    log.write(record(1))
    first = log.drain()
    log.write(record(2))
    assert [entry.update for entry in read_history(first)] == [1]
    assert [entry.update for entry in read_history(log.drain())] == [2]
    assert log.drain() == b""
    log.close()


def test_draining_after_a_restart_begins_with_what_the_restart_writes(tmp_path: Path) -> None:
    path = tmp_path / "progress.jsonl"
    path.write_text(record(1).to_line())
    log = ProgressLog(path)
    log.write(record(2))
    assert [entry.update for entry in read_history(log.drain())] == [2]
    log.close()


def test_a_loss_that_is_not_finite_is_null_in_the_file_and_nan_when_read() -> None:
    line = record(1, math.inf).to_line()
    assert json.loads(line)["loss"] is None
    [entry] = read_history(line.encode())
    assert math.isnan(entry.loss)


@pytest.mark.parametrize("line", ["[]", "{}", "3", '{"step": "a"}', "\\xff", '{"step":"a","update":1,"terms":3}'])
def test_a_line_that_is_no_record_is_skipped(line: str) -> None:
    assert read_history(f"{line}\n{record(1).to_line()}".encode()) == [record(1)]
