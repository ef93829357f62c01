"""Each row runs in a process of its own, and whatever becomes of it becomes an outcome."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from benchmarks.outcome import Outcome
from benchmarks.rows import Row
from benchmarks.runner import Observer, run_row, run_rows


def test_a_row_runs_in_a_process_of_its_own_with_two_threads(
    row: Callable[..., Row], environment: dict[str, str]
) -> None:
    outcome = run_row("F1", row("meets"), environment)
    assert outcome.met
    assert outcome.details["process"] != os.getpid()
    assert outcome.details["threads"] == "2"


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        ("crashes", "ended with 1: RuntimeError: the peer said no"),
        ("lacks_its_peer", "No module named 'a_peer_that_is_not_installed'"),
        ("is_killed", "was ended by SIGKILL"),
        ("gives_nothing", "must give ratio"),
        ("gives_no_number", "not JSON compliant"),
        ("is_not_there", "No module named 'is_not_there'"),
    ],
)
def test_a_row_that_gives_no_result_says_why(
    row: Callable[..., Row], environment: dict[str, str], module: str, reason: str
) -> None:
    outcome = run_row("F1", row(module), environment)
    assert not outcome.met
    assert outcome.reason is not None
    assert reason in outcome.reason


def test_a_row_that_never_ends_is_ended_after_its_time(row: Callable[..., Row], environment: dict[str, str]) -> None:
    assert run_row("F1", row("hangs", limit_seconds=0.3), environment).reason == "took longer than 0.3 s"


def test_rows_after_one_that_crashes_are_measured(rows: dict[str, Row], environment: dict[str, str]) -> None:
    outcomes = list(run_rows(dict(reversed(rows.items())), Observer(), environment))
    assert [outcome.row_id for outcome in outcomes] == ["F3", "F2", "F1"]
    assert [outcome.reason is None for outcome in outcomes] == [False, True, True]


def test_an_observer_hears_of_each_row_in_turn(rows: dict[str, Row], environment: dict[str, str]) -> None:
    heard: list[str] = []

    def end(outcome: Outcome) -> None:
        heard.append(f"{outcome.row_id} ends")

    del rows["F3"]
    observer = Observer(lambda row_id, row: heard.append(f"{row_id} starts"), on_end=end)
    list(run_rows(rows, observer, environment))
    assert heard == ["F1 starts", "F1 ends", "F2 starts", "F2 ends"]
