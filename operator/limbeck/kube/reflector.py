"""Keeps a cache in step with the API server, whatever the connection does: list in pages, then watch, then again.

What is believed: a list is the state, unless it is older than what was seen before; an event counts if it is newer
than what is known of its object; where that cannot be told, list again. Every new list or watch soon after the last
one waits longer than the one before, so that no failure becomes a hot loop.
Left out on purpose: kinds whose resource versions are no numbers (aggregated APIs that keep their own store).
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from limbeck.kube.backoff import Backoff
from limbeck.kube.cache import Cache, Change, Key, key_of, version_of
from limbeck.kube.errors import GoneError, KubeError, NotFoundError
from limbeck.kube.transport import WATCH_SILENCE_SECONDS, Object, Resource, Transport, WatchStream

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Patience:
    """The times of a reflector, in seconds."""

    watch: float = 300.0  # asked of the server; each watch takes up to twice as long, so that not all end at once
    silence: float = WATCH_SILENCE_SECONDS
    relist: float = 900.0  # an event that was lost for good is made up for by then
    steady: float = 10.0  # a watch that lived so long was no failure
    stale_list: float = 300.0  # an older list is refused for so long; then etcd was restored from a backup
    backoff: Backoff = field(default_factory=Backoff)


class StaleListError(KubeError):
    """A list older than what was seen before, from an API server that lags behind."""


class _OutOfOrderError(KubeError):
    """An event older than others before it, about an object that is not known."""


class Reflector:
    """Runs in a thread of its own. `on_change` is called there after the cache has the change; it must not raise."""

    def __init__(
        self,
        transport: Transport,
        resource: Resource,
        cache: Cache,
        on_change: Callable[[Change], None] = lambda _change: None,
        *,
        namespace: str | None = None,
        label_selector: str | None = None,
        page_size: int = 500,
        patience: Patience | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.resource = resource
        self.cache = cache
        self.synced = threading.Event()  # set by the first complete list, and never cleared
        self.problem: KubeError | None = None  # why it is not in step just now; NotFoundError: the kind is not served
        self.num_lists = 0
        self.num_watches = 0
        self._transport = transport
        self._on_change = on_change
        self._namespace = namespace
        self._label_selector = label_selector
        self._page_size = page_size
        self._patience = patience or Patience()
        self._clock = clock
        self._stopped = threading.Event()
        self._stream_lock = threading.Lock()
        self._stream: WatchStream | None = None
        self._seen = 0  # the newest resource version that any list, event or bookmark named
        self._stale_since: float | None = None
        self._thread = threading.Thread(target=self.run, name=f"reflector-{resource.plural}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_seconds: float = 5.0) -> bool:
        """Ends the watch at once; whether the thread has ended."""
        self._stopped.set()
        with self._stream_lock:
            if self._stream is not None:
                self._stream.close()
        if self._thread.ident is not None:
            self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    @property
    def is_alive(self) -> bool:
        """Whether its thread runs."""
        return self._thread.is_alive()

    def run(self) -> None:
        """Until `stop`; nothing that the API server does ends it."""
        num_failures = 0
        version: int | None = None
        list_by = 0.0
        while not self._stopped.is_set():
            started = self._clock()
            try:
                if version is None or started >= list_by:
                    list_by = started + self._patience.relist  # even if it fails: there is a watch to go on with
                    version = self._list()
                self._watch(version, min(self._patience.watch * random.uniform(1, 2), max(1.0, list_by - started)))
                version = self._seen
            except (GoneError, _OutOfOrderError) as error:
                version = None
                _log.info("list again", resource=str(self.resource), because=str(error))
            except KubeError as error:
                if version is not None:
                    version = self._seen
                self._report(error)
            except Exception as error:
                version = None
                self._report(KubeError(0, "Unexpected", f"{type(error).__name__}: {error}"), error)
            num_failures = 0 if self._clock() - started >= self._patience.steady else num_failures + 1
            at_least = self.problem.retry_after if self.problem is not None else None
            if num_failures or at_least:
                self._stopped.wait(self._patience.backoff.delay(num_failures, at_least))

    def _list(self) -> int:
        """Brings the cache to the state of a new list and returns its resource version."""
        self.num_lists += 1
        try:
            listed, version = self._take_in_pages(self._page_size)
        except GoneError:  # the token of a page expired: in one piece, then
            listed, version = self._take_in_pages(None)
        for key in self.cache.all_keys():
            if key not in listed:
                self._tell(self.cache.remove(key, version))
        self._seen = version
        self.synced.set()
        return version

    def _take_in_pages(self, limit: int | None) -> tuple[set[Key], int]:
        """Page by page into the cache, so that not all are decoded at once; the keys, and the version of all pages."""
        listed: set[Key] = set()
        token: str | None = None
        while not self._stopped.is_set():
            page = self._transport.list(
                self.resource, self._namespace, label_selector=self._label_selector, limit=limit, continue_=token
            )
            version = version_of(page)
            if token is None:
                self._refuse_if_stale(version)
            # A list leaves out of its items what they are.
            kind = {"apiVersion": page["apiVersion"], "kind": page["kind"].removesuffix("List")}
            for item in page["items"]:
                listed.add(key_of(item))
                self._tell(self.cache.put({**kind, **item}))
            token = page["metadata"].get("continue")
            if not token:
                return listed, version
        raise KubeError(0, "Stopped", "in the middle of a list")

    def _refuse_if_stale(self, version: int) -> None:
        if version >= self._seen:
            self._stale_since = None
            return
        now = self._clock()
        if self._stale_since is None:
            self._stale_since = now
        if now - self._stale_since < self._patience.stale_list:
            raise StaleListError(0, "StaleList", f"a list at {version}, but {self._seen} was seen before")
        _log.warning("the API server has gone back for good; beginning anew", seen=self._seen, listed=version)
        self._stale_since = None
        for key in self.cache.all_keys():
            self._tell(self.cache.remove(key, self._seen))

    def _watch(self, version: int, seconds: float) -> None:
        self.num_watches += 1
        stream = self._transport.watch(
            self.resource,
            self._namespace,
            resource_version=str(version),
            timeout_seconds=seconds,
            label_selector=self._label_selector,
            silence_seconds=self._patience.silence,
        )
        with stream:
            with self._stream_lock:
                self._stream = stream
            if self._stopped.is_set():
                return
            self._recovered()
            for event in stream:
                self._take_in(event["type"], event["object"])
        with self._stream_lock:
            self._stream = None

    def _take_in(self, kind: str, item: Object) -> None:
        version = version_of(item)
        if kind == "BOOKMARK":
            self._seen = max(self._seen, version)
            return
        key = key_of(item)
        if version <= self._seen and kind != "DELETED" and self.cache.version(key) is None:
            raise _OutOfOrderError(0, "OutOfOrder", f"{key} at {version} after {self._seen}: deleted since, or not?")
        self._seen = max(self._seen, version)
        self._tell(self.cache.remove(key, version) if kind == "DELETED" else self.cache.put(item))

    def _tell(self, change: Change | None) -> None:
        if change is not None:
            self._on_change(change)

    def _report(self, error: KubeError, raised: Exception | None = None) -> None:
        """Each kind of problem is said once until it is over."""
        if self.problem is None or type(self.problem) is not type(error):
            say = _log.info if isinstance(error, NotFoundError) else _log.warning
            say("out of step", resource=str(self.resource), error=str(error), exc_info=raised)
        self.problem = error

    def _recovered(self) -> None:
        if self.problem is not None:
            _log.info("in step again", resource=str(self.resource))
        self.problem = None
