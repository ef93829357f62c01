"""The operator's moving parts, put together: what watches, what decides which job is looked at, and what acts.

It watches from the first moment on, so that a follower knows everything when it becomes the leader; it acts only
between `act` and `wind_down`, which whoever holds the lease calls.
Left out: the lease, the process (`__main__.py`), the endpoint (`endpoint.py`).
"""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from typing import Any, Final

import structlog

from limbeck import names
from limbeck.controller.lookup import INDEX_JOB, Lookup, job_label
from limbeck.controller.metrics import Metrics
from limbeck.controller.names import EVENT_SOURCE, JOBS, PODS, RAY_JOBS
from limbeck.controller.reconcile import Reconciler
from limbeck.controller.settings import ProcessSettings, Settings
from limbeck.kube.cache import Change, Key
from limbeck.kube.events import EventRecorder
from limbeck.kube.informer import Informer
from limbeck.kube.queue import KeyedQueue
from limbeck.kube.reflector import Patience
from limbeck.kube.transport import Resource, Transport
from limbeck.kube.workers import Workers

Object = dict[str, Any]

# What the server writes about a job: none of it is a reason to look at the job.
_SERVERS_STATUS: Final = ("progress", "steps", "result")

_log = structlog.get_logger(__name__)


class Operator:
    """One replica. `identity` is this process's own name, which its events carry; `patience` is its reflectors'."""

    def __init__(
        self,
        transport: Transport,
        settings: Settings,
        process: ProcessSettings,
        identity: str,
        *,
        patience: Patience | None = None,
    ) -> None:
        self.metrics = Metrics()
        self._queue: KeyedQueue[Key] = KeyedQueue()
        self._informers: dict[Resource, Informer] = {
            JOBS: Informer(transport, JOBS, self._job_changed, namespaces=process.namespaces, patience=patience)
        }
        for kind in (RAY_JOBS, PODS):
            self._informers[kind] = Informer(
                transport,
                kind,
                self._child_changed,
                namespaces=process.namespaces,
                label_selector=names.LABEL_JOB,
                indexes={INDEX_JOB: job_label},
                patience=patience,
            )
        self._recorder = EventRecorder(transport, controller=EVENT_SOURCE, instance=identity)
        reconciler = Reconciler(
            Lookup(transport, self._informers), self._recorder, self.metrics, settings, lambda: datetime.now(UTC)
        )
        self._workers = Workers(
            self._queue,
            lambda key: reconciler.reconcile(*key),
            num_workers=process.workers,
            on_result=lambda _key, seconds, error: self.metrics.reconciled(seconds, error),
        )
        self._acts = False

    def watch(self) -> None:
        """Begin to fill the caches; returns at once."""
        for informer in self._informers.values():
            informer.start()

    def wait_until_ready(self, stop: threading.Event, poll_seconds: float = 0.05) -> bool:
        """Blocks until the caches hold what there is; False if `stop` was set before."""
        while not self.is_ready:
            if stop.wait(poll_seconds):
                return False
        return True

    def act(self) -> None:
        """Begin to write. Only the holder of the lease may."""
        self._acts = True
        self._recorder.start()
        self._workers.start()
        _log.info("acting", jobs=len(self._informers[JOBS]))

    def wind_down(self) -> None:
        """End what writes: rounds that are under way end first, and events that wait are written."""
        if self._acts:
            self._workers.stop()
            self._recorder.stop()

    def stop_watching(self) -> None:
        for informer in self._informers.values():
            informer.stop()

    @property
    def is_ready(self) -> bool:
        """Whether it knows all that there is; a kind that is not served has nothing to know."""
        return all(informer.has_synced or not informer.is_served for informer in self._informers.values())

    @property
    def problems(self) -> list[str]:
        """Why it is not in step with the API server just now, for people."""
        return [
            f"{resource}: {problem}" for resource, informer in self._informers.items() for problem in informer.problems
        ]

    @property
    def is_alive(self) -> bool:
        """Whether every thread runs that should."""
        watching = all(informer.is_alive for informer in self._informers.values())
        return watching and (not self._acts or self._workers.is_alive)

    def _job_changed(self, change: Change) -> None:
        if change.old is not None and change.new is not None and _is_progress(change.old, change.new):
            progress = change.new["status"].get("progress") or {}
            self.metrics.progressed(*change.key, progress.get("percent"))
        else:
            self._queue.add(change.key)

    def _child_changed(self, change: Change) -> None:
        child = change.new if change.new is not None else change.old
        assert child is not None
        for job in job_label(child):
            self._queue.add(Key(change.key.namespace, job))


def _is_progress(old: Object, new: Object) -> bool:
    """Whether the two differ in nothing but what the server writes."""
    return _without_progress(old) == _without_progress(new) and old.get("status") != new.get("status")


def _without_progress(job: Object) -> Object:
    status = {key: value for key, value in (job.get("status") or {}).items() if key not in _SERVERS_STATUS}
    metadata = {key: value for key, value in job["metadata"].items() if key != "resourceVersion"}
    return {**job, "metadata": metadata, "status": status}
