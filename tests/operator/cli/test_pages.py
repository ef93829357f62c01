"""Tables and pages as people see them, with the time standing still."""

from __future__ import annotations

from datetime import datetime

import pytest

from limbeck.cli import describe
from limbeck.cli.get import job_table
from limbeck.cli.tables import short, table


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "0s"),
        (45, "45s"),
        (119, "119s"),
        (340, "5m40s"),
        (360, "6m"),
        (3600, "60m"),
        (3 * 3600 + 300, "3h05m"),
        (30 * 3600, "30h"),
        (4 * 86_400, "4d"),
    ],
)
def test_durations_have_at_most_two_units(seconds, text) -> None:
    assert short(seconds) == text


def test_cells_can_neither_break_the_table_nor_steer_the_terminal() -> None:
    assert table(("A", "B"), [("x\ny", "\x1b[2J"), ("", "z")]) == ["A     B", "x y   ?[2J", "-     z"]


def test_jobs_in_all_their_states(build_stored, now: datetime, golden) -> None:
    jobs = [
        build_stored(phase, name=f"job-{number}")
        for number, phase in enumerate([None, "Pending", "Running", "Suspended", "Complete", "Failed"])
    ]
    jobs.append(build_stored("Running", name="leaving"))
    jobs[-1]["metadata"]["deletionTimestamp"] = "2026-11-24T12:00:00Z"
    blocks = [
        job_table(jobs, now),
        job_table(jobs, now, with_namespace=True, wide=True),
    ]
    golden("get.txt", "\n\n".join("\n".join(lines) for lines in blocks) + "\n")


def test_everything_about_a_job_on_one_page(build_stored, now: datetime, golden) -> None:
    job = build_stored(
        "Complete",
        **{
            "metadata.labels": {"team": "vision"},
            "spec.cluster": {"teacher": {"minReplicas": 2, "maxReplicas": 8, "spot": True}, "student": {"replicas": 4}},
            "spec.backoffLimit": 3,
            "spec.store": {"uri": "s3://shared/store"},
        },
    )
    job["status"] |= {"attempt": 2, "plan": [{"field": "spec.pipeline", "value": "distil, int8", "reason": "16x"}]}
    attempts = [
        {"attempt": 1, "ending": "Failed", "ended": "2026-11-24T11:10:00Z", "seconds": 660, "message": "head lost"}
    ]
    event = {
        "metadata": {"name": "e", "creationTimestamp": "2026-11-24T11:00:00Z"},
        "type": "Warning",
        "reason": "AttemptFailed",
        "message": "attempt 1: head lost",
        "eventTime": "2026-11-24T11:10:00.000000Z",
        "series": {"count": 3, "lastObservedTime": "2026-11-24T11:20:00.000000Z"},
    }
    golden("describe.txt", "\n".join(describe.page(job, attempts, [event], now)) + "\n")


def test_a_job_that_nobody_has_looked_at_says_how_to_find_out_why(build_stored, now: datetime) -> None:
    page = "\n".join(describe.page(build_stored(None), [], [], now))
    assert "no operator has looked at this job yet; `limbeck doctor` says why" in page
    assert page.endswith("Events: none (they are kept for an hour)")


def test_events_that_we_may_not_read_are_not_passed_over(build_stored, now: datetime) -> None:
    assert "Events: not allowed to read them" in "\n".join(describe.page(build_stored(), [], None, now))


def test_where_attempts_are_kept_is_where_the_operator_keeps_them() -> None:
    from limbeck.controller.ledger import Ending, Entry, Ledger
    from limbeck.controller.names import KEY_LEDGER, children_name

    assert (children_name("emoji"), KEY_LEDGER) == ("emoji" + describe.LEDGER_SUFFIX, describe.LEDGER_KEY)
    entry = Entry(1, Ending.FAILED, datetime.fromisoformat("2026-11-24T11:10:00Z"), 660, "head lost")
    assert '"ending": "Failed"' in Ledger((entry,)).to_json()
