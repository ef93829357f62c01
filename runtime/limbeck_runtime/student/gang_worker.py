"""One worker of a gang: an actor's side of gang.py, and what it answers.

The actor has threads of its own for `poll` and `stop`, so that it answers while it trains.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from limbeck.api.v1alpha1.training import Training
from limbeck_runtime.student.checkpoint import CheckpointPlace, Checkpoints, Snapshot
from limbeck_runtime.student.collectives import RowGather
from limbeck_runtime.student.determinism import reproducible, seed_everything
from limbeck_runtime.student.image import TensorImage
from limbeck_runtime.student.loop import TrainingRun
from limbeck_runtime.student.parts import Build, TrainParts, Worker
from limbeck_runtime.student.records import Callbacks, Interrupted, TrainResult

# A collective may wait for as long as another worker waits for the teacher; who is dead is found by polling.
_COLLECTIVE_TIMEOUT = timedelta(hours=24)
_JOIN_TIMEOUT = timedelta(seconds=60)


@dataclass(frozen=True)
class Address:
    """Where the workers of one gang find each other."""

    host: str
    port: int


@dataclass(frozen=True)
class Process:
    """Where a worker's process is."""

    node_id: str
    pid: int

    def kill(self) -> None:
        """End the process at once, stopped or not; to be run on its node."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)


@dataclass(frozen=True)
class Ending:
    """How a worker's part of a run ended, where it did not raise.

    `memory_step`: steps done in the state that the worker kept, where it lost touch with the others.
    """

    kind: Literal["finished", "interrupted", "lost touch"]
    step: int = 0
    weights: bytes = b""
    memory_step: int | None = None
    detail: str = ""


def best_device() -> torch.device:
    """The GPU that this process may use, or the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def build_parts(build: Build, worker: Worker) -> TrainParts:
    """What to train. Random weights come out the same on all workers and in each attempt."""
    with reproducible(worker.device):
        seed_everything(0, 0, 0, 0)
        return build(worker)


class GangWorker:
    """What runs in the actor's process."""

    def __init__(self) -> None:
        self._device = best_device()
        self._lock = threading.Lock()
        self._told: list[tuple[str, Any]] = []
        self._stop = threading.Event()
        self._memory: Snapshot | None = None
        self._store: TCPStore | None = None

    def ready(self) -> Process:
        """Answers when the process has imported all that it needs."""
        import ray

        return Process(ray.get_runtime_context().get_node_id(), os.getpid())

    def offer_store(self) -> Address:
        """Open a store on a free port, which the operating system chooses, for the next `join`."""
        from ray.util import get_node_ip_address

        host = get_node_ip_address()
        self._store = TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=_JOIN_TIMEOUT)
        return Address(host, self._store.port)

    def join(self, rank: int, world_size: int, address: Address) -> None:
        """Form a process group with the other workers; raises what torch raises."""
        self.leave()
        store = self._store if rank == 0 else None
        if store is None:
            store = TCPStore(address.host, address.port, is_master=False, timeout=_JOIN_TIMEOUT)
        backend = "nccl" if self._device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=_COLLECTIVE_TIMEOUT)

    def leave(self) -> None:
        """Leave the process group, whole or broken."""
        if dist.is_initialized():
            dist.destroy_process_group()

    def train(
        self,
        rank: int,
        world_size: int,
        build: Build,
        settings: Training,
        place: CheckpointPlace | None,
        memory_rank: int | None,
    ) -> Ending:
        """Train one worker's part, from the memory of worker `memory_rank` or else from the newest checkpoint."""
        worker = Worker(rank, world_size, self._device, RowGather(rank, world_size))
        memory, self._memory = self._memory, None
        checkpoints = None
        if place is not None and rank == 0:
            checkpoints = place.open(settings.checkpoint_interval_seconds, {"pid": os.getpid()})
        try:
            snapshot = memory
            if memory_rank is None:
                snapshot = self._load(checkpoints)
            run = TrainingRun(build_parts(build, worker), settings, worker, checkpoints, self._callbacks())
            return self._run(run, snapshot, memory_rank or 0, rank)
        finally:
            if checkpoints is not None:
                checkpoints.close()

    def poll(self) -> list[tuple[str, Any]]:
        """Calls of the callbacks since the last poll: (name, argument)."""
        with self._lock:
            told, self._told = self._told, []
        return [(name, value.resolved() if name == "on_step" else value) for name, value in told]

    def stop(self) -> None:
        """Have the run stop after a checkpoint (rank 0)."""
        self._stop.set()

    def _load(self, checkpoints: Checkpoints | None) -> Snapshot | None:
        if checkpoints is None:
            return None
        snapshot = checkpoints.load()
        for skipped in checkpoints.skipped:
            self._tell("on_skipped")(skipped)
        return snapshot

    def _run(self, run: TrainingRun, snapshot: Snapshot | None, source_rank: int, rank: int) -> Ending:
        try:
            result = run.run(snapshot, source_rank=source_rank)
        except Interrupted as interrupted:
            return Ending("interrupted", interrupted.step)
        except Exception as error:
            if not is_lost_touch(error):
                raise
            self._memory = run.memory()
            step = self._memory.step if self._memory else None
            return Ending("lost touch", memory_step=step, detail=str(error))
        return Ending("finished", result.steps, pack(result) if rank == 0 else b"")

    def _callbacks(self) -> Callbacks:
        return Callbacks(
            on_resume=self._tell("on_resume"),
            on_step=self._tell("on_step"),
            on_checkpoint=self._tell("on_checkpoint"),
            should_stop=self._stop.is_set,
        )

    def _tell(self, name: str) -> Callable[[Any], None]:
        def tell(value: Any) -> None:
            with self._lock:
                self._told.append((name, value))

        return tell


def is_lost_touch(error: Exception) -> bool:
    """Whether an error means that another worker, or the way to it, is gone."""
    if isinstance(error, dist.DistBackendError | dist.DistNetworkError | dist.DistStoreError):
        return True
    # gloo's errors come as plain RuntimeErrors that name the file of gloo in which they arose.
    return isinstance(error, RuntimeError) and ("gloo" in str(error) or "Connection closed by peer" in str(error))


def pack(result: TrainResult) -> bytes:
    """A run's weights as a safetensors file, which crosses between processes faster than tensors do."""
    image = TensorImage(result.weights)
    image.copy_from(result.weights, result.weights)
    return bytes(image.data)
