"""What of a run is worth an Event of its job, each once in the job's life: capture, store, steps, checkpoints. Pure.

What was announced is kept in the standing, so neither a restart nor another attempt announces it again.
Left out: the operator's Events (attempts, gate, end) and how Events are written (`limbeck.kube.events`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from limbeck.api import progress
from limbeck.api.progress import Event
from limbeck.api.status import StepState
from limbeck.server.standing import Standing

CAPTURE_STARTED: Final = "TeacherCaptureStarted"
STORE_READY: Final = "TeacherStoreReady"
STEP_COMPLETED: Final = "StepCompleted"
CHECKPOINT_SAVED: Final = "CheckpointSaved"

# More than a job has steps to speak of; a run cannot make us remember without end.
_MAX_ANNOUNCED: Final = 256
_FIRST, _LAST = "first", "last"


@dataclass(frozen=True)
class Announcement:
    """One Event: a reason in CamelCase and a sentence. `about` tells those of one reason apart."""

    reason: str
    about: str
    note: str

    @property
    def key(self) -> str:
        """By what it is known to have been announced."""
        return f"{self.reason}/{self.about}"


def announce(standing: Standing, events: Iterable[Event]) -> tuple[Standing, list[Announcement]]:
    """What these events make worth announcing, and the standing that remembers it."""
    new: list[Announcement] = []
    announced = list(standing.announced)
    checkpoint = standing.checkpoint
    for event in events:
        if isinstance(event, progress.CheckpointSaved):
            checkpoint = f"step {event.step}, batch {event.at}"
        for one in _about(event, checkpoint):
            if one.key not in announced and len(announced) < _MAX_ANNOUNCED:
                announced.append(one.key)
                # A run with a single checkpoint has said all about it.
                if not (one.about == _LAST and checkpoint == standing.first_checkpoint):
                    new.append(one)
                if one.about == _FIRST:
                    standing = standing.model_copy(update={"first_checkpoint": checkpoint})
    return standing.model_copy(update={"announced": announced, "checkpoint": checkpoint}), new


def assume_announced(standing: Standing) -> Standing:
    """For a job of which only the status is known: what that shows was announced by who wrote it."""
    begun = (StepState.RUNNING, StepState.COMPLETE, StepState.SKIPPED)
    announced: list[str] = []
    teacher = standing.progress.teacher
    for step in standing.steps:
        if step.state not in begun:
            continue
        if step.state is not StepState.RUNNING:
            announced.append(f"{STEP_COMPLETED}/{step.name}")
        if teacher.shards_total:
            announced.append(f"{CAPTURE_STARTED}/{step.name}")
        if 0 < teacher.shards_total <= teacher.shards_done:
            announced.append(f"{STORE_READY}/{step.name}")
        if step.progress_percent:
            announced.append(f"{CHECKPOINT_SAVED}/{_FIRST}")
    return standing.model_copy(update={"announced": list(dict.fromkeys(announced))})


def _about(event: Event, checkpoint: str) -> Iterator[Announcement]:
    match event:
        case progress.CaptureProgress():
            yield from _about_capture(event)
        case progress.StepFinished():
            told = ", ".join(f"{name} {value:.4g}" for name, value in event.metrics.items() if _is_number(value))
            yield Announcement(STEP_COMPLETED, event.step, f"step {event.step} is complete" + (told and f": {told}"))
        case progress.StepSkipped():
            yield Announcement(STEP_COMPLETED, event.step, f"step {event.step} is complete: {event.reason}")
        case progress.CheckpointSaved():
            yield Announcement(CHECKPOINT_SAVED, _FIRST, f"the first checkpoint is saved: {checkpoint}")
        # A report tells that the pipeline came to its end; an attempt that failed before is no end.
        case progress.RunFinished() if event.report is not None and checkpoint:
            yield Announcement(CHECKPOINT_SAVED, _LAST, f"the last checkpoint was saved: {checkpoint}")


def _about_capture(event: progress.CaptureProgress) -> Iterator[Announcement]:
    if event.reused < event.total:
        note = f"step {event.step}: the teacher's outputs are captured, {event.total} shards"
        there = f", of which {event.reused} were in the store already" if event.reused else ""
        yield Announcement(CAPTURE_STARTED, event.step, note + there)
    if event.done >= event.total > 0:
        note = f"step {event.step}: all {event.total} shards of the teacher's outputs are in the store"
        earlier = ", all from earlier runs" if event.reused >= event.total else ""
        yield Announcement(STORE_READY, event.step, note + earlier)


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
