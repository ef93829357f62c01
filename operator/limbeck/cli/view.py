"""How a run is shown: bars on a terminal, lines elsewhere, JSON for machines.

Fed with events as the runtime writes them (`limbeck.api.progress`). What is shown is a function of the
events alone, without a clock of its own, so that a test sees what a user sees.
Left out: where events come from (`limbeck local` starts the runtime and reads its standard output).
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Mapping
from datetime import datetime
from types import TracebackType
from typing import IO, Any, Protocol

from rich.console import Console

from limbeck import names
from limbeck.api.progress import Event, RunFinished, RunState, parse_event
from limbeck.cli.printable import printable
from limbeck.cli.view_lines import LinePainter
from limbeck.cli.view_terminal import TerminalPainter

# A run that ended so will end so again: there is nothing to resume.
_FINAL = frozenset({names.EXIT_OK, names.EXIT_GATE_FAILED, names.EXIT_USER_CODE_ERROR, names.EXIT_INVALID_SPEC})


class Painter(Protocol):
    """Puts events and remarks on a stream."""

    def paint(self, event: Event) -> None:
        """Show one event."""

    def remark(self, text: str, *, style: str) -> None:
        """Show a line that no event said."""

    def note(self, time: datetime, text: str, *, style: str) -> None:
        """The same for a line that has a time."""

    def end(self) -> None:
        """Leave the stream as it is now."""


class View:
    """Shows one run. Use it as a context manager, so that a terminal is left in order whatever happens."""

    def __init__(self, painter: Painter | None, stream: IO[str], resume_command: str) -> None:
        """`painter` None passes events through as JSON."""
        self._painter = painter
        self._stream = stream
        self._resume_command = resume_command
        self._finished: RunFinished | None = None

    @classmethod
    def choose(cls, log_format: str, resume_command: str, stream: IO[str] | None = None) -> View:
        """The view for `--log-format` auto, lines or json: bars only where someone can watch them."""
        stream = stream or sys.stdout
        if isinstance(stream, io.TextIOWrapper):
            # A name that the stream cannot encode is shown with question marks, and stops nothing.
            stream.reconfigure(errors="replace")
        if log_format == "json":
            return cls(None, stream, resume_command)
        console = Console(file=stream, highlight=False)
        if log_format == "auto" and console.is_terminal and not console.is_dumb_terminal:
            return cls(TerminalPainter(console), stream, resume_command)
        return cls(LinePainter(stream), stream, resume_command)

    def show(self, wire: Mapping[str, Any]) -> None:
        """Show one event; one that this version does not know is shown as it came."""
        if self._painter is None:
            self._stream.write(json.dumps(wire) + "\n")
            self._stream.flush()
            return
        try:
            event = parse_event(wire)
        except ValueError:
            self._painter.remark(printable(json.dumps(wire)), style="dim")
            return
        if isinstance(event, RunFinished):
            self._finished = event
        self._painter.paint(event)

    def note(self, wire: Mapping[str, Any], time: datetime, text: str, *, style: str = "dim") -> None:
        """Show something that is no event of a run: `text` for people, `wire` for machines."""
        if self._painter is None:
            self._stream.write(json.dumps(wire) + "\n")
            self._stream.flush()
        else:
            self._painter.note(time, printable(text), style=style)

    def stopping(self) -> None:
        """Say that a first Ctrl-C was heard and what a second one does."""
        if self._painter is not None:
            self._painter.remark("Stopping after a checkpoint; Ctrl-C again stops at once.", style="yellow")

    def close(self, exit_code: int) -> None:
        """Say how to go on, where there is something to go on with. `exit_code` is the runtime's."""
        if self._painter is None:
            return
        self._painter.end()
        if self._finished is None and exit_code != names.EXIT_OK:
            self._painter.remark(f"The run ended without a result (exit code {exit_code}).", style="red")
        stopped = self._finished is not None and self._finished.state is RunState.STOPPED
        if stopped or exit_code not in _FINAL:
            self._painter.remark(f"To go on from here: {self._resume_command}", style="bold")

    def __enter__(self) -> View:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._painter is not None:
            self._painter.end()
