"""What was decided: a status, things to do once it is written, and events to tell once they are done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from limbeck.api.status import Status
from limbeck.controller.ledger import Entry


@dataclass(frozen=True)
class Create:
    """Make the ConfigMap, the NetworkPolicy and the attempt's RayJob, those of them that are not there."""

    attempt: int


@dataclass(frozen=True)
class Record:
    """Write into the ledger how an attempt ended."""

    entry: Entry


@dataclass(frozen=True)
class DeleteRayJob:
    """Remove a RayJob, and with it all its pods."""

    name: str
    uid: str


@dataclass(frozen=True)
class DeleteJob:
    """Remove the job itself: its time after the end is over. Results stay."""


Action = Create | Record | DeleteRayJob | DeleteJob


@dataclass(frozen=True)
class Event:
    """One thing to tell people."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


@dataclass(frozen=True)
class Decision:
    """`requeue_after` is in seconds; None waits for a change, 0 asks for another round at once."""

    status: Status
    actions: Sequence[Action] = ()
    events: Sequence[Event] = ()
    requeue_after: float | None = None
