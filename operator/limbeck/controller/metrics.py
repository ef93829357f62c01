"""The operator's own metrics, in a registry of their own.

Only series of jobs that are not finished name a job; they vanish when it finishes or goes. A counter never names one.
Left out: what a run measures of itself (the runtime's metrics), and the HTTP endpoint.
"""

from __future__ import annotations

import threading
from collections import Counter as Tally
from collections.abc import Iterator
from dataclasses import dataclass, replace

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from limbeck.api.status import Phase
from limbeck.api.v1alpha1.job import CompressionJob
from limbeck.controller import names
from limbeck.controller.conditions import is_finished

_JOB_LABELS = ("namespace", "job_name")
_BUCKETS_SECONDS = (0.005, 0.02, 0.1, 0.25, 1.0, 5.0, 30.0)


@dataclass(frozen=True)
class _Live:
    phase: str
    attempt: int
    percent: int | None


class Metrics(Collector):
    """All numbers of one operator; safe to call from any thread."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self._lock = threading.Lock()
        self._phases: dict[tuple[str, str], str] = {}
        self._live: dict[tuple[str, str], _Live] = {}
        self._reconciles = Counter(
            names.METRIC_RECONCILES, "Rounds, by how they ended.", ("outcome",), registry=self.registry
        )
        self._seconds = Histogram(
            names.METRIC_RECONCILE_SECONDS, "Time of a round.", buckets=_BUCKETS_SECONDS, registry=self.registry
        )
        self._writes = Counter(
            names.METRIC_WRITES, "Writes to the API server, by what was written.", ("kind",), registry=self.registry
        )
        self._attempts = Counter(
            names.METRIC_ATTEMPTS_ENDED,
            "Attempts that another one may follow, by how they ended.",
            ("ending",),
            registry=self.registry,
        )
        self._finished = Counter(
            names.METRIC_JOBS_FINISHED, "Finished jobs, by why.", ("reason",), registry=self.registry
        )
        self.registry.register(self)
        ProcessCollector(registry=self.registry)

    def reconciled(self, seconds: float, error: Exception | None) -> None:
        """A round took so long and ended so."""
        self._reconciles.labels("ok" if error is None else type(error).__name__).inc()
        self._seconds.observe(seconds)

    def wrote(self, kind: str) -> None:
        """Something of this kind was written."""
        self._writes.labels(kind).inc()

    def attempt_ended(self, ending: str) -> None:
        """An attempt was closed."""
        self._attempts.labels(ending).inc()

    def finished(self, job: CompressionJob) -> None:
        """A job has reached a terminal state."""
        reasons = [each.reason for each in job.status.conditions if each.type in ("Complete", "Failed")]
        self._finished.labels(reasons[0] if reasons else "Unknown").inc()

    def seen(self, job: CompressionJob) -> None:
        """The state of a job, for the gauges."""
        key = (job.metadata.namespace or "", job.metadata.name)
        status = job.status
        phase = (status.phase or Phase.PENDING).value
        percent = None if status.progress is None else status.progress.percent
        with self._lock:
            self._phases[key] = phase
            if is_finished(status):
                self._live.pop(key, None)
            else:
                self._live[key] = _Live(phase, status.attempt, percent)

    def progressed(self, namespace: str, name: str, percent: int | None) -> None:
        """How far a job is; of one that is not live, nothing is kept."""
        key = (namespace, name)
        with self._lock:
            if key in self._live:
                self._live[key] = replace(self._live[key], percent=percent)

    def forget(self, namespace: str, name: str) -> None:
        """The job is gone."""
        with self._lock:
            self._phases.pop((namespace, name), None)
            self._live.pop((namespace, name), None)

    def collect(self) -> Iterator[Metric]:
        """What a scrape sees of the jobs."""
        with self._lock:
            counts, live = Tally(self._phases.values()), dict(self._live)
        jobs = GaugeMetricFamily(names.METRIC_JOBS, "Jobs, by phase.", labels=("phase",))
        for phase in Phase:
            jobs.add_metric((phase.value,), counts[phase.value])
        phases = GaugeMetricFamily(
            names.METRIC_JOB_PHASE, "Phase of a job that is not finished; always 1.", labels=(*_JOB_LABELS, "phase")
        )
        attempts = GaugeMetricFamily(
            names.METRIC_JOB_ATTEMPT, "Attempts that a job has begun, while not finished.", labels=_JOB_LABELS
        )
        progress = GaugeMetricFamily(
            names.METRIC_JOB_PROGRESS, "How far a job that is not finished is, 0 to 1.", labels=_JOB_LABELS
        )
        for key, state in live.items():
            phases.add_metric((*key, state.phase), 1)
            attempts.add_metric(key, state.attempt)
            if state.percent is not None:
                progress.add_metric(key, state.percent / 100)
        yield from (jobs, phases, attempts, progress)
