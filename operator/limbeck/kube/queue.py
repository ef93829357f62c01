"""Which keys to act on next, and when: each key once, and never by two workers at a time.

A key that is added while somebody works on it is handed out again after that. Taking a key forgets its delayed
entry: who takes it looks at the whole state and decides anew when to look again.
Left out on purpose: priorities, persistence. After a restart the first list adds every key.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from limbeck.kube.backoff import Backoff

Key = TypeVar("Key", bound=Hashable)


class KeyedQueue(Generic[Key]):
    """Ready keys in order of arrival, delayed keys by their time on `clock` (seconds, never backwards)."""

    def __init__(self, backoff: Backoff | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._backoff = backoff or Backoff()
        self._clock = clock
        self._changed = threading.Condition()
        self._ready: deque[Key] = deque()
        self._is_ready: set[Key] = set()
        self._in_work: set[Key] = set()
        self._add_again: set[Key] = set()
        self._due: dict[Key, tuple[float, int]] = {}  # the one entry of the heap that counts
        self._heap: list[tuple[float, int, Key]] = []
        self._num_delayed = 0
        self._failures: dict[Key, int] = {}
        self._shut = False

    def add(self, key: Key) -> None:
        """As soon as a worker is free."""
        with self._changed:
            self._add(key)

    def add_after(self, key: Key, seconds: float) -> None:
        """In `seconds`, or earlier if something earlier is planned for the key already."""
        with self._changed:
            self._add_after(key, seconds)

    def retry(self, key: Key, *, at_least: float | None = None) -> float:
        """After one more failure: later each time, and not before what the server asked for. Returns the delay."""
        with self._changed:
            self._failures[key] = self._failures.get(key, 0) + 1
            seconds = self._backoff.delay(self._failures[key], at_least)
            self._add_after(key, seconds)
            return seconds

    def forget(self, key: Key) -> None:
        """The key went well: its next failure counts as the first."""
        with self._changed:
            self._failures.pop(key, None)

    def take(self, timeout_seconds: float | None = None) -> Key | None:
        """The next key, which the taker must give back by `done`; None after the timeout or a shutdown."""
        with self._changed:
            deadline = None if timeout_seconds is None else self._clock() + timeout_seconds
            while not self._shut:
                self._release_due()
                if self._ready:
                    return self._hand_out()
                wait = self._seconds_to_wait(deadline)
                if wait is not None and wait <= 0:
                    return None
                self._changed.wait(wait)
            return None

    def done(self, key: Key) -> None:
        """Work on the key has ended, well or not."""
        with self._changed:
            self._in_work.discard(key)
            if key in self._add_again:
                self._add_again.discard(key)
                self._add(key)

    def shut_down(self) -> None:
        """Wakes every taker with None; what is queued is dropped."""
        with self._changed:
            self._shut = True
            self._changed.notify_all()

    def num_failures(self, key: Key) -> int:
        with self._changed:
            return self._failures.get(key, 0)

    def seconds_until_due(self, key: Key) -> float | None:
        """None where no delay is planned for the key."""
        with self._changed:
            return self._due[key][0] - self._clock() if key in self._due else None

    def __len__(self) -> int:
        """Keys that wait for a worker; delayed ones do not count."""
        with self._changed:
            return len(self._ready)

    def _add(self, key: Key) -> None:
        if key in self._in_work:
            self._add_again.add(key)
        elif key not in self._is_ready:
            self._is_ready.add(key)
            self._ready.append(key)
            self._changed.notify()

    def _add_after(self, key: Key, seconds: float) -> None:
        if seconds <= 0:
            self._add(key)
            return
        due = self._clock() + seconds
        if key in self._due and self._due[key][0] <= due:
            return
        self._num_delayed += 1  # breaks ties: keys need not be comparable
        self._due[key] = (due, self._num_delayed)
        heapq.heappush(self._heap, (due, self._num_delayed, key))
        if len(self._heap) > 2 * len(self._due) + 64:  # mostly entries that were replaced or forgotten
            self._heap = [(at, number, key) for key, (at, number) in self._due.items()]
            heapq.heapify(self._heap)
        self._changed.notify()

    def _release_due(self) -> None:
        now = self._clock()
        while self._heap and self._heap[0][0] <= now:
            due, number, key = heapq.heappop(self._heap)
            if self._due.get(key) == (due, number):  # else replaced by an earlier one, or forgotten
                del self._due[key]
                self._add(key)

    def _hand_out(self) -> Key:
        key = self._ready.popleft()
        self._is_ready.discard(key)
        self._due.pop(key, None)
        self._in_work.add(key)
        return key

    def _seconds_to_wait(self, deadline: float | None) -> float | None:
        ends = [end for end in (deadline, self._heap[0][0] if self._heap else None) if end is not None]
        if not ends:
            return None
        remaining = min(ends) - self._clock()
        # A delayed key that is due just now is released in the next round; only the deadline ends the wait.
        return remaining if deadline is not None and min(ends) == deadline else max(remaining, 0.001)
