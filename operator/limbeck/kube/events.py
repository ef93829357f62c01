"""Telling people what happened, in the Events of an object (`kubectl describe`), without ever slowing who tells.

The same thing said again counts up one Event instead of making another, and is written only when the count has
doubled or a minute has passed; an object that says very many different things is cut short. Events may be lost:
they are for people, nothing decides by them.
Left out on purpose: the older core/v1 Events; the API server shows events.k8s.io ones there as well.
"""

from __future__ import annotations

import queue
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal, NamedTuple, Protocol

import structlog

from limbeck.kube.errors import AlreadyExistsError, NotFoundError, ServerError, TooManyRequestsError, UnreachableError
from limbeck.kube.transport import Object, Resource

EVENTS: Final = Resource("events.k8s.io", "v1", "events")

_MAX_NOTE: Final = 1024  # what the API server takes
_REPEATS_SECONDS: Final = 360.0  # said again within this time, it is the same event
_REFRESH_SECONDS: Final = 60.0
_BURST: Final = 25
_SECONDS_PER_EVENT: Final = 60.0  # after a burst, an object may have one new event in so many seconds
_MAX_KNOWN: Final = 4096
_TRIES: Final = 3

_log = structlog.get_logger(__name__)

EventType = Literal["Normal", "Warning"]


class Fact(NamedTuple):
    """What is the same for two events that are one event said twice."""

    namespace: str
    uid: str
    type: str
    reason: str
    action: str
    note: str


class Writer(Protocol):
    """The calls of `Transport` that a recorder needs."""

    def create(self, resource: Resource, body: Object, namespace: str | None = None) -> Object: ...
    def patch(self, resource: Resource, name: str, body: Object, namespace: str | None = None) -> Object: ...


@dataclass
class _Said:
    name: str
    count: int
    written_count: int
    said_at: float
    written_at: float


@dataclass
class _Allowance:
    tokens: float
    at: float


class Write(NamedTuple):
    """To be created when it was said once, else counted up."""

    name: str
    times: int


class Repeats:
    """Decides what of all that is said gets written; `now` is in seconds. Remembers a bounded number of facts."""

    def __init__(self, new_name: Callable[[], str] = lambda: uuid.uuid4().hex[:16]) -> None:
        self._new_name = new_name
        self._said: OrderedDict[Fact, _Said] = OrderedDict()
        self._allowances: OrderedDict[str, _Allowance] = OrderedDict()

    def say(self, fact: Fact, now: float) -> Write | None:
        known = self._said.get(fact)
        if known is None or now - known.said_at > _REPEATS_SECONDS:
            return self._say_first(fact, now)
        self._said.move_to_end(fact)
        known.count += 1
        known.said_at = now
        if known.count < 2 * known.written_count and now - known.written_at < _REFRESH_SECONDS:
            return None
        known.written_count, known.written_at = known.count, now
        return Write(known.name, known.count)

    def forget(self, fact: Fact) -> None:
        """Its Event is gone (they live an hour); the next time it is said is the first."""
        self._said.pop(fact, None)

    def _say_first(self, fact: Fact, now: float) -> Write | None:
        if not self._allowed(fact.uid, now):
            return None
        self._said[fact] = _Said(self._new_name(), 1, 1, now, now)
        self._said.move_to_end(fact)
        if len(self._said) > _MAX_KNOWN:
            self._said.popitem(last=False)
        return Write(self._said[fact].name, 1)

    def _allowed(self, uid: str, now: float) -> bool:
        allowance = self._allowances.setdefault(uid, _Allowance(_BURST, now))
        self._allowances.move_to_end(uid)
        if len(self._allowances) > _MAX_KNOWN:
            self._allowances.popitem(last=False)
        allowance.tokens = min(_BURST, allowance.tokens + (now - allowance.at) / _SECONDS_PER_EVENT)
        allowance.at = now
        if allowance.tokens < 1:
            return False
        allowance.tokens -= 1
        return True


class EventRecorder:
    """`record` returns at once; one thread writes. `controller` and `instance` say who speaks."""

    def __init__(
        self,
        transport: Writer,
        *,
        controller: str,
        instance: str,
        clock: Callable[[], float] = time.monotonic,
        max_waiting: int = 1000,
    ) -> None:
        self._transport = transport
        self._controller = controller
        self._instance = instance[:128]
        self._clock = clock
        self._repeats = Repeats()
        self._waiting: queue.Queue[tuple[Object, Fact, str] | None] = queue.Queue(max_waiting)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._write_all, name="events", daemon=True)
        self.num_lost = 0

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_seconds: float = 5.0) -> bool:
        """Writes what waits, within the time; whether all was written."""
        self._stopped.set()
        try:
            self._waiting.put(None, timeout=timeout_seconds)
        except queue.Full:
            return False
        if self._thread.ident is not None:
            self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    def record(
        self, regarding: Mapping[str, Any], type_: EventType, reason: str, note: str, *, action: str = "Reconcile"
    ) -> None:
        """`reason` in CamelCase, `note` a sentence; `regarding` is the object itself."""
        metadata = regarding["metadata"]
        reference = {
            "apiVersion": regarding["apiVersion"],
            "kind": regarding["kind"],
            "name": metadata["name"],
            "uid": metadata["uid"],
            "resourceVersion": metadata.get("resourceVersion", ""),
        }
        namespace = metadata.get("namespace")
        if namespace:
            reference["namespace"] = namespace
        shortened = note if len(note.encode()) <= _MAX_NOTE else note.encode()[: _MAX_NOTE - 3].decode(errors="ignore")
        if shortened != note:
            shortened += "..."
        fact = Fact(namespace or "default", metadata["uid"], type_, reason, action, shortened)
        try:
            self._waiting.put_nowait((reference, fact, _now()))
        except queue.Full:
            self.num_lost += 1

    def _write_all(self) -> None:
        while (said := self._waiting.get()) is not None:
            reference, fact, at = said
            write = self._repeats.say(fact, self._clock())
            if write is None:
                continue
            try:
                self._write(reference, fact, at, write)
            except Exception as error:  # whatever it is: events are not worth a dead thread
                self.num_lost += 1
                self._repeats.forget(fact)
                _log.warning("event not written", reason=fact.reason, object=reference["name"], error=str(error))

    def _write(self, reference: Object, fact: Fact, at: str, write: Write) -> None:
        name = f"{reference['name'][:200]}.{write.name}"
        for left in reversed(range(_TRIES)):
            try:
                if write.times > 1:
                    series = {"series": {"count": write.times, "lastObservedTime": at}}
                    self._transport.patch(EVENTS, name, series, fact.namespace)
                else:
                    self._transport.create(EVENTS, self._body(name, reference, fact, at), fact.namespace)
                return
            except AlreadyExistsError:  # the answer to an earlier try was lost
                return
            except NotFoundError:
                if write.times == 1:
                    raise
                self._repeats.forget(fact)  # its Event is over an hour old: begin a new one
                fresh = self._repeats.say(fact, self._clock())
                if fresh is None:
                    return
                write, name = fresh, f"{reference['name'][:200]}.{fresh.name}"
            except (ServerError, TooManyRequestsError, UnreachableError) as error:
                if left == 0 or self._stopped.wait(min(error.retry_after or 1.0, 5.0)):
                    raise

    def _body(self, name: str, reference: Object, fact: Fact, at: str) -> Object:
        return {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": fact.namespace},
            "eventTime": at,
            "reportingController": self._controller,
            "reportingInstance": self._instance,
            "type": fact.type,
            "reason": fact.reason,
            "action": fact.action,
            "note": fact.note,
            "regarding": reference,
        }


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
