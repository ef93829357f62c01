"""StepRecorder: one call for each optimiser update, handed on to metrics, events and history.

A training loop speaks to this alone. Losses may be tensors; they are read off the device only for
the few updates that are shown or recorded, so that a GPU is not made to wait at every one.
Left out: the capture's and the evaluation's progress, which go to the EventLog as they are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Protocol, SupportsFloat

from limbeck_runtime.telemetry.events import PROGRESS_INTERVAL_SECONDS, EventLog
from limbeck_runtime.telemetry.metrics import Metrics
from limbeck_runtime.telemetry.progress import ProgressLog, ProgressRecord
from limbeck_runtime.telemetry.rate import Rate


class Tracker(Protocol):
    """An experiment tracker: TensorBoardWriter is one."""

    def write(self, record: ProgressRecord) -> None:
        """Take one recorded update."""


class StepRecorder:
    """Progress of the training inside one pipeline step. Belongs to the thread that trains."""

    def __init__(
        self,
        step: str,
        num_updates: int,
        *,
        events: EventLog,
        metrics: Metrics | None = None,
        progress: ProgressLog | None = None,
        trackers: tuple[Tracker, ...] = (),
        phase: str = "train",
        unit: str = "batches",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._step, self._num_updates, self._phase, self._unit = step, num_updates, phase, unit
        self._events, self._metrics, self._progress, self._trackers = events, metrics, progress, trackers
        self._clock = clock
        self._updates = Rate(clock)
        self._samples = Rate(clock)
        self._show_due = clock()

    def update(
        self,
        update: int,
        epoch: float,
        num_samples: int,
        loss: SupportsFloat,
        terms: Mapping[str, SupportsFloat],
        *,
        learning_rate: float | None = None,
        data_wait_seconds: float = 0.0,
    ) -> None:
        """Optimiser update number `update`, from 1, is done; `loss` is the sum of the weighted `terms`.

        `num_samples` counts those of all ranks. Hand over detached tensors that later updates do not
        change in place.
        """
        self._updates.add(1)
        self._samples.add(num_samples)
        if self._metrics is not None:
            self._metrics.train_step(self._step, update, epoch, num_samples, loss, terms)
            self._metrics.data_waited(data_wait_seconds)
        is_recorded = self._progress is not None and self._progress.wants(update, self._num_updates)
        now = self._clock()
        is_shown = now >= self._show_due or update == self._num_updates
        if not (is_recorded or is_shown):
            return
        record = ProgressRecord(
            step=self._step,
            update=update,
            epoch=epoch,
            loss=float(loss),
            terms={name: float(value) for name, value in terms.items()},
            learning_rate=learning_rate,
            samples_per_second=self._samples.per_second(),
        )
        if is_recorded:
            self._record(record)
        if is_shown:
            self._show_due = now + PROGRESS_INTERVAL_SECONDS
            self._show(record)

    def _record(self, record: ProgressRecord) -> None:
        if self._progress is not None:
            self._progress.write(record)
        for tracker in self._trackers:
            tracker.write(record)

    def _show(self, record: ProgressRecord) -> None:
        if self._metrics is not None:
            self._metrics.step_progress(self._step, record.update / self._num_updates)
        speed = self._updates.per_second()
        self._events.emit(
            "step_progress",
            step=self._step,
            phase=self._phase,
            done=record.update,
            total=self._num_updates,
            unit=self._unit,
            loss=record.loss,
            terms=dict(record.terms),
            samples_per_second=record.samples_per_second,
            eta_seconds=(self._num_updates - record.update) / speed if speed else None,
        )
