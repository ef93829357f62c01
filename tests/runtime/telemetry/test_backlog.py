from __future__ import annotations

from typing import Any

import pytest

from limbeck.api.posts import MAX_EVENTS, MAX_POST_BYTES, MAX_RECORDS, ProgressPost
from limbeck.api.progress import Event, parse_event
from limbeck_runtime.telemetry.backlog import Backlog, Batch
from limbeck_runtime.telemetry.progress import ProgressRecord


def event(kind: str, **fields: Any) -> Event:
    return parse_event({"time": "2026-11-24T06:00:00Z", "event": kind, **fields})


def warning(message: str) -> Event:
    return event("warning", message=message)


def moved(done: int, phase: str = "train") -> Event:
    return event("step_progress", step="distil", phase=phase, done=done, total=100, unit="batches")


def lines(*updates: int) -> bytes:
    records = [ProgressRecord("distil", update, update / 10, float("nan"), {"kl": 1.0}) for update in updates]
    return "".join(record.to_line() for record in records).encode()


def said(batch: Batch) -> list[Any]:
    return [getattr(entry, "message", getattr(entry, "done", "")) for entry in batch.events]


def test_what_is_taken_comes_in_its_order_and_once() -> None:
    backlog = Backlog()
    backlog.add(warning("a"))
    backlog.add(warning("b"))
    backlog.add_lines(lines(1, 2))
    batch = backlog.take()
    assert said(batch) == ["a", "b"]
    assert [record.update for record in batch.records] == [1, 2]
    assert batch.records[0].loss is None
    assert backlog.take() == Batch()
    assert len(backlog) == 0


def test_progress_is_kept_as_it_last_was_at_the_place_where_it_last_was() -> None:
    backlog = Backlog()
    for entry in (moved(1), moved(5, "evaluate"), warning("a"), moved(2), moved(3)):
        backlog.add(entry)
    assert said(backlog.take()) == [5, "a", 3]


def test_without_room_details_go_before_milestones() -> None:
    backlog = Backlog(max_events=3)
    backlog.add(event("run_started", job="emoji", steps=["distil"], epoch=1, attempt=1))
    for number in range(5):
        backlog.add(warning(str(number)))
    backlog.add(event("run_finished", state="Complete"))
    batch = backlog.take()
    assert [entry.event for entry in batch.events] == ["run_started", "warning", "run_finished"]
    assert (said(batch)[1], batch.dropped) == ("4", 4)


def test_without_room_for_milestones_the_oldest_goes() -> None:
    backlog = Backlog(max_events=2)
    for step in ("a", "b", "c"):
        backlog.add(event("step_skipped", step=step, reason="same"))
    assert [getattr(entry, "step", "") for entry in backlog.take().events] == ["b", "c"]


def test_of_too_many_records_the_oldest_go_and_are_counted_once() -> None:
    backlog = Backlog(max_records=2)
    backlog.add_lines(lines(1, 2, 3, 4, 5))
    batch = backlog.take()
    assert ([record.update for record in batch.records], batch.dropped) == ([4, 5], 3)
    assert backlog.take().dropped == 0


def test_lines_that_are_no_records_are_counted() -> None:
    backlog = Backlog()
    backlog.add_lines(b"{\n[]\n" + lines(1) + b'{"step": "a"}\n')
    batch = backlog.take()
    assert (len(batch.records), batch.dropped) == (1, 3)


def test_an_event_that_no_post_could_hold_is_dropped_and_counted() -> None:
    backlog = Backlog()
    backlog.add(warning("x" * MAX_POST_BYTES))
    backlog.add(warning("a"))
    batch = backlog.take()
    assert (said(batch), batch.dropped) == (["a"], 1)


@pytest.mark.parametrize("length", [1, 3_000, 200_000])
def test_however_much_there_is_each_post_is_within_the_servers_bounds(length: int) -> None:
    backlog = Backlog()
    for number in range(MAX_EVENTS + 10):
        backlog.add(warning("\u00e4" * length if number < 20 else "a"))
    backlog.add_lines(lines(*range(1, 2 * MAX_RECORDS)))
    num_events = num_records = 0
    while len(backlog):
        batch = backlog.take()
        post = ProgressPost(run="6f1c0e0a", epoch=1, attempt=1, sequence=1, events=batch.events, records=batch.records)
        assert len(post.model_dump_json().encode()) <= MAX_POST_BYTES
        assert batch.events or batch.records
        num_events, num_records = num_events + len(batch.events), num_records + len(batch.records)
    assert (num_events, num_records) == (MAX_EVENTS + 10, 2 * MAX_RECORDS - 1)
