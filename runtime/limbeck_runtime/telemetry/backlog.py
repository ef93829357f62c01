"""Backlog: what the server has not been told yet, bounded however long it is away.

Progress is kept only as it last was. When there is no room, what merely adds detail goes first, and what goes is
counted. Left out: sending (`poster.py`).
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from dataclasses import dataclass, field

from limbeck.api.posts import MAX_EVENTS, MAX_POST_BYTES, MAX_RECORDS, TrainingRecord
from limbeck.api.progress import RATE_LIMITED, Event, to_wire

MAX_WAITING_EVENTS = 2_000
MAX_WAITING_RECORDS = 10_000
# What goes into one post; the frame around it is small, and half of the bound leaves room for it.
MAX_BATCH_BYTES = MAX_POST_BYTES // 2
# Without these nobody could tell where the run stands.
_MILESTONES = frozenset({"run_started", "step_started", "step_finished", "step_skipped", "run_finished"})


@dataclass(frozen=True)
class Batch:
    """What one post holds."""

    events: list[Event] = field(default_factory=list)
    records: list[TrainingRecord] = field(default_factory=list)
    dropped: int = 0


class Backlog:
    """Events and records in their order. Safe to use from several threads."""

    def __init__(self, max_events: int = MAX_WAITING_EVENTS, max_records: int = MAX_WAITING_RECORDS) -> None:
        self._lock = threading.Lock()
        self._max_events, self._max_records = max_events, max_records
        self._events: OrderedDict[tuple[str, ...], tuple[Event, int]] = OrderedDict()
        self._records: deque[tuple[TrainingRecord, int]] = deque()
        self._num_added = 0
        self._dropped = 0

    def add(self, event: Event) -> None:
        """Take an event."""
        size = len(to_wire(event).encode())
        with self._lock:
            if size > MAX_BATCH_BYTES:
                self._dropped += 1
                return
            self._num_added += 1
            key: tuple[str, ...] = (str(self._num_added),)
            if event.event in RATE_LIMITED:
                key = (event.event, str(getattr(event, "step", "")), str(getattr(event, "phase", "")))
                self._events.pop(key, None)
            self._events[key] = (event, size)
            if len(self._events) > self._max_events:
                self._make_room()

    def add_lines(self, lines: bytes) -> None:
        """Take lines of progress.jsonl. A line that is no record is counted as dropped."""
        for line in lines.splitlines():
            try:
                record = TrainingRecord.model_validate_json(line)
            except ValueError:
                self.count_dropped(1)
                continue
            with self._lock:
                self._records.append((record, len(line)))
                if len(self._records) > self._max_records:
                    self._records.popleft()
                    self._dropped += 1

    def count_dropped(self, number: int) -> None:
        """`number` entries found no way to the server."""
        with self._lock:
            self._dropped += number

    def take(self) -> Batch:
        """What the next post is to hold; it is no longer here then. Events come first."""
        events: list[Event] = []
        records: list[TrainingRecord] = []
        room = MAX_BATCH_BYTES
        with self._lock:
            while self._events and len(events) < MAX_EVENTS:
                key, (event, size) = next(iter(self._events.items()))
                if size > room:
                    break
                room -= size
                events.append(event)
                del self._events[key]
            while self._records and len(records) < MAX_RECORDS and self._records[0][1] <= room:
                record, size = self._records.popleft()
                room -= size
                records.append(record)
            dropped, self._dropped = self._dropped, 0
        return Batch(events, records, dropped)

    def __len__(self) -> int:
        with self._lock:
            return len(self._events) + len(self._records)

    def _make_room(self) -> None:
        key = next((key for key, (event, _) in self._events.items() if event.event not in _MILESTONES), None)
        del self._events[next(iter(self._events)) if key is None else key]
        self._dropped += 1
