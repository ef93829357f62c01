"""Capture workers as Ray actors, each a process with a teacher of its own.

Where a cluster has nodes for teachers (the resource `limbeck_teacher`), actors go only there, one for each unit of the
resource, with an equal share of the node's processors and one GPU if there are any. On any other cluster the first
actor asks for no processor, so that the capture goes on (slowly) beside a student that has taken them all; each
further one takes one. Left out: one teacher over several GPUs.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from limbeck_runtime.cluster import connect
from limbeck_runtime.teacher.capture import Capturer, CaptureResult, CaptureSettings
from limbeck_runtime.teacher.plan import CaptureTask
from limbeck_runtime.teacher.workers import TASKS_IN_HAND, Alive, Answer, Captured, Failed, Lost, Ready, new_name

# A resource that pods of the teacher pool have and others lack.
TEACHER_RESOURCE: Final = "limbeck_teacher"
# How often a worker is heard of, whatever it does.
_PING_SECONDS: Final = 1.0
_PING, _LOAD = "ping", "load"


@dataclass(frozen=True)
class Process:
    """Where an actor's process is."""

    node_id: str
    pid: int

    def kill(self) -> None:
        """End the process at once, stopped or not; to be run on its node."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)


@dataclass(frozen=True)
class Share:
    """What one actor asks of the cluster."""

    num_cpus: float
    num_gpus: float
    resources: Mapping[str, float]


def share_of(nodes: Sequence[Mapping[str, Any]], num_started: int) -> Share:
    """What the next actor asks for, after `num_started` others; `nodes` as `ray.nodes()` gives them."""
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    for_teachers = [resources for resources in alive if resources.get(TEACHER_RESOURCE)]
    if for_teachers:
        cpus = min(resources.get("CPU", 0) // resources[TEACHER_RESOURCE] for resources in for_teachers)
        gpus = min(resources.get("GPU", 0) for resources in for_teachers)
        return Share(cpus, 1 if gpus else 0, {TEACHER_RESOURCE: 1})
    gpus = max((resources.get("GPU", 0) for resources in alive), default=0)
    return Share(1 if num_started else 0, 1 if gpus else 0, {})


class WarmActors:
    """Ray and some actors, got ready in the background before there is work: processes up, all imported.

    A run that will capture calls `start` first and does other things meanwhile. Actors that nobody took end with
    `close`. One that was never started gives no actors.
    """

    def __init__(self) -> None:
        self._actors: list[Any] = []
        self._error: BaseException | None = None
        self._starting: threading.Thread | None = None

    def start(self, count: int) -> None:
        """Begin, and return at once; only the first call counts."""
        if self._starting is None:
            self._starting = threading.Thread(
                target=self._start, args=(count,), name="limbeck-warm-actors", daemon=True
            )
            self._starting.start()

    @property
    def actors(self) -> list[Any]:
        """Those that nobody has taken yet. Raises what connecting to Ray raised."""
        self._wait_for_start()
        if self._error is not None:
            raise self._error
        return self._actors

    def wait(self) -> None:
        """Return when all are up."""
        actors = self.actors
        import ray

        ray.get([actor.where.remote() for actor in actors])

    def take(self) -> Any | None:
        """One of them, or None when there are no more."""
        return self.actors.pop(0) if self.actors else None

    def close(self) -> None:
        """End those that are left."""
        self._wait_for_start()
        if self._actors:
            import ray

            while self._actors:
                ray.kill(self._actors.pop(), no_restart=True)

    def _wait_for_start(self) -> None:
        if self._starting is not None:
            self._starting.join()

    def _start(self, count: int) -> None:
        try:
            connect()
            self._actors += [_start_actor(place) for place in range(count)]
        except BaseException as error:
            self._error = error


class RayWorkers:
    """Workers as Ray actors; Ray must be connected. `warm` actors are taken first."""

    def __init__(self, settings: CaptureSettings, *, warm: WarmActors | None = None) -> None:
        import ray

        self._ray = ray
        self._settings = ray.put(settings)
        self._warm = warm
        self._actors: dict[str, Any] = {}
        self._processes: dict[str, Process] = {}
        self._pending: dict[Any, tuple[str, CaptureTask | str]] = {}

    def start(self) -> str:
        name = new_name()
        actor = self._warm.take() if self._warm is not None else None
        self._actors[name] = actor or _start_actor(len(self._actors))
        self._pending[self._actors[name].where.remote()] = (name, _PING)
        self._pending[self._actors[name].load.remote(self._settings)] = (name, _LOAD)
        return name

    def submit(self, worker: str, task: CaptureTask) -> None:
        self._pending[self._actors[worker].capture.remote(task)] = (worker, task)

    def stop(self, worker: str, *, hung: bool = False) -> None:
        self._ray.kill(self._actors.pop(worker), no_restart=True)
        process = self._processes.pop(worker, None)
        if hung and process is not None:
            self._kill(process)
        self._pending = {ref: place for ref, place in self._pending.items() if place[0] != worker}

    def answers(self, timeout_seconds: float) -> list[Answer]:
        refs = list(self._pending)
        if not refs:
            threading.Event().wait(timeout_seconds)
            return []
        first, _ = self._ray.wait(refs, num_returns=1, timeout=timeout_seconds)
        # Whatever else is there by now comes along.
        done = self._ray.wait(refs, num_returns=len(refs), timeout=0)[0] if first else []
        return [self._answer(ref) for ref in done]

    def _answer(self, ref: Any) -> Answer:
        worker, what = self._pending.pop(ref)
        task = what if isinstance(what, CaptureTask) else None
        try:
            value = self._ray.get(ref)
        except self._ray.exceptions.RayTaskError as error:
            return Failed(worker, task, f"{type(error.cause).__name__}: {error.cause}", error.cause)
        except self._ray.exceptions.RayError as error:
            return Lost(worker, f"its process ended ({type(error).__name__})")
        if isinstance(value, CaptureResult):
            assert task is not None
            return Captured(worker, task, value)
        if what == _LOAD:
            return Ready(worker)
        self._processes[worker] = value
        self._pending[self._actors[worker].ping.remote()] = (worker, _PING)
        return Alive(worker)

    def _kill(self, process: Process) -> None:
        """End a process that may be stopped: Ray asks it to exit, which it cannot, and keeps its resources taken."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        on_its_node = NodeAffinitySchedulingStrategy(process.node_id, soft=False)
        kill = self._ray.remote(Process.kill).options(num_cpus=0, scheduling_strategy=on_its_node, max_retries=0)
        kill.remote(process)


class CaptureActor:
    """What runs in the actor's process. Importing this module has imported torch and all that reads data."""

    def __init__(self) -> None:
        self._capturer: Capturer | None = None

    def where(self) -> Process:
        """Where this process is, at once."""
        import ray

        return Process(ray.get_runtime_context().get_node_id(), os.getpid())

    def ping(self) -> Process:
        """The same after a second: an answer that is always under way is the worker's heartbeat."""
        threading.Event().wait(_PING_SECONDS)
        return self.where()

    def load(self, settings: CaptureSettings) -> None:
        """Get ready to capture."""
        import ray
        import torch

        processors = ray.get_runtime_context().get_assigned_resources().get("CPU", 1)
        torch.set_num_threads(settings.num_threads or max(1, int(processors)))
        self._capturer = Capturer(settings)

    def capture(self, task: CaptureTask) -> CaptureResult:
        """One task; several at a time."""
        assert self._capturer is not None, "tasks come after `load`"
        return self._capturer.capture(task)


def _start_actor(num_started: int) -> Any:
    import ray

    share = share_of(ray.nodes(), num_started)
    return (
        ray.remote(CaptureActor)
        .options(
            num_cpus=share.num_cpus,
            num_gpus=share.num_gpus,
            resources=dict(share.resources),
            # Each failure is ours to count; Ray must not hide one by a silent restart.
            max_restarts=0,
            max_task_retries=0,
            # One thread beside those that capture, so that a busy worker still answers `ping`.
            max_concurrency=TASKS_IN_HAND + 1,
        )
        .remote()
    )
