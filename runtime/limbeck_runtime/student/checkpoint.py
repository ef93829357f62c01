"""Checkpoints of a training run that cost the training step almost nothing.

A snapshot copies all tensors into one safetensors image (image.py). The copy runs in a background thread while
the next step computes its gradients, which changes no parameter; the step waits for it only before its update.
The same thread then commits image and record through the commit log, hashed and durable, and prunes. At most one
snapshot is in flight; an error of the thread is raised by the next call.

What is kept: the newest and the one before it, to which `load` falls back when the newest is damaged.
Left out on purpose: sharded files (one writer, rank 0, suffices for students) and deltas.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from limbeck_runtime.commitlog import CommitLog, Fence, SkippedCommit
from limbeck_runtime.storage import Storage
from limbeck_runtime.student.image import TensorImage

STATE_FILE = "state.safetensors"
_FORMAT = 1
_KEEP = 2


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A checkpoint that was read: how many steps were done, and the file of tensors."""

    step: int
    data: bytes


@dataclass(frozen=True, slots=True)
class SavedCheckpoint:
    """A checkpoint that is durable, and how long it took from its start."""

    step: int
    seconds: float


class Checkpoints:
    """Checkpoints of one run below one prefix; used from one thread.

    `fingerprint` stands for all that must be equal for a checkpoint to be of use: settings, inputs, the model's
    architecture and frozen weights. Checkpoints with another one are passed over.
    """

    def __init__(
        self,
        log: CommitLog,
        *,
        fingerprint: str,
        interval_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log = log
        self._fingerprint = fingerprint
        self._interval_seconds = interval_seconds
        self._clock = clock
        self._last_start = clock()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._in_flight: Future[SavedCheckpoint] | None = None
        self._copied = threading.Event()
        self._copied_on_gpu: torch.cuda.Event | None = None
        self._copied.set()
        self._image: TensorImage | None = None
        self._saved: list[SavedCheckpoint] = []
        self.skipped: tuple[SkippedCommit, ...] = ()
        self.blocked_seconds = 0.0  # how long all calls together held up the training loop

    def load(self) -> Snapshot | None:
        """The newest whole checkpoint of this run; damaged ones that were passed over are in `skipped`."""
        self._log.prune(_KEEP)  # what a crash may have kept from it, so do it before the janitor
        self._log.janitor()
        commit = self._log.latest()
        self.skipped = self._log.skipped
        if commit is None or commit.record.get("fingerprint") != self._fingerprint:
            return None
        if commit.record["format"] != _FORMAT:
            raise ValueError(
                f"checkpoint must have format {_FORMAT}, got {commit.record['format']}; "
                "go on with the version of limbeck that wrote it, or choose another output"
            )
        return Snapshot(commit.record["step"], commit.read(STATE_FILE))

    def due(self) -> bool:
        """Whether the interval has passed since the last checkpoint started, and none is in flight.

        With an interval of 0 it is always due, and `save` waits for the one in flight.
        """
        if self._interval_seconds == 0:
            return True
        busy = self._in_flight is not None and not self._in_flight.done()
        return not busy and self._clock() - self._last_start >= self._interval_seconds

    def save(self, updated: Mapping[str, torch.Tensor], buffers: Mapping[str, torch.Tensor], step: int) -> None:
        """Start a checkpoint of the state after `step` steps.

        `updated` must not change until `before_update` has returned; `buffers` are copied at once.
        """
        started = self._clock()
        self._wait_for_one_in_flight()
        copies = {name: buffer.detach().clone() for name, buffer in buffers.items()}
        self._copied.clear()
        self._last_start = started
        ready = _event_on_current_stream(updated)
        self._in_flight = self._thread.submit(self._write, {**updated, **copies}, step, started, ready)
        self.blocked_seconds += self._clock() - started

    def before_update(self) -> None:
        """Return when the tensors given to `save` may change again."""
        if self._in_flight is None:
            return
        started = self._clock()
        self._copied.wait()
        if self._copied_on_gpu is not None:
            torch.cuda.current_stream().wait_event(self._copied_on_gpu)
        if self._in_flight.done():
            self._wait_for_one_in_flight()
        self.blocked_seconds += self._clock() - started

    def wait(self) -> None:
        """Return when the checkpoint in flight is durable; raises what went wrong with it."""
        self._wait_for_one_in_flight()

    def take_saved(self) -> list[SavedCheckpoint]:
        """Checkpoints that became durable since the last call."""
        saved, self._saved = self._saved, []
        return saved

    def close(self) -> None:
        """End the thread after the checkpoint in flight; its error, if any, is dropped: call `wait` before."""
        self._thread.shutdown(wait=True)

    def _wait_for_one_in_flight(self) -> None:
        in_flight, self._in_flight = self._in_flight, None
        if in_flight is not None:
            self._saved.append(in_flight.result())

    def _write(
        self, tensors: Mapping[str, torch.Tensor], step: int, started: float, ready: torch.cuda.Event | None
    ) -> SavedCheckpoint:
        copied = None
        try:
            image = self._image = self._image or TensorImage(tensors)
            if ready is None:
                image.copy_from(tensors, tensors)
            else:
                copied = _copy_on_side_stream(image, tensors, ready)
            self._copied_on_gpu = copied
        finally:
            self._copied.set()
        if copied is not None:
            copied.synchronize()
        record: dict[str, Any] = {"format": _FORMAT, "fingerprint": self._fingerprint, "step": step}
        self._log.commit(record, {STATE_FILE: image.data})
        self._log.prune(_KEEP)
        return SavedCheckpoint(step, self._clock() - started)


@dataclass(frozen=True)
class CheckpointPlace:
    """Where a run keeps its checkpoints, to be sent to the worker that writes them."""

    storage: Storage
    fingerprint: str
    job_fence: Fence | None = None

    def open(self, interval_seconds: float, owner: Mapping[str, Any]) -> Checkpoints:
        """Take the place over: a worker of an earlier gang that still lives can commit nothing from now on.

        Raises FencedError if another driver has taken over the job.
        """
        self.check()
        log = CommitLog(self.storage, Fence.claim(self.storage, owner))
        return Checkpoints(log, fingerprint=self.fingerprint, interval_seconds=interval_seconds)

    def check(self) -> None:
        """Raise FencedError if another driver has taken over the job."""
        if self.job_fence is not None:
            self.job_fence.check()


def _event_on_current_stream(tensors: Mapping[str, torch.Tensor]) -> torch.cuda.Event | None:
    """For tensors on a GPU: the point in its stream up to which they are computed."""
    if not any(tensor.device.type == "cuda" for tensor in tensors.values()):
        return None
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()
    return event


def _copy_on_side_stream(
    image: TensorImage, tensors: Mapping[str, torch.Tensor], ready: torch.cuda.Event
) -> torch.cuda.Event:
    """Enqueue the copies beside the training stream. Not run on a GPU yet."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        stream.wait_event(ready)
        image.copy_from(tensors, tensors)
        copied.record()
    return copied
