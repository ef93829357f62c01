"""The status of a CompressionJob: conditions for machines, a phase for people, plan, steps, progress, result.

The operator owns all but `progress`, `steps` and `result`, which the server writes.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from limbeck.api.fields import ApiModel, Percent

Message = Annotated[str, Field(max_length=32_768)]
Text = Annotated[str, Field(max_length=1024)]


class ConditionType(StrEnum):
    """Types of condition; there is no Ready, so that a running job does not block a GitOps sync."""

    COMPLETE = "Complete"
    FAILED = "Failed"
    SUSPENDED = "Suspended"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"


class Phase(StrEnum):
    """The state in one word, for people; clients read conditions."""

    PENDING = "Pending"
    RUNNING = "Running"
    SUSPENDED = "Suspended"
    COMPLETE = "Complete"
    FAILED = "Failed"


class StepState(StrEnum):
    """Where one step of the pipeline is."""

    PENDING = "Pending"
    RUNNING = "Running"
    COMPLETE = "Complete"
    SKIPPED = "Skipped"
    FAILED = "Failed"


class Condition(ApiModel):
    """One observation about the job, as the Kubernetes API conventions define it."""

    type: ConditionType = Field(description="What is observed, e.g. Complete.")
    status: Literal["True", "False", "Unknown"] = Field(description="Whether it holds, e.g. True.")
    observed_generation: Annotated[int, Field(ge=0)] = Field(0, description="Generation it speaks of, e.g. 1.")
    last_transition_time: datetime = Field(description="When the status last changed, e.g. 2026-11-24T06:00:00Z.")
    reason: Annotated[str, Field(max_length=1024, pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$")] = Field(
        description="Why, in one CamelCase word, e.g. GateFailed."
    )
    message: Message = Field(
        "", description="Why, in a sentence that says what to do, e.g. install KubeRay 1.6 or later."
    )


class PlanEntry(ApiModel):
    """One derived value and its reason."""

    field: Text = Field(description="The field that was derived, e.g. spec.pipeline[0].distil.epochs.")
    value: Text = Field(description="The value, e.g. 3.")
    reason: Text = Field(description="Why it was chosen, e.g. a student trained from copied layers.")


class StepStatus(ApiModel):
    """One step of the pipeline."""

    name: Text = Field(description="The step, e.g. distil.")
    state: StepState = Field(description="Where it is, e.g. Running.")
    start_time: datetime | None = Field(None, description="When it began, e.g. 2026-11-24T06:00:00Z.")
    completion_time: datetime | None = Field(None, description="When it ended, e.g. 2026-11-24T06:10:00Z.")
    progress_percent: Percent = Field(0, description="How far it is, e.g. 40.")
    message: Message = Field("", description="What it does, or what it ended with, e.g. epoch 2 of 3.")


class TeacherProgress(ApiModel):
    """The teacher pool."""

    replicas: Annotated[int, Field(ge=0)] = Field(0, description="Actors at work, e.g. 4.")
    shards_done: Annotated[int, Field(ge=0)] = Field(0, description="Shards in the store, e.g. 12.")
    shards_total: Annotated[int, Field(ge=0)] = Field(0, description="Shards wanted, e.g. 128.")


class Progress(ApiModel):
    """The latest progress; the history is the server's."""

    percent: Percent = Field(0, description="How far the job is, e.g. 40.")
    step: Text = Field("", description="The step at work, e.g. distil.")
    samples_per_second: float = Field(0.0, description="Training speed, e.g. 512.5.")
    eta_seconds: Annotated[int, Field(ge=0)] | None = Field(None, description="Time left, e.g. 340.")
    teacher: TeacherProgress = Field(
        default_factory=TeacherProgress, description="The teacher pool, e.g. {replicas: 4}."
    )
    last_update_time: datetime | None = Field(None, description="When this was written, e.g. 2026-11-24T06:00:00Z.")


class MetricPair(ApiModel):
    """One metric of teacher and result."""

    name: Text = Field(description="The metric, e.g. image_to_text_recall@10.")
    teacher: float | None = Field(None, description="The teacher's value, e.g. 0.61.")
    student: float = Field(description="The result's value, e.g. 0.6.")


class Result(ApiModel):
    """What came out."""

    size_ratio: float | None = Field(
        None, description="Teacher's bytes over the result's, if both are known, e.g. 8.1."
    )
    recovery_percent: float | None = Field(None, description="Main metric over the teacher's, e.g. 98.2.")
    metrics: Annotated[list[MetricPair], Field(max_length=64)] = Field(
        default_factory=list,
        description="Metrics of teacher and result, e.g. [{name: accuracy, teacher: 0.9, student: 0.89}].",
    )
    report_uri: Text = Field("", description="The report, e.g. s3://results/emoji/report/report.html.")
    model_uri: Text = Field("", description="The model, e.g. s3://results/emoji/model.")


class Status(ApiModel):
    """What has come of the job."""

    observed_generation: int = Field(-1, description="Generation of the spec that was last acted on, e.g. 1.")
    conditions: Annotated[list[Condition], Field(max_length=16)] = Field(
        default_factory=list,
        description="Observations, one of each type, e.g. [{type: Complete, status: 'True'}].",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
    phase: Phase | None = Field(None, description="State in a word, e.g. Running.")
    attempt: Annotated[int, Field(ge=0)] = Field(0, description="Attempts begun, e.g. 2.")
    start_time: datetime | None = Field(None, description="When the job began, e.g. 2026-11-24T06:00:00Z.")
    completion_time: datetime | None = Field(None, description="When it ended, e.g. 2026-11-24T07:00:00Z.")
    ray_job: Text = Field("", description="RayJob of the attempt, e.g. emoji-2.")
    ray_cluster: Text = Field("", description="RayCluster of the attempt, e.g. emoji-2-x7k2p.")
    head_pod_uid: Text = Field(
        "", description="UID of the attempt's head pod, e.g. 6a1f0c3e-6c0b-4b0e-9a55-0c8f0d0c2b11."
    )
    plan: Annotated[list[PlanEntry], Field(max_length=128)] = Field(
        default_factory=list, description="Derived values, each with its reason, e.g. [{field: spec.student, ...}]."
    )
    steps: Annotated[list[StepStatus], Field(max_length=64)] = Field(
        default_factory=list, description="Steps of the pipeline, e.g. [{name: distil, state: Running}]."
    )
    progress: Progress | None = Field(None, description="Latest progress, e.g. {percent: 40, step: distil}.")
    result: Result | None = Field(None, description="What came out, e.g. {sizeRatio: 8.1}.")
