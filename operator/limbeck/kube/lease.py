"""One of several replicas acts: a Lease object that its holder keeps renewing.

The times: a holder that could not renew for `deadline_seconds` stops being one; others wait `duration_seconds`, which
is longer, from the moment at which they last saw it change on their own clock, so wall clocks need not agree. With the
defaults a follower acts within five seconds of a leader's sudden death, and at once after a clean stop.
Left out on purpose: handing over without a stop. Who loses the lease exits; a new process is the cleanest follower.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import structlog

from limbeck.kube.errors import AlreadyExistsError, ConflictError, KubeError, NotFoundError
from limbeck.kube.transport import Object, Resource, Transport

LEASES: Final = Resource("coordination.k8s.io", "v1", "leases")
EXIT_LEASE_LOST: Final = 75  # "temporary failure": start me again
_RETRY_SECONDS: Final = 0.1
_WATCHDOG_SECONDS: Final = 0.05

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class LeaseTimes:
    duration_seconds: int = 4
    deadline_seconds: float = 3.25
    renew_seconds: float = 0.75
    poll_seconds: float = 0.25

    @property
    def request_seconds(self) -> float:
        """How long one request may take: a renewal that got no answer has time for another."""
        return (self.deadline_seconds - self.renew_seconds) / 2

    def __post_init__(self) -> None:
        if not 0 < self.renew_seconds < self.deadline_seconds < self.duration_seconds:
            raise ValueError(
                "a lease needs renew_seconds < deadline_seconds < duration_seconds, got "
                f"{self.renew_seconds}, {self.deadline_seconds}, {self.duration_seconds}"
            )


class LeaseLostError(Exception):
    """We do not hold the lease any more, or cannot know that we do."""


class Lease:
    """`identity` must be this process's own: a restarted one must not take itself for its predecessor."""

    def __init__(
        self,
        transport: Transport,
        namespace: str,
        name: str,
        identity: str,
        *,
        times: LeaseTimes | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._times = times or LeaseTimes()
        self._transport = transport.within(self._times.request_seconds)
        self._namespace = namespace
        self._name = name
        self.identity = identity
        self._clock = clock
        self._held_until = float("-inf")
        self._version = ""  # of the Lease object as we wrote it last
        self._rival: tuple[str, float] | None = None  # the version that another holds, and since when we know it

    def is_held(self) -> bool:
        """Ask right before a write: a process that slept through its deadline learns here that it is a follower."""
        return self._clock() < self._held_until

    def acquire(self, stop: threading.Event) -> bool:
        """Blocks until the lease is ours, or `stop` is set: then False."""
        while not stop.is_set():
            try:
                if self.try_acquire():
                    _log.info("lease acquired", lease=self._name, identity=self.identity)
                    return True
            except KubeError as error:
                _log.warning("lease cannot be looked at", lease=self._name, error=str(error))
            stop.wait(self._times.poll_seconds)
        return False

    def keep(self, stop: threading.Event) -> None:
        """Renews until `stop`; raises LeaseLostError on loss, even while a request hangs."""
        ended = threading.Event()

        def renew_until_ended() -> None:
            pause = self._times.renew_seconds
            while not ended.wait(pause):
                try:
                    if not self._renew():
                        self._held_until = float("-inf")
                        return
                    pause = self._times.renew_seconds
                except Exception as error:  # no answer, or one without sense; the deadline decides
                    _log.warning("lease not renewed", lease=self._name, error=str(error))
                    pause = _RETRY_SECONDS

        renewal = threading.Thread(target=renew_until_ended, name="lease-renewal", daemon=True)
        renewal.start()
        try:
            while not stop.wait(_WATCHDOG_SECONDS):
                if not self.is_held():
                    raise LeaseLostError(f"lease {self._namespace}/{self._name} is lost to {self.identity}")
        finally:
            ended.set()
        renewal.join(self._times.deadline_seconds)  # or its last write would meet that of `release`

    def release(self) -> None:
        """Lets a follower take over at once; whoever calls this must have stopped writing."""
        if not self.is_held():
            return
        self._held_until = float("-inf")
        try:
            self._write({"holderIdentity": None, "leaseDurationSeconds": 1, "renewTime": _now()}, self._version)
        except KubeError as error:
            _log.info("lease not released, it will run out", lease=self._name, error=str(error))

    def try_acquire(self) -> bool:
        """One look, and one write if the lease is free, ours, or has not changed for its duration."""
        try:
            lease = self._transport.get(LEASES, self._name, self._namespace)
        except NotFoundError:
            return self._create()
        spec, version = lease.get("spec") or {}, lease["metadata"]["resourceVersion"]
        holder = spec.get("holderIdentity") or ""
        if holder not in ("", self.identity):
            if self._rival is None or self._rival[0] != version:
                self._rival = (version, self._clock())
            if self._clock() - self._rival[1] < spec.get("leaseDurationSeconds", self._times.duration_seconds):
                return False
            _log.info("lease ran out", lease=self._name, holder=holder)
        transitions = spec.get("leaseTransitions", 0) + (holder != self.identity)
        fields = {"acquireTime": _now(), "leaseTransitions": transitions}
        return self._claim(lambda: self._write({**self._spec(), **fields}, version))

    def _create(self) -> bool:
        body = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": self._name, "namespace": self._namespace},
            "spec": {**self._spec(), "acquireTime": _now(), "leaseTransitions": 0},
        }
        return self._claim(lambda: self._transport.create(LEASES, body, self._namespace))

    def _renew(self) -> bool:
        """False when another holds it."""
        try:
            return self._claim(lambda: self._write(self._spec(), self._version)) or self._reclaim()
        except NotFoundError:
            return self._create()

    def _reclaim(self) -> bool:
        """After a conflict: an answer to our own write may have been lost."""
        lease = self._transport.get(LEASES, self._name, self._namespace)
        if (lease.get("spec") or {}).get("holderIdentity") != self.identity:
            return False
        return self._claim(lambda: self._write(self._spec(), lease["metadata"]["resourceVersion"]))

    def _claim(self, write: Callable[[], Object]) -> bool:
        """Held from before the request, the only time that is sure; False when another was faster."""
        asked_at = self._clock()
        try:
            self._version = write()["metadata"]["resourceVersion"]
        except (ConflictError, AlreadyExistsError):
            return False
        self._held_until = asked_at + self._times.deadline_seconds
        self._rival = None
        return True

    def _write(self, spec: Object, version: str) -> Object:
        body = {"metadata": {"resourceVersion": version}, "spec": spec}
        return self._transport.patch(LEASES, self._name, body, self._namespace)

    def _spec(self) -> Object:
        return {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": self._times.duration_seconds,
            "renewTime": _now(),
        }


def lead(
    lease: Lease,
    act: Callable[[], None],
    stop: threading.Event,
    *,
    wind_down: Callable[[], None] = lambda: None,
    exit_process: Callable[[int], object] = os._exit,
) -> None:
    """Waits for the lease, calls `act` (which starts what writes, and returns), and keeps the lease until `stop`.

    On stop: `wind_down`, which ends what writes, then release. On loss, whenever it comes, the process exits there and
    then: a thread in the middle of a write cannot be told to forget it.
    """
    if not lease.acquire(stop):
        return
    finished = threading.Event()

    def keep() -> None:
        try:
            lease.keep(finished)
        except LeaseLostError as error:
            _log.error("exiting", because=str(error))
            exit_process(EXIT_LEASE_LOST)
            stop.set()  # for an exit_process that comes back

    keeper = threading.Thread(target=keep, name="lease", daemon=True)
    keeper.start()
    try:
        act()
        stop.wait()
        wind_down()
    finally:
        finished.set()
        keeper.join()
    lease.release()


def _now() -> str:
    """For people who look at the object; nobody compares it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
