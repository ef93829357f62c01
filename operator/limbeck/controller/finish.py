"""Terminal states: what a status says once a job is complete or has failed, and nothing changes it any more."""

from __future__ import annotations

from datetime import datetime

from limbeck.api.status import ConditionType, Phase, Status
from limbeck.controller import names
from limbeck.controller.conditions import Truth, find, with_condition


def finished_status(
    status: Status, generation: int, kind: ConditionType, reason: str, message: str, now: datetime
) -> Status:
    """The status of a job that is Complete, or has Failed for good."""
    settled: list[tuple[ConditionType, Truth, str, str]] = [
        (kind, "True", reason, message),
        (ConditionType.RECONCILING, "False", names.REASON_FINISHED, "the job has finished"),
    ]
    if kind is ConditionType.FAILED:
        settled.append((ConditionType.STALLED, "True", reason, message))
    if find(status, ConditionType.SUSPENDED) is not None:
        settled.append((ConditionType.SUSPENDED, "False", names.REASON_FINISHED, "the job has finished"))
    conditions = list(status.conditions)
    for each in settled:
        conditions = with_condition(conditions, *each, generation=generation, now=now)
    phase = Phase.COMPLETE if kind is ConditionType.COMPLETE else Phase.FAILED
    changes = {
        "observed_generation": generation,
        "conditions": conditions,
        "phase": phase,
        "completion_time": status.completion_time or now,
    }
    return status.model_copy(update=changes)
