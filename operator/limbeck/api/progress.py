"""Events of a run: one stream that feeds the terminal, the JSON log and, on a cluster, the server.

On the wire an event is one JSON object on one line, in snake_case as logs are:
`{"time": "2026-11-24T06:00:00Z", "event": kind, ...}`.
Left out: the training history, which is in `progress.jsonl`, and metrics, which Prometheus scrapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Final, Literal

from pydantic import ConfigDict, Field, TypeAdapter

from limbeck.api.fields import ApiModel
from limbeck.api.status import PlanEntry, Result

Count = Annotated[int, Field(ge=0)]
Duration = Annotated[float, Field(ge=0)]


class EventModel(ApiModel):
    """Base of all events: when, and what."""

    model_config = ConfigDict(alias_generator=None)

    time: datetime = Field(description="When it happened, in UTC, e.g. 2026-11-24T06:00:00Z.")


class RunState(StrEnum):
    """How a run ended."""

    COMPLETE = "Complete"
    FAILED = "Failed"
    STOPPED = "Stopped"  # by a signal, after a checkpoint; the same command resumes


class RunStarted(EventModel):
    """The driver claimed the store and knows its steps."""

    event: Literal["run_started"] = "run_started"
    job: str = Field(description="Name of the job, e.g. emoji.")
    steps: list[str] = Field(description="Steps in their order, e.g. [distil, int8].")
    epoch: Count = Field(description="Fence epoch that this run holds, e.g. 2.")
    attempt: Count = Field(description="Attempt, for people, e.g. 1.")


class PlanMade(EventModel):
    """What was derived from the target, each value with its reason."""

    event: Literal["plan"] = "plan"
    entries: list[PlanEntry] = Field(description="Derived values in the order of the spec.")


class MetricsServing(EventModel):
    """Prometheus can scrape now."""

    event: Literal["metrics_serving"] = "metrics_serving"
    url: str = Field(description="Address of the endpoint, e.g. http://127.0.0.1:9464/metrics.")


class StepStarted(EventModel):
    """A step of the pipeline begins."""

    event: Literal["step_started"] = "step_started"
    step: str = Field(description="Name of the step, e.g. distil.")
    method: str = Field(description="Its method, e.g. distil.")
    index: Count = Field(description="Its place, counted from 1, e.g. 1.")
    total: Count = Field(description="Number of steps, e.g. 2.")


class StepProgress(EventModel):
    """A step is under way. Rate-limited: not every training step gives one."""

    event: Literal["step_progress"] = "step_progress"
    step: str = Field(description="Name of the step, e.g. distil.")
    phase: str = Field(description="What the step does now, e.g. capture, train, calibrate, evaluate, export.")
    done: Count = Field(description="Units done, e.g. 40.")
    total: Count = Field(description="Units in all, e.g. 120.")
    unit: str = Field(description="What is counted, in the plural, e.g. batches.")
    loss: float | None = Field(None, description="Loss of the latest training step, e.g. 1.25.")
    terms: dict[str, float | None] = Field(default_factory=dict, description="The loss by term, e.g. {affinity: 0.9}.")
    samples_per_second: Duration | None = Field(None, description="Speed over the last seconds, e.g. 512.5.")
    eta_seconds: Duration | None = Field(None, description="Time left in this phase, e.g. 34.")


class StepFinished(EventModel):
    """A step ended and was evaluated."""

    event: Literal["step_finished"] = "step_finished"
    step: str = Field(description="Name of the step, e.g. distil.")
    seconds: Duration = Field(description="How long it took in this run, e.g. 41.2.")
    metrics: dict[str, float | None] = Field(
        default_factory=dict, description="Metrics of its result; null where a metric is not finite."
    )


class StepSkipped(EventModel):
    """A step's result was there already."""

    event: Literal["step_skipped"] = "step_skipped"
    step: str = Field(description="Name of the step, e.g. distil.")
    reason: str = Field(description="Why, e.g. its fingerprint is that of a finished run.")


class Resumed(EventModel):
    """A step goes on from a checkpoint."""

    event: Literal["resumed"] = "resumed"
    step: str = Field(description="Name of the step, e.g. distil.")
    at: Count = Field(description="Training step of the checkpoint, e.g. 200.")


class CheckpointSaved(EventModel):
    """A checkpoint is durable."""

    event: Literal["checkpoint"] = "checkpoint"
    step: str = Field(description="Name of the step, e.g. distil.")
    at: Count = Field(description="Training step that it holds, e.g. 200.")
    seconds: Duration = Field(description="How long writing it took, e.g. 0.2.")


class CaptureProgress(EventModel):
    """The teacher pool is under way. Rate-limited."""

    event: Literal["capture_progress"] = "capture_progress"
    step: str = Field(description="Name of the step that wants the outputs, e.g. distil.")
    done: Count = Field(description="Shards in the store, the reused ones included, e.g. 12.")
    total: Count = Field(description="Shards wanted, e.g. 128.")
    replicas: Count = Field(description="Teacher actors at work, e.g. 2.")
    samples_per_second: Duration | None = Field(None, description="Speed of the pool, e.g. 900.")
    reused: Count = Field(0, description="Shards of `done` that earlier runs had written, e.g. 4.")


class BadSampleFound(EventModel):
    """A sample was skipped."""

    event: Literal["bad_sample"] = "bad_sample"
    shard: str = Field(description="Where it lies, e.g. s3://pairs/train-003.tar.")
    key: str = Field(description="Its key, e.g. 1f600.")
    reason: str = Field(description="Why, in one word, e.g. TruncatedImage.")
    detail: str = Field("", description="Why, in a sentence.")


class Warned(EventModel):
    """Something a user should know, such as what a fallback costs."""

    event: Literal["warning"] = "warning"
    message: str = Field(description="One sentence, with what to do about it.")


class RunFinished(EventModel):
    """The last event of every run that could still speak."""

    event: Literal["run_finished"] = "run_finished"
    state: RunState = Field(description="How it ended, e.g. Complete.")
    reason: str = Field("", description="Why, in one CamelCase word, e.g. GateFailed.")
    message: str = Field("", description="Why, in a sentence that says what to do.")
    report: str | None = Field(None, description="Where report.html lies.")
    model: str | None = Field(None, description="Where the model lies.")
    card: str | None = Field(None, description="Where the model card lies.")
    table: list[list[str]] = Field(
        default_factory=list,
        description="The report's short table: headings first, then a line for each row.",
    )
    result: Result | None = Field(None, description="What came out, for the job's status; null without a report.")


Event = Annotated[
    RunStarted
    | PlanMade
    | MetricsServing
    | StepStarted
    | StepProgress
    | StepFinished
    | StepSkipped
    | Resumed
    | CheckpointSaved
    | CaptureProgress
    | BadSampleFound
    | Warned
    | RunFinished,
    Field(discriminator="event"),
]
EVENT: Final[TypeAdapter[Event]] = TypeAdapter(Event)

# Kinds that may be dropped when they come too fast; all others are kept.
RATE_LIMITED: Final = frozenset({"step_progress", "capture_progress"})


def parse_event(wire: Mapping[str, Any]) -> Event:
    """The event that a JSON object holds; ValueError when it is none of ours."""
    return EVENT.validate_python(wire)


def to_wire(event: Event) -> str:
    """The event as one line of JSON, without the line's end."""
    return event.model_dump_json()
