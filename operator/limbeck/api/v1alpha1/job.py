"""The CompressionJob itself: its pipeline, its spec, and the object around them."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from limbeck.api.fields import ApiModel, Seconds, StepName, names_given, rule, with_rules
from limbeck.api.status import Status
from limbeck.api.v1alpha1.cluster import Cluster
from limbeck.api.v1alpha1.compression import LowRank, Prune, Quantize
from limbeck.api.v1alpha1.data import Data
from limbeck.api.v1alpha1.model import Student, Teacher
from limbeck.api.v1alpha1.outcome import Evaluation, Export, Place, Target, Tracking
from limbeck.api.v1alpha1.training import Distil, Finetune
from limbeck.names import API_VERSION, KIND, MANAGED_BY, MAX_JOB_NAME_LENGTH

METHODS = ("distil", "finetune", "prune", "lowRank", "quantize")
Method = Distil | Finetune | Prune | LowRank | Quantize


class Task(StrEnum):
    """What kind of model the job compresses."""

    IMAGE_TEXT = "ImageText"
    IMAGE_CLASSIFICATION = "ImageClassification"
    TEXT_EMBEDDING = "TextEmbedding"
    CAUSAL_LM = "CausalLM"
    AUDIO_EMBEDDING = "AudioEmbedding"
    SPEECH = "Speech"


class Step(ApiModel):
    """One entry of the pipeline: a name and exactly one method."""

    model_config = ConfigDict(
        json_schema_extra=with_rules(
            rule(
                " + ".join(f"(has(self.{method}) ? 1 : 0)" for method in METHODS) + " == 1",
                f"each entry of `pipeline` must hold exactly one method of {', '.join(METHODS)}, got {{got}}; "
                "add, split or remove some",
                f"'`' + self.name + '` with ' + {names_given(METHODS)}",
            )
        )
    )

    name: StepName = Field(description="Name of the step, unique in the pipeline, e.g. distil.")
    distil: Distil | None = Field(None, description="Learn from the teacher, e.g. {epochs: 3}.")
    finetune: Finetune | None = Field(None, description="Learn from the data, e.g. {epochs: 1}.")
    prune: Prune | None = Field(None, description="Remove weights, e.g. {sparsityPercent: 30}.")
    low_rank: LowRank | None = Field(None, description="Factorise weights, e.g. {energyPercent: 95}.")
    quantize: Quantize | None = Field(None, description="Use fewer bits, e.g. {scheme: Int8}.")

    @property
    def method(self) -> Method:
        """The settings of the entry's one method."""
        return next(value for _, value in self._given())

    @property
    def method_name(self) -> str:
        """The field that holds the method, e.g. `lowRank`."""
        return next(name for name, _ in self._given())

    def _given(self) -> list[tuple[str, Method]]:
        pairs: list[tuple[str, Method | None]] = [
            ("distil", self.distil),
            ("finetune", self.finetune),
            ("prune", self.prune),
            ("lowRank", self.low_rank),
            ("quantize", self.quantize),
        ]
        return [(name, value) for name, value in pairs if value is not None]

    @model_validator(mode="after")
    def _exactly_one_method(self) -> Step:
        given = [name for name, _ in self._given()]
        if len(given) != 1:
            raise ValueError(
                f"each entry of `pipeline` must hold exactly one method of {', '.join(METHODS)}, "
                f"got `{self.name}` with [{''.join(f' {name}' for name in given)} ]; add, split or remove some"
            )
        return self


class Spec(ApiModel):
    """What the user wants."""

    model_config = ConfigDict(
        json_schema_extra=with_rules(
            rule(
                "has(self.target) || (has(self.pipeline) && size(self.pipeline) > 0)",
                "`spec` must hold `target` or a `pipeline` of at least one step, got neither; give one",
            ),
            rule(
                "!has(self.pipeline) || self.pipeline.all(a, self.pipeline.exists_one(b, b.name == a.name))",
                "`spec.pipeline` must have unique step names, got one more than once; rename one",
            ),
            rule(
                "has(self.teacher) || has(self.student)",
                "`spec` must hold `teacher` or `student`, got neither; say which model is to be worked on",
            ),
        )
    )

    target: Target | None = Field(None, description="How small and how good, e.g. {sizeRatio: 4}.")
    task: Task = Field(description="What kind of model this is, e.g. ImageText.")
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = Field(0, description="Seed of every random choice, e.g. 7.")
    teacher: Teacher | None = Field(None, description="The model whose behaviour is kept, e.g. {model: {...}}.")
    student: Student | None = Field(
        None, description="The small model, else derived from `target`, e.g. {shrink: {depthPercent: 50}}."
    )
    data: Data = Field(description="Training and validation data, e.g. {train: {...}, validation: {...}}.")
    pipeline: Annotated[list[Step], Field(max_length=32)] = Field(
        default_factory=list,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
        description="Steps in their order, else derived from `target`, e.g. [{name: distil, distil: {}}].",
    )
    evaluation: Evaluation = Field(default_factory=Evaluation, description="What is measured, e.g. {slices: [a]}.")
    export: Export = Field(default_factory=Export, description="Files of the result, e.g. {formats: [Onnx]}.")
    output: Place = Field(description="Where results go, e.g. {uri: s3://results/emoji}.")
    store: Place | None = Field(
        None,
        description="Where teacher outputs are kept and shared among jobs, else under `output`, e.g. {uri: s3://store}.",
    )
    cluster: Cluster = Field(default_factory=Cluster, description="The job's pods, e.g. {student: {replicas: 2}}.")
    tracking: Tracking = Field(default_factory=Tracking, description="Trackers, e.g. {tensorBoard: true}.")
    suspend: bool = Field(False, description="Stop after a checkpoint and give all pods back, e.g. true.")
    backoff_limit: Annotated[int, Field(ge=0, le=1000)] = Field(3, description="Attempts after the first, e.g. 3.")
    active_deadline_seconds: Annotated[Seconds, Field(ge=1)] | None = Field(
        None, description="Longest run over all attempts, e.g. 86400."
    )
    ttl_seconds_after_finished: Seconds | None = Field(
        None, description="When to delete the finished job object, never its results, e.g. 604800."
    )
    managed_by: Annotated[str, Field(max_length=63)] = Field(
        MANAGED_BY, description="The controller that acts on the job, e.g. limbeck.dev/operator."
    )

    @model_validator(mode="after")
    def _whole(self) -> Spec:
        if self.target is None and not self.pipeline:
            raise ValueError("`spec` must hold `target` or a `pipeline` of at least one step, got neither; give one")
        if self.teacher is None and self.student is None:
            raise ValueError("`spec` must hold `teacher` or `student`, got neither; say which model is to be worked on")
        names = [step.name for step in self.pipeline]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(
                f"`spec.pipeline` must have unique step names, got `{repeated[0]}` more than once; rename one"
            )
        return self


class Metadata(ApiModel):
    """The part of Kubernetes' object metadata that limbeck reads; the rest passes through."""

    model_config = ConfigDict(extra="allow")

    name: Annotated[
        str, Field(min_length=1, max_length=MAX_JOB_NAME_LENGTH, pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$")
    ] = Field(description="Name of the job, at most 40 characters, e.g. emoji.")
    namespace: str | None = Field(None, description="Namespace, e.g. team-a.")
    labels: dict[str, str] = Field(default_factory=dict, description="Labels, e.g. {team: a}.")
    annotations: dict[str, str] = Field(default_factory=dict, description="Annotations, e.g. {note: b}.")


class CompressionJob(ApiModel):
    """A model to be compressed: teacher, data, pipeline and target in one declarative job."""

    api_version: Literal["limbeck.dev/v1alpha1"] = Field(
        API_VERSION, description="Version of this API, limbeck.dev/v1alpha1."
    )
    kind: Literal["CompressionJob"] = Field(KIND, description="CompressionJob.")
    metadata: Metadata = Field(description="Name, namespace and labels, e.g. {name: emoji}.")
    spec: Spec = Field(description="What is wanted, e.g. {target: {sizeRatio: 4}, ...}.")
    status: Status = Field(
        default_factory=Status, description="What has come of it, written by limbeck, e.g. {phase: Running}."
    )

    def to_wire(self) -> dict[str, Any]:
        """The object as JSON-ready data in camelCase, only with what was given: defaults may change, wishes stay."""
        given = self.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude_none=True)
        return {"apiVersion": self.api_version, "kind": self.kind, **given}
