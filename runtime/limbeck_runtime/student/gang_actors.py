"""The actors of a gang: where they are placed, how they find each other, how they are watched.

What to do when some are lost is decided elsewhere (gang.py); here they are found out and replaced.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from limbeck.api.v1alpha1.training import Training
from limbeck_runtime.student.checkpoint import CheckpointPlace
from limbeck_runtime.student.gang_worker import Ending, GangWorker, Process
from limbeck_runtime.student.parts import Build
from limbeck_runtime.student.records import Callbacks

# A resource that pods of the student pool have and others lack; where a cluster has it, workers go only there.
STUDENT_RESOURCE: Final = "limbeck_student"
# One trains; the others answer polls, stop, and what a join that hangs leaves behind.
_THREADS: Final = 4


class GangLostError(RuntimeError):
    """Workers were lost again and again; another attempt may have better luck."""


@dataclass(frozen=True)
class GangSettings:
    """How a gang of several workers is placed, watched and started again."""

    cpus_per_worker: float = 1
    placement_timeout_seconds: float = 1800
    poll_seconds: float = 0.2
    # A worker that has not answered a poll for this long is hung, or cut off, and is killed.
    heartbeat_timeout_seconds: float = 60
    # How long the others may take to notice that a worker is gone, before they are taken for stuck too.
    settle_seconds: float = 20
    # Restarts in a row without a single new step.
    max_vain_restarts: int = 3
    join_timeout_seconds: float = 120
    join_attempts: int = 5
    join_backoff_seconds: float = 0.5


@dataclass(frozen=True)
class Lost:
    """A worker that is gone: its process died, or it was killed because it did not answer."""

    detail: str


@dataclass
class _Member:
    """One place in the gang and the actor that fills it."""

    actor: Any
    process: Process | None = None
    poll: Any = None  # the poll that is under way
    asked_at: float = 0.0
    told_to_stop: bool = False
    killed_because: str = ""


class GangActors:
    """Actors that train together, from the placement of their bundles to the end of the run."""

    def __init__(self, num_workers: int, gang: GangSettings) -> None:
        """Raises TimeoutError if the cluster has no room for the workers in time."""
        import ray

        self._ray = ray
        self._gang = gang
        self._bundle = self._bundle_for_one()
        self._group = ray.util.placement_group([self._bundle] * num_workers, strategy="PACK")
        self._members: list[_Member] = []
        patience_seconds = gang.placement_timeout_seconds if self._may_fit(num_workers) else 0
        if not self._group.wait(patience_seconds):
            ray.util.remove_placement_group(self._group)
            has = {name: ray.cluster_resources().get(name, 0) for name in self._bundle}
            raise TimeoutError(
                f"{num_workers} student workers with {self._bundle} each had no room within {patience_seconds:g} s "
                f"in a cluster of {has}; lower `spec.cluster.student.replicas` or add nodes"
            )
        self._members = [_Member(self._start(rank)) for rank in range(num_workers)]
        self.newest_step = 0

    def join(self) -> set[int]:
        """Form a process group, on a fresh port each time; ranks whose members were gone and are new.

        Raises GangLostError when that fails again and again.
        """
        error: Exception | None = None
        replaced: set[int] = set()
        for attempt in range(self._gang.join_attempts):
            if attempt:
                time.sleep(self._gang.join_backoff_seconds * 2**attempt)
            try:
                replaced |= self._replace_the_dead()
                first = self._members[0].actor
                address = self._ray.get(first.offer_store.remote(), timeout=self._gang.join_timeout_seconds)
                size = len(self._members)
                joins = [m.actor.join.remote(rank, size, address) for rank, m in enumerate(self._members)]
                self._ray.get(joins, timeout=self._gang.join_timeout_seconds)
                return replaced
            except self._ray.exceptions.RayError as failed:
                error = failed
        raise GangLostError(
            f"student workers could not form a process group in {self._gang.join_attempts} attempts; "
            f"see that pods of the student pool can reach each other on any port"
        ) from error

    def train(
        self,
        build: Build,
        settings: Training,
        place: CheckpointPlace | None,
        memory_rank: int | None,
        callbacks: Callbacks,
    ) -> dict[int, Ending | Lost]:
        """Train until all have ended, one way or another; raises what the training itself raises."""
        size, build_ref = len(self._members), self._ray.put(build)
        running = {
            member.actor.train.remote(rank, size, build_ref, settings, place, memory_rank): rank
            for rank, member in enumerate(self._members)
        }
        endings: dict[int, Ending | Lost] = {}
        deadline = float("inf")
        with self._told_to_the_end(callbacks):
            while running:
                done, _ = self._ray.wait(list(running), num_returns=1, timeout=self._gang.poll_seconds)
                for ref in done:
                    rank = running.pop(ref)
                    endings[rank] = ending = self._ending(ref, rank)
                    if isinstance(ending, Lost) or ending.kind == "lost touch":
                        deadline = min(deadline, time.monotonic() + self._gang.settle_seconds)
                self._poll(callbacks)
                if time.monotonic() > deadline:
                    for rank in running.values():
                        self._kill(rank, "was stuck after another worker was lost")
        return endings

    def close(self) -> None:
        """End all actors and give their places back."""
        for rank in range(len(self._members)):
            self._kill(rank, "is not needed any more")
        self._ray.util.remove_placement_group(self._group)

    def _bundle_for_one(self) -> dict[str, float]:
        resources = self._ray.cluster_resources()
        bundle = {"CPU": self._gang.cpus_per_worker}
        if resources.get("GPU"):
            bundle["GPU"] = 1
        if resources.get(STUDENT_RESOURCE):
            bundle[STUDENT_RESOURCE] = 1
        return bundle

    def _may_fit(self, num_workers: int) -> bool:
        """Whether waiting can help: the machine is large enough, or this is a cluster, to which nodes may come."""
        resources = self._ray.cluster_resources()
        enough = all(resources.get(name, 0) >= count * num_workers for name, count in self._bundle.items())
        return enough or bool(os.environ.get("RAY_ADDRESS"))

    def _start(self, rank: int) -> Any:
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        strategy = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=rank)
        return (
            self._ray.remote(GangWorker)
            .options(
                num_cpus=self._bundle["CPU"],
                num_gpus=self._bundle.get("GPU", 0),
                resources={name: count for name, count in self._bundle.items() if name == STUDENT_RESOURCE},
                scheduling_strategy=strategy,
                # Its failures are ours to handle: the others must be told, and a new group formed.
                max_restarts=0,
                max_task_retries=0,
                max_concurrency=_THREADS,
            )
            .remote()
        )

    def _replace_the_dead(self) -> set[int]:
        """Have an actor that answers in every place; the ranks that have a new one."""
        replaced = set()
        starting = {rank: member.actor.ready.remote() for rank, member in enumerate(self._members)}
        for rank, ready in starting.items():
            try:
                self._members[rank].process = self._ray.get(ready, timeout=self._gang.placement_timeout_seconds)
            except self._ray.exceptions.RayError:
                self._kill(rank, "did not start")
                self._members[rank] = _Member(self._start(rank))
                replaced.add(rank)
                ready = self._members[rank].actor.ready.remote()
                self._members[rank].process = self._ray.get(ready, timeout=self._gang.placement_timeout_seconds)
        return replaced

    def _ending(self, ref: Any, rank: int) -> Ending | Lost:
        try:
            ending: Ending = self._ray.get(ref)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except self._ray.exceptions.RayError as error:
            reason = self._members[rank].killed_because or f"died ({type(error).__name__})"
            return Lost(reason)
        return ending

    def _poll(self, callbacks: Callbacks) -> None:
        """Hear what each member has to tell; kill those that do not answer."""
        if callbacks.should_stop() and not self._members[0].told_to_stop:
            self._members[0].told_to_stop = True
            self._members[0].actor.stop.remote()
        for rank, member in enumerate(self._members):
            if member.poll is None:
                member.poll, member.asked_at = member.actor.poll.remote(), time.monotonic()
            if self._ray.wait([member.poll], timeout=0)[0]:
                poll, member.poll = member.poll, None
                self._tell(poll, callbacks)
            elif time.monotonic() - member.asked_at > self._gang.heartbeat_timeout_seconds:
                self._kill(rank, f"did not answer for {self._gang.heartbeat_timeout_seconds:g} s")
                self._kill_process(member)
                member.asked_at = float("inf")

    def _tell(self, poll: Any, callbacks: Callbacks) -> None:
        try:
            told = self._ray.get(poll)
        except self._ray.exceptions.RayError:
            return  # that it died shows in its training
        for name, value in told:
            if name == "on_step":
                self.newest_step = max(self.newest_step, value.step)
            getattr(callbacks, name)(value)

    @contextmanager
    def _told_to_the_end(self, callbacks: Callbacks) -> Iterator[None]:
        """Afterwards hear what was told since the last poll."""
        try:
            yield
        finally:
            for member in self._members:
                for poll in (member.poll, member.actor.poll.remote()):
                    if poll is not None and self._ray.wait([poll], timeout=self._gang.settle_seconds)[0]:
                        self._tell(poll, callbacks)
                member.poll = None

    def _kill(self, rank: int, reason: str) -> None:
        member = self._members[rank]
        member.killed_because = member.killed_because or reason
        self._ray.kill(member.actor, no_restart=True)

    def _kill_process(self, member: _Member) -> None:
        """End a process that may be stopped: Ray asks it to exit, which it cannot, and its peers wait for it."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        if member.process is not None:
            on_its_node = NodeAffinitySchedulingStrategy(member.process.node_id, soft=False)
            kill = self._ray.remote(type(member.process).kill).options(num_cpus=0, scheduling_strategy=on_its_node)
            kill.remote(member.process)
