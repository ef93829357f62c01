"""Bounds in time: a cache that forgets, and buckets that allow so many calls a second. Safe to use from threads."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Cache(Generic[K, V]):
    """Values that are believed for a while; the least recently stored of too many go first."""

    def __init__(self, max_entries: int, clock: Callable[[], float]) -> None:
        self._max_entries, self._clock = max_entries, clock
        self._lock = threading.Lock()
        self._entries: OrderedDict[K, tuple[float, V]] = OrderedDict()

    def get(self, key: K, max_age_seconds: float) -> V | None:
        """The value, if it was stored at most so long ago."""
        with self._lock:
            stored_at, value = self._entries.get(key, (0.0, None))
        # A clock that was set back makes an entry old, not young for ever.
        return value if value is not None and 0 <= self._clock() - stored_at <= max_age_seconds else None

    def put(self, key: K, value: V) -> None:
        """Remember a value."""
        with self._lock:
            self._entries.pop(key, None)
            self._entries[key] = (self._clock(), value)
            while len(self._entries) > self._max_entries:
                self._entries.popitem(last=False)

    def drop(self, key: K) -> None:
        """Forget a value."""
        with self._lock:
            self._entries.pop(key, None)


class Buckets(Generic[K]):
    """A token bucket for each key."""

    def __init__(self, per_second: float, burst: float, clock: Callable[[], float], *, max_keys: int = 20_000) -> None:
        self._per_second, self._burst, self._clock, self._max_keys = per_second, burst, clock, max_keys
        self._lock = threading.Lock()
        self._levels: OrderedDict[K, tuple[float, float]] = OrderedDict()

    def take(self, key: K) -> float:
        """Take one: 0 if it was there, else the seconds until one will be."""
        now = self._clock()
        with self._lock:
            level, since = self._levels.pop(key, (self._burst, now))
            level = min(self._burst, level + max(0.0, now - since) * self._per_second)
            allowed = level >= 1
            self._levels[key] = (level - 1 if allowed else level, now)
            if len(self._levels) > self._max_keys:
                self._levels.popitem(last=False)
        return 0.0 if allowed else (1 - level) / self._per_second
