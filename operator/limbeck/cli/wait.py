"""`limbeck wait`: until a job is where it is wanted, or can no longer get there."""

from __future__ import annotations

import itertools
import sys
from typing import Final

from limbeck.cli.cluster import Cluster
from limbeck.cli.exits import JOB_FAILED, OK, TIMED_OUT
from limbeck.cli.failures import explained
from limbeck.cli.follow import Patience, TimeIsUpError, follow
from limbeck.cli.jobs import Job, holds, is_finished, outcome
from limbeck.cli.output import show
from limbeck.cli.printable import printable
from limbeck.cli.tables import short
from limbeck.kube.errors import KubeError
from limbeck.kube.transport import Object

FINISHED: Final = "finished"
GOALS: Final = (FINISHED, "Complete", "Failed", "Suspended")


def wait(cluster: Cluster, name: str, *, goal: str, timeout_seconds: float | None, output: str) -> int:
    """0 once the goal is reached, 1 once it cannot be, 4 when time is up. `finished` is 1 for a job that failed."""
    return wait_for(cluster, cluster.job(name), goal=goal, timeout_seconds=timeout_seconds, output=output)


def wait_for(cluster: Cluster, job: Object, *, goal: str, timeout_seconds: float | None, output: str) -> int:
    """The same for a job that was just read."""
    name, last = job["metadata"]["name"], job
    states = follow(cluster, job, timeout_seconds=timeout_seconds, patience=Patience(told=say_trouble))
    try:
        # What was just read counts, however short the time.
        for state in itertools.chain([job], states):
            if state is None:
                print(printable(f"{name} was deleted before it was {_wanted(goal)}: {outcome(last)}"), file=sys.stderr)
                return JOB_FAILED
            last = state
            code = verdict(state, goal)
            if code is not None:
                return _tell(state, goal, code, output)
    except TimeIsUpError:
        waited = short(timeout_seconds or 0)
        print(printable(f"{name} is not {_wanted(goal)} after {waited}: {outcome(last)}"), file=sys.stderr)
        return TIMED_OUT
    raise AssertionError("following ends with the job's end or with an error")


def _tell(job: Object, goal: str, code: int, output: str) -> int:
    """Say where the job is; on standard error where it is not what was waited for."""
    name = job["metadata"]["name"]
    if code == OK or goal == FINISHED:
        show([job], output, [printable(f"{name}: {outcome(job)}")])
    else:
        print(printable(f"{name} will not be {_wanted(goal)} any more: {outcome(job)}"), file=sys.stderr)
    return code


def verdict(job: Job, goal: str) -> int | None:
    """The exit code that the job's state decides; None while it decides nothing."""
    if goal == FINISHED:
        if holds(job, "Failed"):
            return JOB_FAILED
        return OK if holds(job, "Complete") else None
    if holds(job, goal):
        return OK
    return JOB_FAILED if is_finished(job) else None


def say_trouble(error: KubeError) -> None:
    """Trouble that may pass, on standard error."""
    message, _ = explained(error)
    print(printable(f"trying again: {message}"), file=sys.stderr)


def _wanted(goal: str) -> str:
    return goal if goal == FINISHED else goal.lower()
