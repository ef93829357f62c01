"""Following one job: its state now and at each change, through all that a watch can meet on its way.

A watch that ends, is cut or grows too old is begun again; one that was cut is preceded by a list, so nothing is missed
but states between. Trouble that lasts longer than `patience_seconds` is raised.
Left out: more than one job (`limbeck.kube.reflector` keeps whole kinds in step).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from limbeck.cli.cluster import Cluster
from limbeck.cli.kinds import JOBS
from limbeck.kube.backoff import Backoff
from limbeck.kube.errors import GoneError, KubeError, ServerError, TooManyRequestsError, UnreachableError
from limbeck.kube.transport import WATCH_SILENCE_SECONDS, Object

_WATCH_SECONDS: Final = 300.0
_STEADY_SECONDS: Final = 1.0
_TRANSIENT: Final = (UnreachableError, ServerError, TooManyRequestsError)


class TimeIsUpError(Exception):
    """What was waited for did not come in time."""


@dataclass(frozen=True)
class Patience:
    """How to bear trouble. `pause` waits so many seconds; `told` hears of trouble once until it is over."""

    seconds: float = 120.0
    backoff: Backoff = field(default_factory=lambda: Backoff(base_seconds=0.5, cap_seconds=10.0))
    pause: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    told: Callable[[KubeError], None] = lambda _error: None


def follow(
    cluster: Cluster, job: Object, *, timeout_seconds: float | None = None, patience: Patience | None = None
) -> Iterator[Object | None]:
    """The job at each change; None once it is gone, and then no more. A new one of the same name is not it.

    Raises TimeIsUpError, and KubeError where trouble lasts.
    """
    patience = patience or Patience()
    deadline = None if timeout_seconds is None else patience.clock() + timeout_seconds
    watched = _Watched(cluster, job["metadata"]["namespace"], job["metadata"]["name"], job["metadata"]["uid"])
    well_at, num_failures = patience.clock(), 0
    while True:
        began = patience.clock()
        left = _left(deadline, began)
        try:
            for state in watched.once(min(left, _WATCH_SECONDS)):
                well_at, num_failures = patience.clock(), 0
                yield state
                if state is None:
                    return
                _left(deadline, patience.clock())
            well_at = patience.clock()
            if well_at - began >= _STEADY_SECONDS:
                num_failures = 0
                continue
            # A server that ends every watch at once must not be asked without a pause.
            at_least = None
        except GoneError as error:
            watched.version = None
            at_least = error.retry_after
        except _TRANSIENT as error:
            watched.version = None
            if patience.clock() - well_at > patience.seconds:
                raise
            if num_failures == 0:
                patience.told(error)
            at_least = error.retry_after
        num_failures += 1
        wait = patience.backoff.delay(num_failures, at_least)
        patience.pause(min(wait, _left(deadline, patience.clock())))


class _Watched:
    """One job by its UID, and how much of its story is known."""

    def __init__(self, cluster: Cluster, namespace: str, name: str, uid: str) -> None:
        self.version: str | None = None  # None: list before the next watch
        self._transport, self._namespace, self._uid = cluster.transport, namespace, uid
        self._selector = f"metadata.name={name}"
        self._shown: str | None = None

    def once(self, seconds: float) -> Iterator[Object | None]:
        """What a list, if one is due, and one watch of at most so many seconds tell."""
        if self.version is None:
            page = self._transport.list(JOBS, self._namespace, field_selector=self._selector)
            self.version = page["metadata"]["resourceVersion"]
            found = next((item for item in page["items"] if item["metadata"]["uid"] == self._uid), None)
            if found is None:
                yield None
                return
            kind = {"apiVersion": page["apiVersion"], "kind": page["kind"].removesuffix("List")}
            yield from self._new({**kind, **found})
        stream = self._transport.watch(
            JOBS,
            self._namespace,
            resource_version=self.version,
            timeout_seconds=seconds,
            field_selector=self._selector,
            silence_seconds=min(WATCH_SILENCE_SECONDS, seconds + 5),
        )
        with stream:
            for event in stream:
                item = event["object"]
                self.version = item["metadata"]["resourceVersion"]
                if event["type"] == "BOOKMARK":
                    continue
                if event["type"] == "DELETED" or item["metadata"]["uid"] != self._uid:
                    yield None
                    return
                yield from self._new(item)

    def _new(self, item: Object) -> Iterator[Object]:
        """The state, if it is not the one shown last."""
        if item["metadata"]["resourceVersion"] != self._shown:
            self._shown = item["metadata"]["resourceVersion"]
            yield item


def _left(deadline: float | None, now: float) -> float:
    if deadline is None:
        return float("inf")
    if now >= deadline:
        raise TimeIsUpError
    return deadline - now
