"""`limbeck suspend` and `limbeck resume`: one field, `spec.suspend`."""

from __future__ import annotations

from limbeck.cli.cluster import FIELD_MANAGER, Cluster
from limbeck.cli.exits import OK
from limbeck.cli.failures import CommandError
from limbeck.cli.jobs import is_finished, outcome
from limbeck.cli.kinds import JOBS
from limbeck.cli.output import show


def suspend(cluster: Cluster, name: str, *, output: str) -> int:
    """The run writes a checkpoint, then all pods go."""
    return _set(cluster, name, wanted=True, output=output)


def resume(cluster: Cluster, name: str, *, output: str) -> int:
    """Another attempt goes on from the checkpoint."""
    return _set(cluster, name, wanted=False, output=output)


def _set(cluster: Cluster, name: str, *, wanted: bool, output: str) -> int:
    job = cluster.job(name)
    if is_finished(job):
        raise CommandError(f"{name} is over: {outcome(job)}; there is nothing to {'suspend' if wanted else 'resume'}")
    if bool(job["spec"].get("suspend")) is wanted:
        said = f"{name} is {'suspended' if wanted else 'not suspended'} already"
    else:
        # Of this job and no later one of its name.
        body = {"metadata": {"uid": job["metadata"]["uid"]}, "spec": {"suspend": wanted}}
        job = cluster.transport.patch(JOBS, name, body, job["metadata"]["namespace"], field_manager=FIELD_MANAGER)
        said = f"{name} suspends after a checkpoint" if wanted else f"{name} goes on from its last checkpoint"
    show([job], output, [said])
    return OK
