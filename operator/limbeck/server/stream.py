"""Progress as server-sent events: where a job stands, whenever that changes.

Each event is the whole standing, so a client that was away or is slow misses nothing that matters, and nothing queues
up for it. What another replica took is found by looking in the history now and then.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress

from anyio.to_thread import run_sync
from sse_starlette import ServerSentEvent

from limbeck.server.history import History, JobView
from limbeck.server.metrics import Metrics
from limbeck.server.refusal import Refusal

EVENT_PROGRESS = "progress"
EVENT_GONE = "gone"
_RETRY_SECONDS = 10.0


class Hub:
    """Wakes those who follow a job. All but `notify` belongs to the event loop."""

    def __init__(self, metrics: Metrics, max_streams: int) -> None:
        self._metrics, self._max_streams = metrics, max_streams
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: dict[str, set[asyncio.Event]] = {}
        self._num_streams = 0
        self._is_closing = False

    def open(self) -> None:
        """Take the running event loop as the one in which streams live."""
        self._loop = asyncio.get_running_loop()

    def close(self) -> None:
        """End all streams."""
        self._is_closing = True
        for uid in list(self._waiting):
            self._wake(uid)

    @property
    def is_closing(self) -> bool:
        """Whether the server stops."""
        return self._is_closing

    def notify(self, uid: str) -> None:
        """Something is new about a job; any thread may call."""
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._wake, uid)

    def check_room(self) -> None:
        """Raise Refusal where as many follow as may."""
        if self._num_streams >= self._max_streams:
            raise Refusal(503, "TooManyStreams", f"{self._max_streams} clients follow already", _RETRY_SECONDS)

    @contextmanager
    def following(self, uid: str) -> Iterator[asyncio.Event]:
        """An event that is set when something is new about a job."""
        woken = asyncio.Event()
        self._waiting.setdefault(uid, set()).add(woken)
        self._num_streams += 1
        self._metrics.streams.set(self._num_streams)
        try:
            yield woken
        finally:
            waiting = self._waiting[uid]
            waiting.discard(woken)
            if not waiting:
                del self._waiting[uid]
            self._num_streams -= 1
            self._metrics.streams.set(self._num_streams)

    def _wake(self, uid: str) -> None:
        for woken in self._waiting.get(uid, ()):
            woken.set()


async def follow(
    history: History, hub: Hub, uid: str, as_json: Callable[[JobView], str], poll_seconds: float
) -> AsyncIterator[ServerSentEvent]:
    """The job's standing now and at each change, until its history is dropped or the server stops."""
    shown = -1
    with hub.following(uid) as woken:
        while not hub.is_closing:
            woken.clear()
            view = await run_sync(history.by_uid, uid)
            if view is None:
                yield ServerSentEvent(data="{}", event=EVENT_GONE)
                return
            if view.revision != shown:
                shown = view.revision
                yield ServerSentEvent(data=as_json(view), event=EVENT_PROGRESS, id=str(shown))
            with suppress(TimeoutError):
                await asyncio.wait_for(woken.wait(), poll_seconds)
