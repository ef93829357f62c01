"""progress.jsonl: the history of training, one JSON object a line, for the report's curves and the server.

About a thousand records a step, chosen by the update's number and not by the clock, so that a run
that was killed and resumed leaves the same history. A line that a crash cut short is dropped.
Left out: events, which are for watching.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import SupportsFloat

from limbeck_runtime.telemetry.line_file import LineFile

RECORDS_PER_STEP = 1000


@dataclass(frozen=True)
class ProgressRecord:
    """One optimiser update of one pipeline step. Losses may be NaN or infinite: that is worth knowing."""

    step: str
    update: int
    epoch: float
    loss: float
    terms: Mapping[str, float]
    learning_rate: float | None = None
    samples_per_second: float | None = None

    def to_line(self) -> str:
        """The record as one line of strict JSON, so numbers that are not finite become null."""
        fields = {
            "step": self.step,
            "update": self.update,
            "epoch": round(self.epoch, 4),
            "loss": _or_null(self.loss),
            "terms": {name: _or_null(value) for name, value in self.terms.items()},
            "learning_rate": self.learning_rate,
            "samples_per_second": _or_null(self.samples_per_second),
        }
        return json.dumps(fields, allow_nan=False) + "\n"

    @staticmethod
    def from_line(line: str) -> ProgressRecord:
        """The record of one line. Raises ValueError when it is none."""
        try:
            fields = json.loads(line)
            return ProgressRecord(
                step=str(fields["step"]),
                update=int(fields["update"]),
                epoch=float(fields["epoch"]),
                loss=_from_null(fields["loss"]),
                terms={str(name): _from_null(value) for name, value in fields["terms"].items()},
                learning_rate=fields["learning_rate"],
                samples_per_second=fields["samples_per_second"],
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a progress record: {line!r}") from error


class ProgressLog:
    """Appends records to a local file. Safe to use from several threads."""

    def __init__(self, path: Path) -> None:
        """Open `path`, dropping what a crash left of its last line."""
        self.lines = LineFile(path)
        self._lock = threading.Lock()
        self._drained = self.lines.size

    def wants(self, update: int, total: int) -> bool:
        """Whether this update of `total` is one to be recorded; ask before reading a loss off a device."""
        return update % max(1, total // RECORDS_PER_STEP) == 0 or update in (1, total)

    def write(self, record: ProgressRecord) -> None:
        """Append one record. Raises OutOfSpaceError, OSError."""
        self.lines.append(record.to_line().encode())

    def drain(self) -> bytes:
        """The lines since the last call, for the one who posts them."""
        with self._lock:
            lines = self.lines.read(self._drained)
            self._drained += len(lines)
            return lines

    def close(self) -> None:
        """Close the file."""
        self.lines.close()


def read_history(data: bytes) -> list[ProgressRecord]:
    """The records of progress.jsonl, ordered by step (as first seen) and update.

    An update that was made again after a crash counts once, as it was last made. A step that began anew, with
    other settings, has only its newest updates. Lines that are no records are skipped.
    """
    records: dict[str, dict[int, ProgressRecord]] = {}
    for line in data.splitlines():
        try:
            record = ProgressRecord.from_line(line.decode())
        except ValueError:
            continue
        if record.update == 1:
            records[record.step] = {}
        records.setdefault(record.step, {})[record.update] = record
    return [updates[update] for updates in records.values() for update in sorted(updates)]


def _or_null(value: SupportsFloat | None) -> float | None:
    if value is None:
        return None
    number = float(value)
    return number if math.isfinite(number) else None


def _from_null(value: float | None) -> float:
    return math.nan if value is None else float(value)
