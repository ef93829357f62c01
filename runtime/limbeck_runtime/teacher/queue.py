"""Which worker captures which shard: leases over an ordered list of tasks. Pure; the caller brings the clock.

A task is open, leased to one worker, or done. A worker that dies or goes silent loses its leases, and their tasks are
open again, at the front. A task that fails too often ends the capture: the data or the teacher are at fault, not
the worker.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from limbeck_runtime.teacher.plan import CaptureTask

# Failures of one task in the hands of workers before the capture gives up.
MAX_FAILURES: Final = 3


class CaptureFailedError(RuntimeError):
    """A shard could not be captured however often it was tried."""


@dataclass
class _Lease:
    worker: str
    expires_at: float


class ShardQueue:
    """The tasks of one capture. Not for several threads at once.

    Args:
        tasks: in the order in which the student wants them.
        done: identities that the store has already.
        lease_seconds: a worker that says nothing for so long loses its tasks.
        lookahead: most tasks that may be leased or done beyond those consumed; None does not bound it.
    """

    def __init__(
        self,
        tasks: Sequence[CaptureTask],
        done: Iterable[str],
        *,
        lease_seconds: float,
        lookahead: int | None = None,
    ) -> None:
        # Equal samples in two places have one identity and are captured once.
        self._tasks = {task.identity: task for task in tasks}
        self._done = self._tasks.keys() & set(done)
        self._leases: dict[str, _Lease] = {}
        self._failures: dict[str, int] = {}
        self._lease_seconds = lease_seconds
        self._lookahead = lookahead
        self._num_consumed = 0

    @property
    def num_tasks(self) -> int:
        """Tasks in all, equal ones counted once."""
        return len(self._tasks)

    @property
    def num_done(self) -> int:
        """Tasks whose outputs are in the store."""
        return len(self._done)

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return len(self._done) == len(self._tasks)

    def lease(self, worker: str, now: float) -> CaptureTask | None:
        """The next open task, leased to `worker`; None when there is none now."""
        for place, (identity, task) in enumerate(self._tasks.items()):
            if self._lookahead is not None and place >= self._num_consumed + self._lookahead:
                return None
            if identity not in self._done and identity not in self._leases:
                self._leases[identity] = _Lease(worker, now + self._lease_seconds)
                return task
        return None

    def heartbeat(self, worker: str, now: float) -> None:
        """`worker` is alive: its leases run on."""
        for lease in self._leases.values():
            if lease.worker == worker:
                lease.expires_at = now + self._lease_seconds

    def complete(self, identity: str) -> None:
        """The outputs are in the store, whoever put them there."""
        self._leases.pop(identity, None)
        self._done.add(identity)

    def fail(self, identity: str, reason: str) -> None:
        """The task raised in its worker's hands; it is open again.

        Raises CaptureFailedError after `MAX_FAILURES`.
        """
        self._leases.pop(identity, None)
        failures = self._failures[identity] = self._failures.get(identity, 0) + 1
        if failures >= MAX_FAILURES:
            task = self._tasks[identity]
            raise CaptureFailedError(
                f"the teacher failed {failures} times on shard {task.shard}, view {task.view}; the last time: {reason}"
            )

    def release(self, worker: str) -> list[CaptureTask]:
        """Take all tasks from a worker that is gone."""
        mine = [identity for identity, lease in self._leases.items() if lease.worker == worker]
        for identity in mine:
            del self._leases[identity]
        return [self._tasks[identity] for identity in mine]

    def silent(self, now: float) -> list[str]:
        """Workers that hold a lease which has run out."""
        return sorted({lease.worker for lease in self._leases.values() if lease.expires_at <= now})

    def reopen(self, identities: Iterable[str]) -> int:
        """Shards that were done and are in the store no more; how many of them were this queue's."""
        lost = self._done & set(identities)
        self._done -= lost
        return len(lost)

    def missing(self, present: set[str]) -> set[str]:
        """Tasks that count as done but are not in the store."""
        return self._done - present

    def consumed(self, num_tasks: int) -> None:
        """The student has begun so many tasks, in their order: as many more may be captured."""
        self._num_consumed = max(self._num_consumed, num_tasks)
