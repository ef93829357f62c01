"""Where capture workers run: Ray actors, or threads of this process where there is no Ray.

Both take tasks and tell what became of them; the pool does not know which it has. Left out: whose turn it is.
"""

from __future__ import annotations

import uuid
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from threading import Event
from typing import Final, Protocol

from limbeck_runtime.teacher.capture import Capturer, CaptureResult, CaptureSettings
from limbeck_runtime.teacher.plan import CaptureTask

# Tasks that one worker has at a time: one in the model, one being decoded, one being encoded and written.
TASKS_IN_HAND: Final = 3


@dataclass(frozen=True)
class Alive:
    """A worker was heard of."""

    worker: str


@dataclass(frozen=True)
class Ready:
    """A worker has its teacher and takes tasks."""

    worker: str


@dataclass(frozen=True)
class Captured:
    """A task is done."""

    worker: str
    task: CaptureTask
    result: CaptureResult


@dataclass(frozen=True)
class Failed:
    """A task raised, or (without a task) the teacher could not be loaded."""

    worker: str
    task: CaptureTask | None
    error: str
    cause: BaseException | None = None


@dataclass(frozen=True)
class Lost:
    """A worker's process is gone."""

    worker: str
    reason: str


Answer = Alive | Ready | Captured | Failed | Lost


class Workers(Protocol):
    """A set of workers of the same settings."""

    def start(self) -> str:
        """Start one more worker and return its name; it is `Ready` later."""
        ...

    def submit(self, worker: str, task: CaptureTask) -> None:
        """Give a worker a task."""
        ...

    def stop(self, worker: str, *, hung: bool = False) -> None:
        """End a worker at once, whatever it does; `hung`: it may not be able to hear of it."""
        ...

    def answers(self, timeout_seconds: float) -> list[Answer]:
        """What has come in; waits for at most so long for the first."""
        ...


class ThreadWorkers:
    """Workers in this process, which share one teacher: for tests, and for runs too small for another process."""

    def __init__(self, settings: CaptureSettings) -> None:
        self._settings = settings
        self._capturer: Capturer | None = None
        self._threads: dict[str, ThreadPoolExecutor] = {}
        self._new: list[str] = []
        self._pending: dict[Future[CaptureResult], tuple[str, CaptureTask]] = {}

    def start(self) -> str:
        name = new_name()
        self._capturer = self._capturer or Capturer(self._settings)
        self._threads[name] = ThreadPoolExecutor(TASKS_IN_HAND, f"limbeck-teacher-{name}")
        self._new.append(name)
        return name

    def submit(self, worker: str, task: CaptureTask) -> None:
        assert self._capturer is not None
        self._pending[self._threads[worker].submit(self._capturer.capture, task)] = (worker, task)

    def stop(self, worker: str, *, hung: bool = False) -> None:
        self._threads.pop(worker).shutdown(cancel_futures=True)
        self._pending = {future: place for future, place in self._pending.items() if place[0] != worker}
        if not self._threads and self._capturer is not None:
            self._capturer.close()
            self._capturer = None

    def answers(self, timeout_seconds: float) -> list[Answer]:
        ready = [Ready(name) for name in self._new]
        self._new.clear()
        if ready:
            return list(ready)
        if not self._pending:
            Event().wait(timeout_seconds)
        done, _ = wait(self._pending, timeout_seconds, FIRST_COMPLETED)
        # A thread of this process cannot go silent without it.
        return [*(Alive(worker) for worker in self._threads), *(self._answer(future) for future in done)]

    def _answer(self, future: Future[CaptureResult]) -> Answer:
        worker, task = self._pending.pop(future)
        error = future.exception()
        if error is not None:
            return Failed(worker, task, f"{type(error).__name__}: {error}", error)
        return Captured(worker, task, future.result())


def new_name() -> str:
    """A name for a worker."""
    return uuid.uuid4().hex[:8]
