from __future__ import annotations

import io
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from limbeck_runtime.telemetry.events import EventLog


def lines_of(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def progress(done: int, total: int = 100, step: str = "distil", phase: str = "train") -> dict[str, Any]:
    return {"step": step, "phase": phase, "done": done, "total": total, "unit": "batches"}


def test_an_event_is_one_line_of_json_with_its_time_and_kind(clock: Any) -> None:
    stream = io.StringIO()
    EventLog(stream, clock=clock).emit("warning", message="two\nlines")
    assert stream.getvalue() == ('{"time":"2026-11-24T06:00:00Z","event":"warning","message":"two\\nlines"}\n')


def test_stream_and_file_hold_the_same_lines_and_a_new_run_appends(tmp_path: Path, clock: Any) -> None:
    path = tmp_path / "run" / "events.jsonl"
    streams = [io.StringIO(), io.StringIO()]
    for stream in streams:
        with EventLog(stream, path, clock) as log:
            log.emit("warning", message="once")
    assert path.read_text() == streams[0].getvalue() + streams[1].getvalue()


def test_progress_within_a_fifth_of_a_second_of_the_last_is_dropped(clock: Any) -> None:
    stream = io.StringIO()
    log = EventLog(stream, clock=clock)
    for done in range(1, 11):
        log.emit("step_progress", **progress(done))
        clock.advance(0.125)
    assert [event["done"] for event in lines_of(stream)] == [1, 3, 5, 7, 9]


@pytest.mark.parametrize(
    "other",
    [progress(2, step="int8"), progress(2, phase="capture"), progress(100)],
    ids=["another step", "another phase", "the last of its phase"],
)
def test_progress_that_says_something_new_is_kept(clock: Any, other: dict[str, Any]) -> None:
    log = EventLog(io.StringIO(), clock=clock)
    assert log.emit("step_progress", **progress(1))
    assert log.emit("step_progress", **other)


def test_events_that_are_no_progress_are_never_dropped(clock: Any) -> None:
    log = EventLog(io.StringIO(), clock=clock)
    written = [log.emit("checkpoint", step="distil", at=at, seconds=0.1) for at in range(5)]
    assert written == [True] * 5


def test_a_clock_that_is_set_back_does_not_silence_progress(clock: Any) -> None:
    log = EventLog(io.StringIO(), clock=clock)
    log.emit("step_progress", **progress(1))
    clock.advance(-3600)
    assert log.emit("step_progress", **progress(2))


def test_a_loss_that_is_not_finite_stays_valid_json(clock: Any) -> None:
    stream = io.StringIO()
    EventLog(stream, clock=clock).emit("step_progress", **progress(1), loss=float("nan"), terms={"kl": float("inf")})
    [event] = lines_of(stream)
    assert event["loss"] is None
    assert event["terms"] == {"kl": None}


@pytest.mark.parametrize(
    ("kind", "fields"), [("nonsense", {}), ("warning", {}), ("warning", {"message": "m", "extra": 1})]
)
def test_an_event_that_is_not_in_the_api_is_refused(clock: Any, kind: str, fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=kind):
        EventLog(io.StringIO(), clock=clock).emit(kind, **fields)


class GoneStream(io.StringIO):
    def write(self, _: str) -> int:
        raise BrokenPipeError


def test_a_reader_that_goes_away_does_not_stop_the_run_and_the_file_goes_on(tmp_path: Path, clock: Any) -> None:
    path = tmp_path / "events.jsonl"
    with EventLog(GoneStream(), path, clock) as log:
        log.emit("warning", message="first")
        log.emit("warning", message="second")
    assert len(path.read_text().splitlines()) == 2


def test_lines_of_many_threads_do_not_mix(clock: Any) -> None:
    stream = io.StringIO()
    log = EventLog(stream, clock=clock)
    threads = [
        threading.Thread(target=lambda: [log.emit("warning", message="x" * 500) for _ in range(50)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(lines_of(stream)) == 200


def test_a_listener_hears_each_event_that_is_written_while_it_listens(clock: Any) -> None:
    heard: list[Any] = []
    log = EventLog(None, clock=clock)
    log.emit("warning", message="before")
    with log.heard_by(heard.append):
        log.emit("warning", message="while")
        for done in (1, 2):  # the second comes too soon
            log.emit("step_progress", step="a", phase="train", done=done, total=9, unit="batches")
    log.emit("warning", message="after")
    assert [getattr(event, "message", getattr(event, "done", None)) for event in heard] == ["while", 1]
