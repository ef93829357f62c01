"""Reading a CompressionJob as the API server gives it: plain data, which a newer operator may have added to. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

Job = Mapping[str, Any]

# What is most worth saying comes first.
_TELLING: Final = ("Failed", "Complete", "Suspended", "Stalled", "Reconciling")


def status_of(job: Job) -> Mapping[str, Any]:
    """The status; empty before anybody wrote one."""
    return job.get("status") or {}


def condition(job: Job, kind: str) -> Mapping[str, Any] | None:
    """The condition of a type."""
    conditions = status_of(job).get("conditions") or []
    return next((each for each in conditions if each.get("type") == kind), None)


def holds(job: Job, kind: str) -> bool:
    """Whether the condition is there and True."""
    found = condition(job, kind)
    return found is not None and found.get("status") == "True"


def is_finished(job: Job) -> bool:
    """Whether the job is in a terminal state, which is final."""
    return holds(job, "Complete") or holds(job, "Failed")


def phase(job: Job) -> str:
    """The state in a word; `-` where no operator has looked at the job yet."""
    if "deletionTimestamp" in job["metadata"]:
        return "Terminating"
    return str(status_of(job).get("phase") or "-")


def telling_condition(job: Job) -> Mapping[str, Any] | None:
    """The condition that says most about why the job is where it is."""
    true = [found for kind in _TELLING if (found := condition(job, kind)) and found.get("status") == "True"]
    if true:
        return true[0]
    # A job whose RayJob exists but whose pods do not come: the operator says so here.
    return condition(job, "Reconciling")


def outcome(job: Job) -> str:
    """`Failed (GateFailed): recovery is ...`: the end of a job, or where it is, in a line."""
    found = telling_condition(job)
    if found is None:
        return phase(job)
    reason = f" ({found['reason']})" if found.get("reason") and not holds(job, "Complete") else ""
    return f"{phase(job)}{reason}" + (f": {found['message']}" if found.get("message") else "")


def moment(text: str | None) -> datetime | None:
    """A time as the API server writes it."""
    return datetime.fromisoformat(text) if text else None


def age_seconds(job: Job, now: datetime) -> float:
    """How long the job has been there."""
    created = moment(job["metadata"].get("creationTimestamp"))
    return 0.0 if created is None else (now - created).total_seconds()


def without_managed_fields(item: Job) -> dict[str, Any]:
    """The object as people want to see it."""
    metadata = {key: value for key, value in item["metadata"].items() if key != "managedFields"}
    return {**item, "metadata": metadata}
