"""Where a job stands, folded from its events: what `status.progress`, `status.steps` and `status.result` show.

Pure. Left out: the history, and what only the operator knows (conditions, phase, attempt).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any

from pydantic import Field

from limbeck.api import progress
from limbeck.api.fields import ApiModel
from limbeck.api.progress import Event, RunState
from limbeck.api.status import Progress, Result, StepState, StepStatus

MAX_STEPS = 64
_OWNED = ("steps", "progress", "result")
_MAX_TEXT = 1024
# Phases that come after a step's own work; they do not move its percentage.
_AFTERWARDS = frozenset({"evaluate"})


class Standing(ApiModel):
    """The server's part of a job's status."""

    steps: list[StepStatus] = Field(default_factory=list, description="Steps of the pipeline.")
    progress: Progress = Field(default_factory=Progress, description="Latest progress.")
    result: Result | None = Field(None, description="What came out.")
    ended: RunState | None = Field(None, description="How the newest run ended; null while it runs.")
    # For announcements.py.
    announced: list[str] = Field(default_factory=list, description="What had its Event.")
    checkpoint: str = Field("", description="The newest checkpoint, in words.")
    first_checkpoint: str = Field("", description="The first one, in words.")

    @classmethod
    def from_status(cls, status: Mapping[str, Any]) -> Standing:
        """What a status shows. Raises ValueError for one that we did not write."""
        return cls.model_validate({name: status[name] for name in _OWNED if status.get(name)})

    def to_status(self) -> dict[str, Any]:
        """The fields of the status that the server owns, without those that have no value."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True, include=set(_OWNED))


def fold(standing: Standing, events: Iterable[Event], now: datetime) -> Standing:
    """The standing after `events`, written at `now`."""
    for event in events:
        standing = _after(standing, event)
    percents = [step.progress_percent for step in standing.steps]
    is_complete = standing.ended is RunState.COMPLETE
    percent = 100 if is_complete else min(99, sum(percents) // len(percents)) if percents else 0
    return _with(standing, percent=percent, last_update_time=now)


def _after(standing: Standing, event: Event) -> Standing:
    match event:
        case progress.RunStarted():
            return _begun(standing, event)
        case progress.StepStarted():
            fields = {"state": StepState.RUNNING, "start_time": event.time, "completion_time": None, "message": ""}
            standing = _set_step(standing, event.step, lambda step: fields | {"progress_percent": 0})
            return _with(standing, step=_text(event.step), samples_per_second=0.0, eta_seconds=None)
        case progress.StepProgress():
            return _moved(standing, event)
        case progress.StepFinished():
            fields = {"state": StepState.COMPLETE, "completion_time": event.time, "progress_percent": 100}
            standing = _set_step(standing, event.step, lambda step: fields | {"message": _metrics(event.metrics)})
            return _with(standing, samples_per_second=0.0, eta_seconds=None)
        case progress.StepSkipped():
            return _set_step(standing, event.step, lambda step: _skipped(step, event))
        case progress.CaptureProgress():
            teacher = standing.progress.teacher.model_copy(
                update={"replicas": event.replicas, "shards_done": event.done, "shards_total": event.total}
            )
            return _with(standing, teacher=teacher)
        case progress.RunFinished():
            return _finished(standing, event)
        case _:
            return standing


def _begun(standing: Standing, event: progress.RunStarted) -> Standing:
    """A new run knows the same steps; what is complete stays so until the run says that it does it anew."""
    known = {step.name: step for step in standing.steps}
    kept = (StepState.COMPLETE, StepState.SKIPPED)
    steps = [
        known[name] if name in known and known[name].state in kept else StepStatus(name=name, state=StepState.PENDING)
        for name in dict.fromkeys(_text(name) for name in event.steps[:MAX_STEPS])
    ]
    teacher = standing.progress.teacher.model_copy(update={"replicas": 0})
    update = {"steps": steps, "progress": Progress(teacher=teacher), "result": None, "ended": None}
    return standing.model_copy(update=update)


def _moved(standing: Standing, event: progress.StepProgress) -> Standing:
    percent = min(99, 100 * event.done // event.total) if event.total and event.phase not in _AFTERWARDS else 0
    loss = "" if event.loss is None or not math.isfinite(event.loss) else f", loss {event.loss:.4g}"
    message = _text(f"{event.phase}: {event.done} of {event.total} {event.unit}{loss}")
    standing = _set_step(
        standing,
        event.step,
        lambda step: {"progress_percent": max(step.progress_percent, percent), "message": message},
        only_known=True,
    )
    eta = _finite(event.eta_seconds)
    return _with(
        standing,
        step=_text(event.step),
        samples_per_second=_finite(event.samples_per_second) or 0.0,
        eta_seconds=None if eta is None else min(round(eta), 2**31 - 1),
    )


def _skipped(step: StepStatus, event: progress.StepSkipped) -> dict[str, Any]:
    if step.state is StepState.COMPLETE:  # by an earlier run of this job, whose times and metrics say more
        return {}
    return {
        "state": StepState.SKIPPED,
        "completion_time": event.time,
        "progress_percent": 100,
        "message": _text(event.reason),
    }


def _finished(standing: Standing, event: progress.RunFinished) -> Standing:
    running = [step.name for step in standing.steps if step.state is StepState.RUNNING]
    state = StepState.FAILED if event.state is RunState.FAILED else StepState.PENDING
    fields: dict[str, Any] = {"state": state, "message": _text(event.message)}
    if state is StepState.FAILED:
        fields["completion_time"] = event.time
    for name in running:
        standing = _set_step(standing, name, lambda step: fields)
    teacher = standing.progress.teacher.model_copy(update={"replicas": 0})
    standing = _with(standing, samples_per_second=0.0, eta_seconds=None, teacher=teacher)
    return standing.model_copy(update={"ended": event.state, "result": _result(event.result) or standing.result})


def _result(result: Result | None) -> Result | None:
    """The result as a status can hold it: JSON knows no number that is not finite."""
    if result is None:
        return None
    pairs = [
        pair.model_copy(update={"teacher": _finite(pair.teacher)})
        for pair in result.metrics
        if math.isfinite(pair.student)
    ]
    ratios = {"size_ratio": _finite(result.size_ratio), "recovery_percent": _finite(result.recovery_percent)}
    return result.model_copy(update=ratios | {"metrics": pairs})


def _with(standing: Standing, **fields: Any) -> Standing:
    return standing.model_copy(update={"progress": standing.progress.model_copy(update=fields)})


def _set_step(
    standing: Standing, name: str, fields_of: Callable[[StepStatus], dict[str, Any]], *, only_known: bool = False
) -> Standing:
    """The standing with one step changed; a step that no run has named is added, unless `only_known`."""
    name = _text(name)
    steps = list(standing.steps)
    place = next((index for index, step in enumerate(steps) if step.name == name), None)
    if place is None:
        if only_known or len(steps) >= MAX_STEPS:
            return standing
        steps.append(StepStatus(name=name, state=StepState.PENDING))
        place = len(steps) - 1
    steps[place] = steps[place].model_copy(update=fields_of(steps[place]))
    return standing.model_copy(update={"steps": steps})


def _metrics(metrics: dict[str, float | None]) -> str:
    shown = [f"{name} {value:.4g}" for name, value in metrics.items() if value is not None and math.isfinite(value)]
    return _text(", ".join(shown[:3]))


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _text(text: str) -> str:
    return text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 3] + "..."
