"""Which worker captures which shard: leases over an ordered list of tasks. Pure; the caller brings the clock.

A task is open, leased to one worker, or done. All leases of a worker run on as long as it is heard of; a worker that
dies or goes silent loses them, and their tasks are open again, before those that come later. A task that fails too
often ends the capture: the data or the teacher are at fault, not the worker.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Sequence
from itertools import accumulate
from typing import Final

from limbeck_runtime.teacher.plan import CaptureTask

# Failures of one task in the hands of workers before the capture gives up.
MAX_FAILURES: Final = 3


class CaptureFailedError(RuntimeError):
    """The teacher's outputs cannot be captured however often it is tried."""


class ShardQueue:
    """The tasks of one capture. Not for several threads at once.

    Args:
        tasks: in the order in which the student wants them.
        done: identities that the store has already.
        lease_seconds: a worker that is not heard of for so long loses its tasks.
        lookahead: most tasks that may be leased or done beyond those that the student has begun, not counting those
            that were done before; None does not bound it.
    """

    def __init__(
        self,
        tasks: Sequence[CaptureTask],
        done: Iterable[str],
        *,
        lease_seconds: float,
        lookahead: int | None = None,
    ) -> None:
        if lookahead is not None and lookahead < 1:
            raise ValueError(f"`lookahead` must be at least 1 shard, got {lookahead}")
        # Equal samples in two places have one identity and are captured once, in the first place.
        self._tasks = {task.identity: task for task in reversed(tasks)}
        self._identities = list(dict.fromkeys(task.identity for task in tasks))
        self._places = {identity: place for place, identity in enumerate(self._identities)}
        # How many different tasks there are among the first n of the student's order.
        self._different = [0]
        for task in tasks:
            self._different.append(max(self._different[-1], self._places[task.identity] + 1))
        self._done = self._tasks.keys() & set(done)
        self._open = [place for identity, place in self._places.items() if identity not in self._done]
        # How many of the first n were not done before.
        self._missing = [0, *accumulate(int(identity not in self._done) for identity in self._identities)]
        self._leases: dict[str, str] = {}
        self._heard: dict[str, float] = {}
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
    def num_workers(self) -> int:
        """Workers that were heard of and are not gone."""
        return len(self._heard)

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return len(self._done) == len(self._tasks)

    @property
    def held_back(self) -> bool:
        """Whether there are open tasks, all of them too far ahead of the student."""
        place = self._first_open()
        return place is not None and not self._is_in_reach(place)

    def lease(self, worker: str, now: float) -> CaptureTask | None:
        """The next open task, leased to `worker`; None when there is none now."""
        place = self._first_open()
        if place is None or not self._is_in_reach(place):
            return None
        heapq.heappop(self._open)
        identity = self._identities[place]
        self._leases[identity] = worker
        self._heard.setdefault(worker, now)
        return self._tasks[identity]

    def heartbeat(self, worker: str, now: float) -> None:
        """`worker` is alive: its leases run on."""
        self._heard[worker] = now

    def silent(self, now: float) -> list[str]:
        """Workers that were heard of once, and too long ago."""
        return sorted(worker for worker, heard in self._heard.items() if heard + self._lease_seconds <= now)

    def release(self, worker: str) -> list[CaptureTask]:
        """Take all tasks from a worker that is gone, and forget it."""
        self._heard.pop(worker, None)
        released = [identity for identity, holder in self._leases.items() if holder == worker]
        for identity in released:
            self._reopen(identity)
        return [self._tasks[identity] for identity in released]

    def complete(self, identity: str) -> None:
        """The outputs are in the store, whoever put them there."""
        self._leases.pop(identity, None)
        self._done.add(identity)

    def fail(self, identity: str, reason: str) -> None:
        """The task raised in its worker's hands; it is open again.

        Raises CaptureFailedError after `MAX_FAILURES`.
        """
        failures = self._failures[identity] = self._failures.get(identity, 0) + 1
        if failures >= MAX_FAILURES:
            task = self._tasks[identity]
            raise CaptureFailedError(
                f"the teacher failed {failures} times on shard {task.shard}, view {task.view}; the last time: {reason}"
            )
        self._reopen(identity)

    def reopen_missing(self, present: Collection[str]) -> int:
        """Open those done tasks again that are not `present` in the store any more; how many they were."""
        missing = [identity for identity in self._identities if identity in self._done and identity not in present]
        for identity in missing:
            self._done.remove(identity)
            self._reopen(identity)
        return len(missing)

    def consumed(self, num_tasks: int) -> None:
        """The student has begun the first `num_tasks` of its order: as many more may be captured."""
        self._num_consumed = max(self._num_consumed, self._different[min(num_tasks, len(self._different) - 1)])

    def _reopen(self, identity: str) -> None:
        self._leases.pop(identity, None)
        heapq.heappush(self._open, self._places[identity])

    def _first_open(self) -> int | None:
        while self._open:
            identity = self._identities[self._open[0]]
            if identity not in self._done and identity not in self._leases:
                return self._open[0]
            heapq.heappop(self._open)  # done by someone else meanwhile
        return None

    def _is_in_reach(self, place: int) -> bool:
        if self._lookahead is None:
            return True
        return self._missing[place] - self._missing[self._num_consumed] < self._lookahead
