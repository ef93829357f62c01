"""Bars for terminals: the steps with their progress at the bottom, what is worth keeping above them.

emoji  attempt 1
v distil  41.2 s  recall@10 0.604
> int8    train  =========-------  62 %  0:12 left
          loss 0.530 (affinity 0.400, hard 0.130), 1,240 samples/s
          teacher: 12 of 128 shards captured, 2 actors, 900 samples/s
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from limbeck.api import progress
from limbeck.api.progress import Event
from limbeck.cli import view_words as words
from limbeck.cli.printable import printable

MAX_BAD_SAMPLES_SHOWN = 5
_BAR_WIDTH = 40


class _State(StrEnum):
    """Where a step is, as its mark shows it."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    SKIPPED = "skipped"


_MARKS = {
    _State.WAITING: ("\N{MIDDLE DOT}", "-", "dim"),
    _State.RUNNING: ("\N{BLACK RIGHT-POINTING SMALL TRIANGLE}", ">", "cyan"),
    _State.DONE: ("\N{CHECK MARK}", "+", "green"),
    _State.SKIPPED: ("\N{CHECK MARK}", "+", "dim"),
}


@dataclass
class _Step:
    """What is known of one step."""

    name: str
    state: _State = _State.WAITING
    ended: str = ""
    latest: progress.StepProgress | None = None
    capture: progress.CaptureProgress | None = None


class TerminalPainter:
    """Keeps a live picture of the steps. It is drawn anew at each event, so there is no thread."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._is_unicode = console.encoding.lower().startswith("utf")
        self._title = Text()
        self._steps: dict[str, _Step] = {}
        self._num_bad = 0
        self._live = Live(console=console, auto_refresh=False, vertical_overflow="ellipsis")

    def paint(self, event: Event) -> None:
        """Change the picture, or put a line above it."""
        match event:
            case progress.RunStarted():
                self._title = Text.assemble((printable(event.job), "bold"), f"  attempt {event.attempt}")
                self._steps = {name: _Step(name) for name in event.steps}
                self._live.start()
            case progress.PlanMade():
                self._console.print(_plan(event))
            case progress.StepStarted():
                self._step(event.step).state = _State.RUNNING
            case progress.StepProgress():
                self._step(event.step).latest = event
            case progress.CaptureProgress():
                self._step(event.step).capture = event
            case progress.StepFinished() | progress.StepSkipped():
                self._end_step(event)
            case progress.CheckpointSaved():
                pass  # too common to be worth a line; the log has it
            case progress.BadSampleFound():
                self._bad_sample(event)
            case progress.RunFinished():
                self._finish(event)
                return
            case _:
                style = "yellow" if isinstance(event, progress.Warned) else "dim"
                self.remark(words.sentence(event), style=style)
        self._refresh()

    def remark(self, text: str, *, style: str) -> None:
        """Put a line above the picture; it is never folded, so that it can be copied."""
        self._console.print(Text(text, style=style), soft_wrap=True)

    def note(self, time: datetime, text: str, *, style: str) -> None:
        """Put a line above the picture; whoever watches knows what time it is."""
        self.remark(text, style=style)

    def end(self) -> None:
        """Leave the last picture on the screen."""
        if self._live.is_started:
            self._refresh()
            self._live.stop()

    def picture(self) -> RenderableType:
        """The steps as they are now."""
        width = max((len(name) for name in self._steps), default=0)
        blocks = [self._lines(step, width) for step in self._steps.values()]
        # On a low terminal the steps that are over make room for the one at work.
        num_over = sum(step.state in (_State.DONE, _State.SKIPPED) for step in self._steps.values())
        num_hidden = min(num_over, max(0, 2 + sum(map(len, blocks)) - self._console.height))
        lines: list[RenderableType] = [self._title]
        if num_hidden:
            lines.append(Text(f"  {num_hidden} steps are over", style="dim"))
        return Group(*lines, *(line for block in blocks[num_hidden:] for line in block))

    def _lines(self, step: _Step, width: int) -> list[RenderableType]:
        symbol, plain_symbol, style = _MARKS[step.state]
        is_quiet = step.state in (_State.WAITING, _State.SKIPPED)
        head = Text.assemble(
            (symbol if self._is_unicode else plain_symbol, style),
            " ",
            (printable(step.name).ljust(width), "dim" if is_quiet else "bold"),
        )
        if step.state is not _State.RUNNING:
            return [Text.assemble(head, "  ", (step.ended, "dim")) if step.ended else head]
        lines: list[RenderableType] = [_bar(head, step.latest) if step.latest else head]
        indent = " " * (width + 4)
        details = [_details(step.latest)] if step.latest else []
        if step.capture is not None and step.capture.done < step.capture.total:
            details.append(f"teacher: {words.capture_words(step.capture)}")
        lines.extend(
            Text(indent + detail, style="dim", no_wrap=True, overflow="ellipsis") for detail in details if detail
        )
        return lines

    def _end_step(self, event: progress.StepFinished | progress.StepSkipped) -> None:
        step = self._step(event.step)
        if isinstance(event, progress.StepSkipped):
            step.state, step.ended = _State.SKIPPED, printable(event.reason)
        else:
            parts = [words.duration(event.seconds), words.metrics_words(event.metrics)]
            step.state, step.ended = _State.DONE, "  ".join(part for part in parts if part)

    def _bad_sample(self, event: progress.BadSampleFound) -> None:
        self._num_bad += 1
        if self._num_bad <= MAX_BAD_SAMPLES_SHOWN:
            self.remark(words.sentence(event), style="yellow")
        elif self._num_bad == MAX_BAD_SAMPLES_SHOWN + 1:
            self.remark("more bad samples follow; the report names them", style="yellow")

    def _finish(self, event: progress.RunFinished) -> None:
        self.end()
        if event.table:
            self._console.print(_table(event.table))
        for name, place in words.places(event):
            self._console.print(Text.assemble((f"{name:7}", "dim"), place), soft_wrap=True)
        style = {progress.RunState.COMPLETE: "bold green", progress.RunState.STOPPED: "bold yellow"}
        self.remark(words.closing(event), style=style.get(event.state, "bold red"))

    def _step(self, name: str) -> _Step:
        return self._steps.setdefault(name, _Step(name))

    def _refresh(self) -> None:
        if self._live.is_started:
            self._live.update(self.picture(), refresh=True)


def _bar(head: Text, event: progress.StepProgress) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True)
    grid.add_column(max_width=_BAR_WIDTH)
    grid.add_column(no_wrap=True, justify="right")
    grid.add_column(no_wrap=True)
    percent = f"{100 * event.done // event.total} %" if event.total else ""
    left = words.time_left(event.eta_seconds) if event.eta_seconds is not None else ""
    bar = ProgressBar(total=max(event.total, 1), completed=event.done, finished_style="green")
    grid.add_row(head, printable(event.phase), bar, f"{percent:>5}", left)
    return grid


def _details(event: progress.StepProgress) -> str:
    parts = [words.loss_words(event)]
    if event.samples_per_second is not None:
        parts.append(words.speed(event.samples_per_second))
    return ", ".join(part for part in parts if part)


def _plan(event: progress.PlanMade) -> RenderableType:
    grid = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("plan", "value", "reason"):
        grid.add_column(heading)
    for entry in event.entries:
        cells = (printable(text) for text in (entry.field, entry.value, entry.reason))
        grid.add_row(*(Text(cell) for cell in cells))
    return grid


def _table(rows: list[list[str]]) -> RenderableType:
    head, *lines = ([printable(cell) for cell in row] for row in rows)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    for index, heading in enumerate(head):
        table.add_column(Text(heading), justify="right" if index else "left", no_wrap=index == 0)
    for index, line in enumerate(lines):
        is_result = index == len(lines) - 1
        table.add_row(*(Text(cell) for cell in line), style="bold" if is_result else "")
    return table
