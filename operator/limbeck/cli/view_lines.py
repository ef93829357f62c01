"""Lines for logs: one for each event, and progress at most every five seconds of a step."""

from __future__ import annotations

from datetime import datetime
from typing import IO

from limbeck.api import progress
from limbeck.api.progress import Event
from limbeck.cli import view_words as words
from limbeck.cli.printable import printable

INTERVAL_SECONDS = 5.0


class LinePainter:
    """Writes plain lines; the time in front is the event's own, in UTC."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._said_at: dict[str, datetime] = {}
        self._captures: dict[str, progress.CaptureProgress] = {}

    def paint(self, event: Event) -> None:
        """Write what the event says."""
        match event:
            case progress.CaptureProgress():
                self._captures[event.step] = event
                if self._is_due(event):
                    self._line(event.time, f"{printable(event.step)}: {words.capture_words(event)}")
            case progress.StepProgress():
                if self._is_due(event):
                    self._line(event.time, self._progress(event))
            case progress.PlanMade():
                for entry in event.entries:
                    self._line(event.time, f"plan: {entry.field} = {entry.value} ({entry.reason})")
            case progress.RunFinished():
                self._finish(event)
            case _:
                self._line(event.time, words.sentence(event))

    def remark(self, text: str, *, style: str) -> None:
        """Write a line; `style` is for terminals."""
        self._write(text)

    def note(self, time: datetime, text: str, *, style: str) -> None:
        """Write a line with its time."""
        self._line(time, text)

    def end(self) -> None:
        """Nothing is open."""

    def _is_due(self, event: progress.StepProgress | progress.CaptureProgress) -> bool:
        """Both kinds share one allowance, so that a step is never louder than a line in five seconds."""
        said_at = self._said_at.get(event.step)
        if said_at is not None and 0 <= (event.time - said_at).total_seconds() < INTERVAL_SECONDS:
            return False
        self._said_at[event.step] = event.time
        return True

    def _progress(self, event: progress.StepProgress) -> str:
        percent = f" ({100 * event.done // event.total} %)" if event.total else ""
        parts = [f"{event.step}: {event.phase} {event.done} of {event.total} {event.unit}{percent}"]
        parts.append(words.loss_words(event))
        if event.samples_per_second is not None:
            parts.append(words.speed(event.samples_per_second))
        if event.eta_seconds is not None:
            parts.append(words.time_left(event.eta_seconds))
        capture = self._captures.get(event.step)
        if capture is not None and capture.done < capture.total:
            parts.append(words.capture_words(capture))
        return ", ".join(part for part in parts if part)

    def _finish(self, event: progress.RunFinished) -> None:
        if event.table:
            widths = [max(len(cell) for cell in column) for column in zip(*event.table, strict=True)]
            for row in event.table:
                first, *rest = (printable(cell) for cell in row)
                cells = [
                    first.ljust(widths[0]),
                    *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)),
                ]
                self._write("  ".join(cells).rstrip())
        for name, place in words.places(event):
            self._write(f"{name}: {place}")
        self._line(event.time, words.closing(event))

    def _line(self, time: datetime, text: str) -> None:
        self._write(f"{time:%H:%M:%S}Z {printable(text)}")

    def _write(self, text: str) -> None:
        self._stream.write(text + "\n")
        self._stream.flush()
