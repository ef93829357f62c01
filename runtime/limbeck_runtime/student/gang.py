"""Trains one task on one worker or on several: `train_gang` is all that a step needs to know of it.

One worker trains in this process, unless the cluster has pods for students. Several are Ray Core actors in a
placement group, pinned to those pods. When a worker dies or hangs, the others' process group breaks; they keep the
state of their last whole step in memory, a new worker takes the lost one's place, and the gang goes on from the
newest of those states, or from the newest checkpoint. An error of the training itself is raised as it is.

Ray Train is not used: its report() blocks for seconds and its snapshots are not crash-safe.
Left out on purpose: gangs that change their size while they run.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import closing

from safetensors.torch import load

from limbeck.api.v1alpha1.training import Training
from limbeck_runtime import cluster
from limbeck_runtime.student.checkpoint import CheckpointPlace
from limbeck_runtime.student.gang_actors import STUDENT_RESOURCE, GangActors, GangLostError, GangSettings, Lost
from limbeck_runtime.student.gang_worker import Ending, best_device, build_parts
from limbeck_runtime.student.loop import TrainingRun
from limbeck_runtime.student.parts import Build, Worker
from limbeck_runtime.student.records import Callbacks, Interrupted, Restart, TrainResult


def train_gang(
    build: Build,
    settings: Training,
    *,
    num_workers: int = 1,
    checkpoints: CheckpointPlace | None = None,
    callbacks: Callbacks | None = None,
    gang: GangSettings | None = None,
) -> TrainResult:
    """Train what `build` makes on `num_workers` workers, from the newest checkpoint if there is one.

    `build` must be picklable for several workers; it runs once on each. Callbacks run in this process.

    Raises:
        Interrupted, DivergedError: see records.py. GangLostError: workers were lost again and again.
        FencedError: a newer driver has taken over.
        TimeoutError: the cluster has no room for the workers.
        Whatever `build`, the stream, the loss and the checkpoints raise.
    """
    callbacks = callbacks or Callbacks()
    if num_workers == 1 and not _has_student_pods():
        return _train_here(build, settings, checkpoints, callbacks)
    cluster.connect()
    with closing(GangActors(num_workers, gang or GangSettings())) as actors:
        return _train_on(actors, build, settings, checkpoints, callbacks, gang or GangSettings())


def _train_here(build: Build, settings: Training, place: CheckpointPlace | None, callbacks: Callbacks) -> TrainResult:
    worker = Worker(device=best_device())
    parts = build_parts(build, worker)
    if place is None:
        return TrainingRun(parts, settings, worker, None, callbacks).run()
    with closing(place.open(settings.checkpoint_interval_seconds, {"pid": os.getpid()})) as checkpoints:
        snapshot = checkpoints.load()
        for skipped in checkpoints.skipped:
            callbacks.on_skipped(skipped)
        return TrainingRun(parts, settings, worker, checkpoints, callbacks).run(snapshot)


def _train_on(
    actors: GangActors,
    build: Build,
    settings: Training,
    place: CheckpointPlace | None,
    callbacks: Callbacks,
    gang: GangSettings,
) -> TrainResult:
    """Start the run on the actors, and again whenever some of them are lost."""
    memory_rank: int | None = None
    vain_restarts = 0
    while True:
        newest_step = actors.newest_step
        if place is not None:
            # A driver that was declared dead has lost its workers too, and must not wait for others.
            place.check()
        if memory_rank in actors.join():
            memory_rank = None  # it died meanwhile, and its memory with it
        endings = actors.train(build, settings, place, memory_rank, callbacks)
        first = endings[0]
        if isinstance(first, Ending) and first.kind == "finished":
            return TrainResult(first.step, load(first.weights))
        if isinstance(first, Ending) and first.kind == "interrupted":
            raise Interrupted(first.step)
        restart, memory_rank = restart_after(endings)
        vain_restarts = 0 if actors.newest_step > newest_step else vain_restarts + 1
        if vain_restarts > gang.max_vain_restarts:
            raise GangLostError(
                f"student workers were lost {vain_restarts} times in a row at step {newest_step} ({restart.reason}); "
                "give them more memory or other nodes, and run again"
            )
        callbacks.on_restart(restart)


def restart_after(endings: Mapping[int, Ending | Lost]) -> tuple[Restart, int | None]:
    """What to tell when workers were lost, and the rank whose memory to go on from: the newest, if any."""
    lost = [f"worker {rank} {ending.detail}" for rank, ending in endings.items() if isinstance(ending, Lost)]
    steps = {
        rank: ending.memory_step
        for rank, ending in endings.items()
        if isinstance(ending, Ending) and ending.memory_step is not None
    }
    others = [ending.detail for ending in endings.values() if isinstance(ending, Ending)]
    newest = max(steps, key=lambda rank: steps[rank]) if steps else None
    reason = "; ".join(lost) or f"workers lost touch with each other: {others[0]}"
    return Restart(reason, None if newest is None else steps[newest]), newest


def _has_student_pods() -> bool:
    """Whether this is a cluster with pods for students: then not even one worker may burden the head."""
    if os.environ.get("RAY_ADDRESS"):
        cluster.connect()
    if not cluster.connected():
        return False
    import ray

    return bool(ray.cluster_resources().get(STUDENT_RESOURCE))
