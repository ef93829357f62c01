"""Metrics: the state of a run as Prometheus sees it, in a registry of our own.

Updates only store plain numbers; the text is made when someone scrapes. So an update costs less
than a microsecond, a scrape shows the state of that moment, and nothing runs when nobody looks. A
loss may be a tensor: it is read (and on a GPU waited for) on scraping only, so hand over detached ones.
Left out: history (`progress.jsonl`) and Ray's own metrics.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate
from typing import SupportsFloat

from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from limbeck_runtime import names
from limbeck_runtime.telemetry.rate import Rate

ROLE_TEACHER = "teacher"
ROLE_STUDENT = "student"
CHECKPOINT_BUCKETS_SECONDS = (0.05, 0.2, 1.0, 5.0, 20.0, 60.0, 300.0)

# Numbers of one family by the values of its labels.
Samples = dict[tuple[str, ...], float]

_NO_TERMS: Mapping[str, SupportsFloat] = {}


class Metrics(Collector):
    """All numbers of one run.

    `train_step` and `data_waited` belong to the one thread that trains; the others may be called by any.
    """

    def __init__(self, job: str, version: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._info = (job, version)
        self._lock = threading.Lock()
        # (step, updates, epoch, loss, terms): replaced as a whole, so that no scrape sees half an update.
        self._train: tuple[str, int, float, SupportsFloat, Mapping[str, SupportsFloat]] | None = None
        self._rates = {ROLE_TEACHER: Rate(clock), ROLE_STUDENT: Rate(clock)}
        self._student = self._rates[ROLE_STUDENT]
        self._data_wait = Rate(clock)
        self._captured = self._consumed = self._reused = self._vanished = 0
        self._checkpoint_counts = [0] * (len(CHECKPOINT_BUCKETS_SECONDS) + 1)
        self._checkpoint_seconds = 0.0
        self._progress: dict[str, float] = {}
        self._bad_samples: dict[str, int] = {}
        self._recovery: dict[str, float] = {}
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(self)
        ProcessCollector(registry=self.registry)

    def train_step(
        self,
        step: str,
        updates: int,
        epoch: float,
        samples: int,
        loss: SupportsFloat,
        terms: Mapping[str, SupportsFloat] = _NO_TERMS,
    ) -> None:
        """One optimiser update of `step`: `updates` and `epoch` so far, `samples` of this update."""
        self._train = (step, updates, epoch, loss, terms)
        self._student.add(samples)

    def data_waited(self, seconds: float) -> None:
        """The training loop waited so long for a batch; zero counts too, and starts the clock."""
        self._data_wait.add(seconds)

    def shard_captured(self, samples: int) -> None:
        """A teacher actor wrote one shard of `samples`."""
        with self._lock:
            self._captured += 1
            self._rates[ROLE_TEACHER].add(samples)

    def shards_reused(self, count: int) -> None:
        """So many wanted shards were in the store already."""
        with self._lock:
            self._reused += count

    def shards_vanished(self, count: int) -> None:
        """So many shards that were in the store are not any more; they are captured again."""
        with self._lock:
            self._vanished += count

    def shard_consumed(self) -> None:
        """The student has read one shard for the first time."""
        with self._lock:
            self._consumed += 1

    def checkpoint_saved(self, seconds: float) -> None:
        """A checkpoint became durable after `seconds`."""
        with self._lock:
            self._checkpoint_counts[bisect_left(CHECKPOINT_BUCKETS_SECONDS, seconds)] += 1
            self._checkpoint_seconds += seconds

    def step_progress(self, step: str, ratio: float) -> None:
        """Pipeline step `step` is so far, 0 to 1."""
        self._progress[step] = ratio

    def bad_sample(self, reason: str, count: int = 1) -> None:
        """`count` samples were skipped; `reason` is one of an enumeration."""
        with self._lock:
            self._bad_samples[reason] = self._bad_samples.get(reason, 0) + count

    def recovered(self, step: str, ratio: float) -> None:
        """The main metric of the step's result over the teacher's."""
        self._recovery[step] = ratio

    def collect(self) -> Iterator[Metric]:
        """What a scrape sees. Every family is always there; those without a value yet have no sample."""
        yield _gauge(
            names.METRIC_RUN_INFO,
            "The run of this process; always 1.",
            (names.LABEL_JOB, names.LABEL_VERSION),
            {self._info: 1},
        )
        yield from self._collect_training()
        yield from self._collect_speed()
        yield from self._collect_store()
        yield self._collect_checkpoints()
        # Copies of the dicts: another thread may add an entry while this one reads.
        yield _gauge(
            names.METRIC_STEP_PROGRESS,
            "How far the step is, 0 to 1.",
            (names.LABEL_STEP,),
            {(step,): ratio for step, ratio in list(self._progress.items())},
        )
        yield _counter(
            names.METRIC_BAD_SAMPLES,
            "Samples skipped, by reason.",
            (names.LABEL_REASON,),
            {(reason,): count for reason, count in list(self._bad_samples.items())},
        )
        yield _gauge(
            names.METRIC_RECOVERY,
            "Main metric of the step's result over the teacher's.",
            (names.LABEL_STEP,),
            {(step,): ratio for step, ratio in list(self._recovery.items())},
        )

    def _collect_training(self) -> Iterator[Metric]:
        losses: Samples = {}
        updates: Samples = {}
        epochs: Samples = {}
        train = self._train
        if train is not None:
            step, num_updates, num_epochs, total, terms = train
            losses[step, names.TERM_TOTAL] = float(total)
            losses |= {(step, term): float(value) for term, value in terms.items()}
            updates[step,] = num_updates
            epochs[step,] = num_epochs
        yield _gauge(
            names.METRIC_TRAIN_LOSS,
            "Latest training loss, by term and in total.",
            (names.LABEL_STEP, names.LABEL_TERM),
            losses,
        )
        yield _counter(names.METRIC_TRAIN_UPDATES, "Optimiser updates made.", (names.LABEL_STEP,), updates)
        yield _gauge(names.METRIC_TRAIN_EPOCH, "Passes over the training data.", (names.LABEL_STEP,), epochs)

    def _collect_speed(self) -> Iterator[Metric]:
        speeds = {(role,): rate.per_second() for role, rate in self._rates.items()}
        yield _counter(
            names.METRIC_SAMPLES,
            "Samples worked off.",
            (names.LABEL_ROLE,),
            {(role,): rate.total for role, rate in self._rates.items()},
        )
        yield _gauge(
            names.METRIC_SAMPLES_PER_SECOND,
            "Samples per second over the last 10 s.",
            (names.LABEL_ROLE,),
            {role: speed for role, speed in speeds.items() if speed is not None},
        )
        share = self._data_wait.per_second()
        yield _gauge(
            names.METRIC_DATA_WAIT,
            "Share of the last 10 s in which training waited for data, 0 to 1.",
            (),
            {} if share is None else {(): min(share, 1.0)},
        )

    def _collect_store(self) -> Iterator[Metric]:
        with self._lock:
            captured, consumed, reused = self._captured, self._consumed, self._reused
            present = captured + reused - self._vanished
        yield _counter(names.METRIC_STORE_CAPTURED, "Shards of teacher outputs written.", (), {(): captured})
        yield _counter(names.METRIC_STORE_CONSUMED, "Shards that the student has begun to read.", (), {(): consumed})
        yield _gauge(
            names.METRIC_STORE_LAG,
            "Shards in the store that the student has not begun to read.",
            (),
            {(): present - consumed},
        )
        yield _gauge(
            names.METRIC_STORE_HIT,
            "Wanted shards that were in the store already, over all wanted so far.",
            (),
            {(): reused / (captured + reused)} if captured + reused else {},
        )

    def _collect_checkpoints(self) -> Metric:
        with self._lock:
            counts, seconds = list(self._checkpoint_counts), self._checkpoint_seconds
        bounds = [*(str(bound) for bound in CHECKPOINT_BUCKETS_SECONDS), "+Inf"]
        buckets = [(bound, float(count)) for bound, count in zip(bounds, accumulate(counts), strict=True)]
        return HistogramMetricFamily(
            names.METRIC_CHECKPOINT,
            "Time that a checkpoint took to become durable.",
            buckets=buckets,
            sum_value=seconds,
        )


class MetricsServer:
    """The HTTP endpoint of one `Metrics`, on a thread of its own until `close`."""

    def __init__(self, metrics: Metrics, port: int, address: str = names.LOOPBACK) -> None:
        """Listen on `port` of `address`, 0 for a free one. Raises ValueError when it cannot."""
        try:
            self._server, self._thread = start_http_server(port, address, registry=metrics.registry)
        except OSError as error:
            raise ValueError(
                f"`--metrics-port` must be a port that is free on {address}, got {port} ({error.strerror}); "
                "take another, or 0 for any free one, and see that `--metrics-host` is an address of this machine"
            ) from error
        self.port: int = self._server.server_port
        self.url = f"http://{address}:{self.port}/metrics"

    def close(self) -> None:
        """Stop listening and end the thread."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _gauge(name: str, documentation: str, labels: tuple[str, ...], samples: Samples) -> Metric:
    family = GaugeMetricFamily(name, documentation, labels=labels)
    for values, number in samples.items():
        family.add_metric(values, number)
    return family


def _counter(name: str, documentation: str, labels: tuple[str, ...], samples: Samples) -> Metric:
    family = CounterMetricFamily(name, documentation, labels=labels)
    for values, number in samples.items():
        family.add_metric(values, number)
    return family
