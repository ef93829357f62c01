from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from rich.console import Console

from limbeck.cli.view import View
from limbeck.cli.view_lines import LinePainter
from limbeck.cli.view_terminal import TerminalPainter

RESUME = "limbeck local job.yaml"
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


def event(at_second: float, kind: str, /, **fields: Any) -> dict[str, Any]:
    return {"time": f"2026-11-24T06:{at_second // 60:02.0f}:{at_second % 60:06.3f}Z", "event": kind, **fields}


def training(seconds: float, done: int, step: str = "distil", total: int = 120) -> dict[str, Any]:
    return event(
        seconds,
        "step_progress",
        step=step,
        phase="train",
        done=done,
        total=total,
        unit="batches",
        loss=1.25,
        terms={"affinity": 0.9, "hard": 0.35},
        samples_per_second=1240.4,
        eta_seconds=34.2,
    )


def capture(seconds: float, done: int) -> dict[str, Any]:
    return event(
        seconds, "capture_progress", step="distil", done=done, total=128, replicas=2, samples_per_second=900.2, reused=4
    )


STARTED = event(0, "run_started", job="emoji", steps=["distil", "int8"], epoch=2, attempt=1)
PLAN = event(
    0, "plan", entries=[{"field": "spec.student.shrink", "value": "depth 50 %", "reason": "3.2x by size, 3.8x by int8"}]
)
DISTIL = event(1, "step_started", step="distil", method="distil", index=1, total=2)
BAD = event(
    1, "bad_sample", shard="train-003.tar", key="1f9d1", reason="TruncatedImage", detail="the file is truncated"
)
FINISHED = event(
    90,
    "run_finished",
    state="Complete",
    message="the target was reached",
    report="out/emoji/report.html",
    model="out/emoji/model",
    card="out/emoji/model/README.md",
    table=[
        ["model", "size", "smaller", "recall@10", "recovery", "latency (batch 1)"],
        ["teacher", "135 MB", "1x", "0.612", "-", "21.2 ms"],
        ["int8", "8.76 MB", "15.4x", "0.601", "98.2 %", "6.20 ms"],
    ],
)
RUN = [
    STARTED,
    PLAN,
    event(0, "metrics_serving", url="http://127.0.0.1:9464/metrics"),
    DISTIL,
    BAD,
    event(1, "warning", message="static calibration has 3 samples; give more"),
    event(2, "resumed", step="distil", at=20),
    capture(2, 12),
    training(3, 40),
    event(40, "checkpoint", step="distil", at=100, seconds=0.2),
    event(75, "step_finished", step="distil", seconds=74.23, metrics={"recall@10": 0.604, "loss": None}),
    event(75, "step_started", step="int8", method="quantize", index=2, total=2),
    event(76, "step_progress", step="int8", phase="calibrate", done=3, total=16, unit="batches"),
    event(80, "step_skipped", step="int8", reason="its fingerprint is that of a finished run"),
    FINISHED,
]


def terminal(width: int = 100, height: int = 40) -> tuple[View, TerminalPainter, io.StringIO]:
    stream = io.StringIO()
    console = Console(
        file=stream, force_terminal=True, width=width, height=height, highlight=False, legacy_windows=False
    )
    painter = TerminalPainter(console)
    return View(painter, stream, RESUME), painter, stream


def picture(painter: TerminalPainter, width: int = 100) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width, color_system=None, legacy_windows=False).print(painter.picture())
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"


def lines(events: Sequence[dict[str, Any]], exit_code: int = 0) -> str:
    stream = io.StringIO()
    with View.choose("lines", RESUME, stream) as view:
        for wire in events:
            view.show(wire)
        view.close(exit_code)
    return stream.getvalue()


def screen(events: Sequence[dict[str, Any]], exit_code: int = 0) -> str:
    """All that was written to a terminal, without its escapes."""
    view, _, stream = terminal()
    with view:
        for wire in events:
            view.show(wire)
        view.close(exit_code)
    return ESCAPE.sub("", stream.getvalue())


@pytest.mark.parametrize("width", [100, 60])
def test_a_terminal_shows_each_step_as_it_goes(width: int, golden: Callable[[str, str], None]) -> None:
    view, painter, _ = terminal(width)
    frames = []
    with view:
        for wire in RUN[:-1]:
            view.show(wire)
            frames.append(f"--- {wire['event']}\n{picture(painter, width)}")
    golden(f"view_terminal_{width}.txt", "".join(frames))


def test_a_run_in_lines_reads_from_top_to_bottom(golden: Callable[[str, str], None]) -> None:
    golden("view_lines.txt", lines(RUN))


def test_what_is_worth_keeping_stands_above_the_bars_and_the_table_at_the_end() -> None:
    shown = screen(RUN)
    for text in (
        "spec.student.shrink",
        "metrics at http://127.0.0.1:9464/metrics",
        "bad sample 1f9d1 in train-003.tar: TruncatedImage (the file is truncated)",
        "warning: static calibration has 3 samples; give more",
        "distil goes on from its checkpoint at update 20",
    ):
        assert text in shown
    end = shown[shown.rindex("recovery") :]
    assert "98.2 %" in end
    assert "report out/emoji/report.html\nmodel  out/emoji/model\ncard   out/emoji/model/README.md\n" in end.replace(
        "\r", ""
    )
    assert end.rstrip().endswith("Complete: the target was reached")


def test_a_place_longer_than_the_terminal_is_not_folded() -> None:
    place = "s3://results/" + "a-long-name/" * 20 + "report.html"
    assert place in screen([STARTED, {**FINISHED, "report": place}])


def test_a_low_terminal_hides_the_steps_that_are_over_and_keeps_the_one_at_work() -> None:
    names = [f"step{index}" for index in range(20)]
    view, painter, _ = terminal(height=12)
    with view:
        view.show(event(0, "run_started", job="emoji", steps=names, epoch=1, attempt=1))
        for name in names[:15]:
            view.show(event(1, "step_finished", step=name, seconds=1.0))
        view.show(event(2, "step_started", step="step15", method="distil", index=16, total=20))
        view.show(training(3, 40, step="step15"))
        first = picture(painter).splitlines()[:6]
    assert first[1] == "  11 steps are over"
    assert "step11" in first[2]
    assert any("33 %" in line for line in picture(painter).splitlines()[:12])


def test_progress_in_lines_is_said_at_most_every_five_seconds_of_a_step() -> None:
    events = [wire for tick in range(120) for wire in (training(tick / 4, tick + 1), capture(tick / 4 + 0.1, 10))]
    shown = lines([STARTED, DISTIL, *events]).splitlines()
    progress = [line for line in shown if "batches" in line or "captured" in line]
    assert len(progress) == 6
    assert len([line for line in progress if "batches" in line]) == 6
    # The capture is not forgotten: it stands in the step's line.
    assert "10 of 128 shards captured" in progress[1]


def test_two_steps_do_not_silence_each_other() -> None:
    shown = lines([STARTED, training(1, 10), training(2, 10, step="int8")])
    assert len([line for line in shown.splitlines() if "batches" in line]) == 2


def test_only_the_first_bad_samples_are_shown_on_a_terminal_and_all_of_them_in_lines() -> None:
    events = [STARTED, *({**BAD, "key": f"key{index}"} for index in range(20))]
    shown = screen(events)
    assert "key4 in" in shown
    assert "key5 in" not in shown
    assert shown.count("more bad samples follow; the report names them") == 1
    assert "key19 in" in lines(events)


def test_json_passes_every_event_through_unchanged() -> None:
    stream = io.StringIO()
    unknown = {"time": "2026-11-24T06:00:00Z", "event": "from_the_future", "value": [1, None]}
    with View.choose("json", RESUME, stream) as view:
        for wire in [*RUN, unknown]:
            view.show(wire)
        view.stopping()
        view.close(1)
    assert [json.loads(line) for line in stream.getvalue().splitlines()] == [*RUN, unknown]


def test_an_event_that_this_version_does_not_know_is_shown_as_it_came() -> None:
    assert '{"event": "from_the_future", "value": 1}' in lines([{"event": "from_the_future", "value": 1}])


def test_a_stream_that_is_no_terminal_gets_lines() -> None:
    stream = io.StringIO()
    View.choose("auto", RESUME, stream).show(DISTIL)
    assert stream.getvalue() == "06:00:01Z step 1 of 2: distil (distil)\n"


@pytest.mark.parametrize(
    ("state", "exit_code", "is_offered"),
    [("Complete", 0, False), ("Stopped", 130, True), ("Stopped", 0, True), ("Failed", 1, True), ("Failed", 10, False),
     ("Failed", 11, False), ("Failed", 12, False)],
)  # fmt: skip
@pytest.mark.parametrize("show", [lines, screen], ids=["lines", "terminal"])
def test_how_to_resume_is_said_where_there_is_something_to_resume(
    show: Callable[..., str], state: str, exit_code: int, is_offered: bool
) -> None:
    shown = show([STARTED, {**FINISHED, "state": state}], exit_code)
    assert (f"To go on from here: {RESUME}" in shown) is is_offered


@pytest.mark.parametrize("show", [lines, screen], ids=["lines", "terminal"])
def test_a_run_that_died_without_a_word_is_said_to_have(show: Callable[..., str]) -> None:
    shown = show([STARTED, DISTIL], -9)
    assert "The run ended without a result (exit code -9)." in shown
    assert f"To go on from here: {RESUME}" in shown


def test_the_reason_of_a_failure_is_the_last_thing_said() -> None:
    shown = lines([{**FINISHED, "state": "Failed", "reason": "GateFailed", "message": "size is 3.1x of 4x"}], 10)
    assert shown.rstrip().endswith("Failed (GateFailed): size is 3.1x of 4x")


@pytest.mark.parametrize("show", [lines, screen], ids=["lines", "terminal"])
def test_text_from_the_data_can_neither_style_nor_steer_the_terminal(show: Callable[..., str]) -> None:
    shown = show([STARTED, event(1, "warning", message="[red]bold[/red] \x1b]0;title\x07 \x9b2J end")])
    assert "[red]bold[/red] ?]0;title? ?2J end" in shown


def test_a_stream_that_cannot_encode_a_name_shows_question_marks() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    View.choose("lines", RESUME, stream).show({**BAD, "key": "caf\u00e9"})
    assert b"bad sample caf? in train-003.tar" in raw.getvalue()


def test_an_ascii_terminal_gets_ascii_marks() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    painter = TerminalPainter(Console(file=stream, force_terminal=True, width=100, highlight=False))
    with View(painter, stream, RESUME) as view:
        for wire in RUN:
            view.show(wire)
    stream.flush()
    assert "> distil" in ESCAPE.sub("", raw.getvalue().decode("ascii"))


def test_stopping_says_what_a_second_interrupt_does() -> None:
    stream = io.StringIO()
    View(LinePainter(stream), stream, RESUME).stopping()
    assert stream.getvalue() == "Stopping after a checkpoint; Ctrl-C again stops at once.\n"
