"""Where capture workers run: Ray actors, or a thread of this process where there is no Ray.

Both take tasks and answer with results; the pool does not know which it has. Left out: whose turn it is.
"""

from __future__ import annotations

import threading
import uuid
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Final, Protocol

from limbeck_runtime.teacher.capture import Capturer, CaptureResult, CaptureSettings
from limbeck_runtime.teacher.plan import CaptureTask

# Tasks that one worker has at a time: one in the model while another is decoded, encoded or written.
TASKS_IN_HAND: Final = 2
# A resource that pods of the teacher pool have and others lack; where a cluster has it, actors go only there.
TEACHER_RESOURCE: Final = "limbeck_teacher"
# How often a worker is heard of, whatever it does.
_PING_SECONDS: Final = 1.0


@dataclass(frozen=True)
class Answer:
    """What became of one task, or (without a task) that its worker is alive or lost."""

    worker: str
    task: CaptureTask | None = None
    result: CaptureResult | None = None
    error: str | None = None
    lost: bool = False


class Workers(Protocol):
    """A set of workers of the same settings."""

    def start(self) -> str:
        """Start one more worker and return its name; it answers once when it is ready."""
        ...

    def submit(self, worker: str, task: CaptureTask) -> None:
        """Give a worker a task."""
        ...

    def stop(self, worker: str) -> None:
        """End a worker at once, whatever it does."""
        ...

    def answers(self, timeout_seconds: float) -> list[Answer]:
        """What has come in; waits for at most so long for the first."""
        ...


class ThreadWorkers:
    """Workers in this process, which share one teacher."""

    def __init__(self, settings: CaptureSettings) -> None:
        self._settings = settings
        self._capturer: Capturer | None = None
        self._threads: dict[str, ThreadPoolExecutor] = {}
        self._pending: dict[Future[Any], tuple[str, CaptureTask | None]] = {}

    def start(self) -> str:
        name = uuid.uuid4().hex[:8]
        self._capturer = self._capturer or Capturer(self._settings)
        self._threads[name] = ThreadPoolExecutor(TASKS_IN_HAND, f"limbeck-teacher-{name}")
        return name

    def submit(self, worker: str, task: CaptureTask) -> None:
        assert self._capturer is not None
        self._pending[self._threads[worker].submit(self._capturer.capture, task)] = (worker, task)

    def stop(self, worker: str) -> None:
        self._threads.pop(worker).shutdown(cancel_futures=True)
        self._pending = {future: place for future, place in self._pending.items() if place[0] != worker}
        if not self._threads and self._capturer is not None:
            self._capturer.close()
            self._capturer = None

    def answers(self, timeout_seconds: float) -> list[Answer]:
        done, _ = wait(self._pending, timeout_seconds, FIRST_COMPLETED)
        # A thread of this process cannot go silent without it.
        found = [Answer(worker) for worker in self._threads]
        for future in done:
            worker, task = self._pending.pop(future)
            error = future.exception()
            text = None if error is None else f"{type(error).__name__}: {error}"
            found.append(Answer(worker, task, None if error else future.result(), text))
        return found


class RayWorkers:
    """Workers as Ray actors, each a process with a teacher of its own."""

    def __init__(self, settings: CaptureSettings, *, num_cpus: float = 1.0) -> None:
        import ray

        self._ray = ray
        resources = ray.cluster_resources()
        options: dict[str, Any] = {
            "num_cpus": num_cpus,
            "num_gpus": 1 if resources.get("GPU") else 0,
            # Each failure is ours to count; Ray must not hide one by a silent restart.
            "max_restarts": 0,
            "max_task_retries": 0,
            # One thread beside those that capture, so that a busy worker still answers `ping`.
            "max_concurrency": TASKS_IN_HAND + 1,
        }
        if resources.get(TEACHER_RESOURCE):
            options |= {"resources": {TEACHER_RESOURCE: 1}}
        self._actor = ray.remote(_CaptureActor).options(**options)
        self._settings = ray.put(settings)
        self._handles: dict[str, Any] = {}
        self._pending: dict[Any, tuple[str, CaptureTask | None]] = {}

    def start(self) -> str:
        name = uuid.uuid4().hex[:8]
        self._handles[name] = self._actor.remote(self._settings)
        self._ping(name)
        return name

    def submit(self, worker: str, task: CaptureTask) -> None:
        self._pending[self._handles[worker].capture.remote(task)] = (worker, task)

    def stop(self, worker: str) -> None:
        self._ray.kill(self._handles.pop(worker), no_restart=True)
        self._pending = {ref: place for ref, place in self._pending.items() if place[0] != worker}

    def answers(self, timeout_seconds: float) -> list[Answer]:
        if not self._pending:
            return []
        first, _ = self._ray.wait(list(self._pending), num_returns=1, timeout=timeout_seconds)
        # Whatever else is there by now comes along.
        done = self._ray.wait(list(self._pending), num_returns=len(self._pending), timeout=0)[0] if first else []
        return [self._answer(ref) for ref in done]

    def _answer(self, ref: Any) -> Answer:
        worker, task = self._pending.pop(ref)
        try:
            result = self._ray.get(ref)
        except self._ray.exceptions.RayActorError as error:
            # Raised by the constructor: a teacher that cannot be loaded is no accident of this worker.
            cause = getattr(error, "cause", None)
            return Answer(worker, task, error=str(cause or error), lost=True)
        except self._ray.exceptions.RayTaskError as error:
            return Answer(worker, task, error=f"{type(error.cause).__name__}: {error.cause}")
        if task is None:
            self._ping(worker)
            return Answer(worker)
        return Answer(worker, task, result)

    def _ping(self, worker: str) -> None:
        self._pending[self._handles[worker].ping.remote()] = (worker, None)


class _CaptureActor:
    """What runs in the actor's process."""

    def __init__(self, settings: CaptureSettings) -> None:
        self._capturer = Capturer(settings)

    def ping(self) -> None:
        """Answers after a second: an answer always under way is the worker's heartbeat."""
        threading.Event().wait(_PING_SECONDS)

    def capture(self, task: CaptureTask) -> CaptureResult:
        return self._capturer.capture(task)
