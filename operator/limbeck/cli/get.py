"""`limbeck get`: jobs in a table, with the columns of `kubectl get compressionjobs`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from limbeck.cli.cluster import Cluster
from limbeck.cli.exits import OK
from limbeck.cli.jobs import Job, age_seconds, phase, status_of, telling_condition
from limbeck.cli.kinds import JOBS
from limbeck.cli.output import show
from limbeck.cli.tables import short, table

_COLUMNS: Final = ("NAME", "STATUS", "STEP", "PROGRESS", "ETA", "AGE")
_WIDE: Final = ("RATIO", "RECOVERY", "ATTEMPT", "RAYJOB", "MESSAGE")


def get(cluster: Cluster, name: str | None, *, output: str, selector: str | None) -> int:
    """Print one job or all of a namespace, or of all namespaces."""
    jobs = [cluster.job(name)] if name else list(cluster.list_all(JOBS, label_selector=selector))
    if not jobs and output in ("table", "wide"):
        place = "any namespace" if cluster.all_namespaces else f"namespace {cluster.namespace}"
        print(f"no CompressionJobs in {place}; `limbeck submit -f job.yaml` makes one", file=sys.stderr)
        return OK
    lines = job_table(jobs, datetime.now(UTC), wide=output == "wide", with_namespace=cluster.all_namespaces)
    show(jobs, output, lines, as_list=name is None)
    return OK


def job_table(jobs: Sequence[Job], now: datetime, *, wide: bool = False, with_namespace: bool = False) -> list[str]:
    """The lines of the table."""
    head = (("NAMESPACE",) if with_namespace else ()) + _COLUMNS + (_WIDE if wide else ())
    rows = []
    for job in jobs:
        row = [str(job["metadata"].get("namespace", ""))] if with_namespace else []
        row += _cells(job, now)
        rows.append(row + _wide_cells(job) if wide else row)
    return table(head, rows)


def _cells(job: Job, now: datetime) -> list[str]:
    progress = status_of(job).get("progress") or {}
    # What was left when a job stopped is no news.
    eta = progress.get("etaSeconds") if phase(job) == "Running" else None
    percent = progress.get("percent")
    return [
        job["metadata"]["name"],
        phase(job),
        str(progress.get("step") or ""),
        "" if percent is None else f"{percent}%",
        "" if eta is None else short(eta),
        short(age_seconds(job, now)),
    ]


def _wide_cells(job: Job) -> list[str]:
    status = status_of(job)
    result = status.get("result") or {}
    ratio, recovery = result.get("sizeRatio"), result.get("recoveryPercent")
    found = telling_condition(job) or {}
    return [
        "" if ratio is None else f"{ratio:.3g}x",
        "" if recovery is None else f"{recovery:.1f}%",
        str(status.get("attempt") or ""),
        str(status.get("rayJob") or ""),
        str(found.get("message") or ""),
    ]
