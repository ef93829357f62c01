"""EventLog: writes a run's events, one JSON object a line, to a stream and to a file.

Progress that comes too fast is dropped here, so that training loops may speak at every step. Losing
a reader never stops a run: a stream whose reader is gone, or a file that cannot be written any more,
is given up.
Left out: what events look like (`limbeck.api.progress`) and how they are shown (`limbeck.cli.view`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from limbeck.api.progress import RATE_LIMITED, Event, parse_event, to_wire
from limbeck_runtime.storage import StorageError
from limbeck_runtime.telemetry.line_file import LineFile

PROGRESS_INTERVAL_SECONDS = 0.2


class EventLog:
    """Writes events. Safe to use from several threads; `clock` gives Unix seconds."""

    def __init__(
        self,
        stream: IO[str] | None,
        path: Path | None = None,
        clock: Callable[[], float] = time.time,
        *,
        progress_interval_seconds: float = PROGRESS_INTERVAL_SECONDS,
    ) -> None:
        self._clock = clock
        self._interval_seconds = progress_interval_seconds
        self._lock = threading.Lock()
        self._listeners: tuple[Callable[[Event], None], ...] = ()
        self._shown_at: dict[tuple[str, str, str], float] = {}
        self._stream = stream
        self.lines = None if path is None else LineFile(path)
        self._file = self.lines

    def emit(self, kind: str, **fields: Any) -> bool:
        """Write one event of `kind` with the fields of its model in `limbeck.api.progress`.

        Returns whether it was written: progress within 0.2 s of the last of its step and phase is
        dropped, except the first of a phase and the one that ends it. Raises ValueError for an
        unknown kind or a wrong field.
        """
        now = self._clock()
        if kind in RATE_LIMITED and not self._is_due(kind, fields, now):
            return False
        wire = {"time": datetime.fromtimestamp(now, UTC), "event": kind, **fields}
        event = parse_event(wire)
        self._write(to_wire(event) + "\n")
        for listener in self._listeners:
            listener(event)
        return True

    @contextmanager
    def heard_by(self, listener: Callable[[Event], None]) -> Iterator[None]:
        """Hand each event to `listener` too, while this is open. It is called by the thread that emits: no waiting."""
        self._listeners = (*self._listeners, listener)
        try:
            yield
        finally:
            self._listeners = tuple(other for other in self._listeners if other is not listener)

    def close(self) -> None:
        """Close the file; the stream belongs to the caller."""
        with self._lock:
            self._file = None
            if self.lines is not None:
                self.lines.close()

    def __enter__(self) -> EventLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _is_due(self, kind: str, fields: dict[str, Any], now: float) -> bool:
        key = (kind, str(fields.get("step")), str(fields.get("phase", "")))
        is_last = fields.get("done") == fields.get("total")
        with self._lock:
            shown_at = self._shown_at.get(key)
            # A clock that was set back must not silence progress until it has caught up.
            if shown_at is not None and 0 <= now - shown_at < self._interval_seconds and not is_last:
                return False
            self._shown_at[key] = now
            return True

    def _write(self, line: str) -> None:
        with self._lock:
            if self._stream is not None:
                try:
                    self._stream.write(line)
                    self._stream.flush()
                except (OSError, ValueError):  # the reader went away, or the stream was closed
                    self._stream = None
            if self._file is not None:
                try:
                    self._file.append(line.encode())
                except (OSError, StorageError):  # a full disk; whoever writes results will meet it and say so
                    self._file = None
