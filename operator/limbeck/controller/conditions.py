"""Conditions: set one, look one up. A condition's time moves only when its status does."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Literal

from limbeck.api.status import Condition, ConditionType, Status

Truth = Literal["True", "False", "Unknown"]

_MAX_MESSAGE = 32_768


def find(status: Status, kind: ConditionType) -> Condition | None:
    """The condition of a type."""
    return next((condition for condition in status.conditions if condition.type is kind), None)


def holds(status: Status, kind: ConditionType) -> bool:
    """Whether the condition is there and True."""
    condition = find(status, kind)
    return condition is not None and condition.status == "True"


def is_finished(status: Status) -> bool:
    """Whether the job is in a terminal state."""
    return holds(status, ConditionType.COMPLETE) or holds(status, ConditionType.FAILED)


def with_condition(
    conditions: Sequence[Condition],
    kind: ConditionType,
    truth: Truth,
    reason: str,
    message: str,
    *,
    generation: int,
    now: datetime,
) -> list[Condition]:
    """The conditions with one set, in the order in which they first appeared."""
    old = next((condition for condition in conditions if condition.type is kind), None)
    new = Condition(
        type=kind,
        status=truth,
        reason=reason,
        message=message[:_MAX_MESSAGE],
        observed_generation=generation,
        last_transition_time=now if old is None or old.status != truth else old.last_transition_time,
    )
    if old is None:
        return [*conditions, new]
    return [new if condition is old else condition for condition in conditions]
