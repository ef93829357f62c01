"""Writes what is known to the jobs' status: progress, steps and result, by server-side apply with our own manager.

Driven by the history, so that neither a restart nor a second replica loses or doubles a write. Each job is written
once per interval at most. Left out: all other fields of the status, which are the operator's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

import structlog
from sqlalchemy.exc import SQLAlchemyError

from limbeck import names
from limbeck.kube.errors import (
    ConflictError,
    ForbiddenError,
    InvalidError,
    KubeError,
    NotFoundError,
    TooManyRequestsError,
    UnauthorizedError,
)
from limbeck.kube.transport import APPLY
from limbeck.server.cluster import JOBS, Cluster
from limbeck.server.history import History, JobView
from limbeck.server.metrics import Metrics
from limbeck.server.names import FIELD_MANAGER

_BATCH: Final = 100
_PASS_SECONDS: Final = 0.5
_MAX_PAUSE_SECONDS: Final = 60.0
_FORGET_SECONDS: Final = 3600.0
_DAY_SECONDS: Final = 86_400.0

_LOG = structlog.get_logger(__name__)


class Patcher:
    """Keeps the jobs' status up to date."""

    def __init__(
        self,
        cluster: Cluster,
        history: History,
        metrics: Metrics,
        clock: Callable[[], float],
        *,
        interval_seconds: float,
        retention_days: float,
    ) -> None:
        self._cluster, self._history, self._metrics, self._clock = cluster, history, metrics, clock
        self._interval_seconds = interval_seconds
        self._retention_seconds = retention_days * _DAY_SECONDS
        self._failures = 0
        self._forget_due = 0.0

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set; faults are logged and waited out, never raised."""
        pause_seconds = 0.0
        while not stop.wait(pause_seconds or _PASS_SECONDS):
            try:
                pause_seconds = self.work()
            except SQLAlchemyError as error:
                _LOG.warning("the history does not answer", error=type(error).__name__)
                pause_seconds = self._interval_seconds

    def work(self) -> float:
        """One pass over the jobs that are due. Returns for how many seconds the API server is to be left alone."""
        now = self._clock()
        if now >= self._forget_due:
            self._history.forget(self._retention_seconds)
            self._forget_due = now + _FORGET_SECONDS
        for view in self._history.claim_due(self._interval_seconds, _BATCH):
            pause_seconds = self._write(view)
            if pause_seconds:
                return pause_seconds
        self._metrics.jobs_behind.set(self._history.behind())
        return 0.0

    def _write(self, view: JobView) -> float:
        """Write one job's status; returns for how long to pause after a fault that is not this job's."""
        try:
            outcome = "written" if self._apply(view) else "gone"
        except NotFoundError:
            outcome = "gone"
        except ConflictError:  # the operator wrote meanwhile, or the job went: it is over when we come back
            self._count("conflict")
            return 0.0
        except InvalidError as error:
            # The same again would be refused again; the next event makes another.
            _LOG.error("a status is refused", job=view.key.name, namespace=view.key.namespace, error=str(error))
            outcome = "refused"
        except KubeError as error:
            return self._fault(view, error)
        self._count(outcome)
        self._history.patched(view)
        self._failures = 0
        return 0.0

    def _apply(self, view: JobView) -> bool:
        """Write the status; False where the job is no more, though another may have its name.

        The resource version guards what was read: the API server does not look at a UID in an apply to the status, and
        an apply to what is not there would create it.
        """
        found = self._cluster.get(JOBS, view.key.name, view.key.namespace)
        if found["metadata"]["uid"] != view.key.uid:
            return False
        metadata = {"name": view.key.name, "namespace": view.key.namespace}
        metadata["resourceVersion"] = found["metadata"]["resourceVersion"]
        self._cluster.patch(
            JOBS,
            view.key.name,
            {
                "apiVersion": names.API_VERSION,
                "kind": names.KIND,
                "metadata": metadata,
                "status": view.standing.to_status(),
            },
            view.key.namespace,
            subresource="status",
            content_type=APPLY,
            field_manager=FIELD_MANAGER,
            force=True,
        )
        return True

    def _fault(self, view: JobView, error: KubeError) -> float:
        self._count("error")
        self._failures += 1
        pause_seconds = min(self._interval_seconds * 2.0 ** (self._failures - 1), _MAX_PAUSE_SECONDS)
        if isinstance(error, TooManyRequestsError):
            pause_seconds = max(pause_seconds, error.retry_after or 0.0)
        if isinstance(error, ForbiddenError | UnauthorizedError):
            _LOG.error("may not write a status; grant `patch` on compressionjobs/status", error=str(error))
        else:
            _LOG.warning("the API server takes no status", error=str(error), pause_seconds=pause_seconds)
        self._history.postpone(view, pause_seconds)
        return pause_seconds

    def _count(self, outcome: str) -> None:
        self._metrics.status_patches.labels(outcome).inc()
