"""`limbeck cancel`: delete a job. What it has written to its output stays, checkpoints included."""

from __future__ import annotations

import sys

import typer

from limbeck.cli.cluster import Cluster
from limbeck.cli.exits import OK
from limbeck.cli.failures import CommandError
from limbeck.cli.jobs import outcome
from limbeck.cli.kinds import JOBS
from limbeck.cli.output import show
from limbeck.cli.printable import printable


def cancel(cluster: Cluster, name: str, *, yes: bool, output: str) -> int:
    """Ask, unless `yes`, and delete the job that was asked about, not a later one of its name."""
    job = cluster.job(name)
    metadata = job["metadata"]
    if not yes:
        if not sys.stdin.isatty():
            raise CommandError(f"cancel asks before it deletes {name}, and nobody can answer here; give --yes")
        where = f"{name} in namespace {metadata['namespace']}"
        question = printable(f"Delete {where} ({outcome(job)})? Its results stay in {job['spec']['output']['uri']}")
        try:
            agreed = typer.confirm(question, err=True)
        except typer.Abort:
            raise KeyboardInterrupt from None
        if not agreed:
            print(f"{name} is left as it is", file=sys.stderr)
            return OK
    cluster.transport.delete(JOBS, name, metadata["namespace"], uid=metadata["uid"])
    show([job], output, [f"{name} is cancelled; what it wrote stays in {printable(job['spec']['output']['uri'])}"])
    return OK
