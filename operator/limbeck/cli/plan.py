"""`limbeck plan`: what is derived from a job file, each value with its reason."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table

from limbeck.api.plan import derive_plan
from limbeck.cli.exits import OK, USAGE
from limbeck.cli.jobfile import JobFileError, read_job
from limbeck.cli.yaml import dump


def plan(filename: str, output: str) -> int:
    """Print the derived values as a table, or the whole resolved job as YAML."""
    try:
        job = read_job(filename)
        derived = derive_plan(job.spec)
    except (JobFileError, ValueError) as error:
        print(error, file=sys.stderr)
        return USAGE
    if output == "yaml":
        resolved = job.model_copy(update={"spec": derived.spec})
        print(
            dump(resolved.to_wire()),
            end="",
        )
        return OK
    table = Table(box=None, pad_edge=False)
    for heading in ("FIELD", "VALUE", "REASON"):
        table.add_column(heading, overflow="fold")
    for entry in derived.entries:
        table.add_row(entry.field, entry.value, entry.reason)
    console = Console() if sys.stdout.isatty() else Console(width=180)
    console.print(table if derived.entries else "nothing to derive: the job says all")
    steps = " -> ".join(f"{step.name} ({step.method_name})" for step in derived.spec.pipeline)
    console.print(f"\npipeline: {steps}", highlight=False)
    return OK
