"""The report of a run: what was measured of teacher, baseline and each step's result, and the gate.

A figure that was not measured is null, and `unmeasured` of the same row says why; it is never 0.
Units are in the names. Left out: how figures are measured (the runtime's evaluation) and how they are
drawn (the runtime's report).
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Final, Literal

from pydantic import ConfigDict, Field, FiniteFloat, model_validator

from limbeck.api.fields import ApiModel, FreeForm
from limbeck.api.low_rank_record import FactorisedLayer
from limbeck.api.prune_record import PrunedLayer
from limbeck.api.status import PlanEntry

REPORT_VERSION: Final[Literal[1]] = 1

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[FiniteFloat, Field(gt=0)]
NonNegative = Annotated[FiniteFloat, Field(ge=0)]
Share = Annotated[FiniteFloat, Field(ge=0, le=1)]
SharePercent = Annotated[FiniteFloat, Field(ge=0, le=100)]


class RowKind(StrEnum):
    """What a row speaks of."""

    TEACHER = "Teacher"
    BASELINE = "Baseline"  # the student trained on hard labels alone, at the same budget
    STEP = "Step"


class MetricValue(ApiModel):
    """One metric of one row, and how much of the teacher's value it recovers."""

    value: FiniteFloat | None = Field(description="The value, null where it is not finite, e.g. 0.61.")
    higher_is_better: bool = Field(True, description="Whether more is better, e.g. true.")
    recovery_percent: NonNegative | None = Field(
        None, description="Percent of the teacher's value; inverted where lower is better, e.g. 98.2."
    )


class LatencyFigure(ApiModel):
    """Latency of the artefact that is served, for one batch size."""

    batch_size: Annotated[int, Field(ge=1)] = Field(description="Samples in a call, e.g. 32.")
    p50_seconds: Positive = Field(description="Median time of a call, e.g. 0.012.")
    p95_seconds: Positive = Field(description="95th percentile of the time of a call, e.g. 0.015.")
    num_calls: Annotated[int, Field(ge=1)] = Field(description="Timed calls, after the warm-up, e.g. 20.")


class SliceValue(ApiModel):
    """The metrics of the samples that share one value of a slice column."""

    count: Annotated[int, Field(ge=1)] = Field(description="Samples, e.g. 24.")
    metrics: dict[str, FiniteFloat] = Field(description="Metrics over these samples, e.g. {recall@10: 0.5}.")


class WorstGap(ApiModel):
    """The slice value that falls furthest behind the whole of the row, in the main metric."""

    slice: str = Field(description="The slice column, e.g. category.")
    value: str = Field(description="Its value, e.g. flags.")
    count: Annotated[int, Field(ge=1)] = Field(description="Samples that have it, e.g. 24.")
    gap: NonNegative = Field(description="How far it is behind, in units of the main metric, e.g. 0.12.")


class Row(ApiModel):
    """All figures of one model."""

    label: str = Field(description="`teacher`, `baseline`, or the name of the step, e.g. distil.")
    kind: RowKind = Field(description="What the row speaks of, e.g. Step.")
    method: str = Field("", description="Method of the step, e.g. quantize.")
    artefact: str = Field("", description="What was weighed and timed, e.g. model.safetensors, torch eager.")
    parameters: Count | None = Field(description="Parameters, e.g. 1200000.")
    macs: Count | None = Field(description="Multiply-accumulates for one sample, e.g. 250000000.")
    artefact_bytes: Annotated[int, Field(ge=1)] | None = Field(
        description="Bytes on disk of the artefact, e.g. 4800000."
    )
    peak_memory_bytes: Annotated[int, Field(ge=1)] | None = Field(
        description="Peak memory of inference with the artefact, e.g. 310000000."
    )
    latency: list[LatencyFigure] = Field(description="Latency by batch size, ascending.")
    metrics: dict[str, MetricValue] = Field(description="Metrics over the validation data.")
    agreement_percent: SharePercent | None = Field(
        None, description="Samples on which the answer is the teacher's, e.g. 91.5."
    )
    ece: Share | None = Field(None, description="Expected calibration error, 0 to 1, e.g. 0.04.")
    slices: dict[str, dict[str, SliceValue]] = Field(
        default_factory=dict, description="Metrics by slice column and its value."
    )
    worst_gap: WorstGap | None = Field(None, description="The slice value that falls furthest behind.")
    unmeasured: dict[str, str] = Field(
        default_factory=dict, description="Why a figure is null, by its field, e.g. {macs: quantized kernels}."
    )

    @model_validator(mode="after")
    def _every_gap_has_a_reason(self) -> Row:
        missing = [name for name in self._nulls() if not self.unmeasured.get(name)]
        if missing:
            raise ValueError(
                f"row {self.label!r} must give a reason in `unmeasured` for each figure that is null, "
                f"got none for {', '.join(missing)}; measure it or say why not"
            )
        return self

    def _nulls(self) -> list[str]:
        figures = {
            "parameters": self.parameters,
            "macs": self.macs,
            "artefactBytes": self.artefact_bytes,
            "peakMemoryBytes": self.peak_memory_bytes,
            "latency": self.latency or None,
            "agreementPercent": self.agreement_percent,
            "ece": self.ece,
            "worstGap": self.worst_gap,
        }
        figures |= {f"metrics.{name}": metric.value for name, metric in self.metrics.items()}
        figures |= {f"metrics.{name}.recoveryPercent": metric.recovery_percent for name, metric in self.metrics.items()}
        return [name for name, figure in figures.items() if figure is None]

    def metric(self, name: str) -> float | None:
        """The value of a metric; None where the row has none."""
        metric = self.metrics.get(name)
        return None if metric is None else metric.value

    def to_wire(self) -> dict[str, Any]:
        """The row as JSON-ready data in camelCase, nulls included."""
        return self.model_dump(mode="json", by_alias=True)

    def p50_seconds(self, batch_size: int) -> float | None:
        """Median latency at one batch size; None where it was not timed."""
        return next((entry.p50_seconds for entry in self.latency if entry.batch_size == batch_size), None)


class GateCheck(ApiModel):
    """One part of the target, wanted and reached."""

    name: str = Field(description="The field of `spec.target`, e.g. sizeRatio.")
    wanted: FiniteFloat = Field(description="What the target says, e.g. 4.")
    reached: FiniteFloat | None = Field(description="What was measured, null where it could not be, e.g. 3.9.")
    at_most: bool = Field(False, description="Whether `wanted` is an upper bound, e.g. false.")
    passed: bool = Field(description="Whether the check holds, e.g. false.")
    detail: str = Field("", description="What was compared, or why it could not be, e.g. batch 32.")


class GateVerdict(ApiModel):
    """Whether the result is as small, good and fast as the target says."""

    passed: bool = Field(description="Whether all checks hold; true without a target.")
    checks: list[GateCheck] = Field(default_factory=list, description="The checks, none without a target.")


class LossHistory(ApiModel):
    """Loss of one step over its training, in columns of equal length; thinned to what a chart can show."""

    updates: list[Count] = Field(description="Optimiser updates, ascending, e.g. [1, 10, 20].")
    total: list[FiniteFloat | None] = Field(description="The loss, null where it was not finite.")
    terms: dict[str, list[FiniteFloat | None]] = Field(
        default_factory=dict, description="The loss by term, each already weighted."
    )

    @model_validator(mode="after")
    def _columns_are_equally_long(self) -> LossHistory:
        lengths = {"total": len(self.total)} | {name: len(column) for name, column in self.terms.items()}
        wrong = {name: length for name, length in lengths.items() if length != len(self.updates)}
        if wrong:
            raise ValueError(f"columns must hold {len(self.updates)} values as `updates` does, got {wrong}")
        return self


class Pruning(ApiModel):
    """What a pruning step removed, by layer; the whole record is in records/<step>/prune.json."""

    granularity: str = Field(description="What was removed, e.g. Structured.")
    parameters_before: Count = Field(description="Parameters before, e.g. 22700000.")
    parameters_after: Count = Field(description="Parameters after, e.g. 17900000.")
    zeros_after: Count = Field(0, description="Of these, weights held at zero, e.g. 5300000.")
    layers: list[PrunedLayer] = Field(default_factory=list, description="Weights that lost entries.")


class LowRankReport(ApiModel):
    """Which layers a low-rank step factorised; the whole record is in records/<step>/low_rank.json."""

    data_aware: bool = Field(description="Whether errors were weighed by the layers' inputs, e.g. true.")
    parameters_before: Count = Field(description="Parameters before, e.g. 22700000.")
    parameters_after: Count = Field(description="Parameters after, e.g. 14100000.")
    layers: list[FactorisedLayer] = Field(default_factory=list, description="Layers that were factorised.")


class StepReport(ApiModel):
    """What one step of the pipeline did."""

    name: str = Field(description="Name of the step, e.g. distil.")
    method: str = Field(description="Its method, e.g. distil.")
    seconds: NonNegative = Field(description="Time of the run that finished it, e.g. 41.2.")
    skipped: bool = Field(False, description="Whether its result was there already, e.g. false.")
    settings: FreeForm = Field(default_factory=dict, description="Its settings after all defaults.")
    history: LossHistory | None = Field(None, description="Its loss, for steps that train.")
    pruning: Pruning | None = Field(None, description="What it removed, for steps that prune.")
    low_rank: LowRankReport | None = Field(None, description="What it factorised, for steps that do.")


class BadSampleRecord(ApiModel):
    """One sample that was skipped."""

    shard: str = Field(description="Where it lies, e.g. train-003.tar.")
    key: str = Field(description="Its key, e.g. 1f600.")
    reason: str = Field(description="Why, in one word, e.g. TruncatedImage.")
    detail: str = Field("", description="Why, in a sentence.")


class BadSamples(ApiModel):
    """The samples that were skipped."""

    total: Count = Field(description="How many, e.g. 2.")
    seen: Count = Field(description="Samples looked at, the bad ones included, e.g. 4000.")
    by_reason: dict[str, Count] = Field(default_factory=dict, description="How many, by reason.")
    examples: list[BadSampleRecord] = Field(default_factory=list, description="The first of them by name.")


class Answer(ApiModel):
    """What a model says about one sample."""

    text: str = Field(description="The answer in words, e.g. a grinning face.")
    score: FiniteFloat | None = Field(None, description="Its score or probability, e.g. 0.83.")
    correct: bool | None = Field(None, description="Whether it is the truth; null where there is none.")


class SampleComparison(ApiModel):
    """One validation sample with the answers of teacher and student side by side."""

    key: str = Field(description="Key of the sample, e.g. 1f600.")
    image: str | None = Field(
        None, description="The image as a data URI.", pattern=r"^data:image/(png|jpeg|webp);base64,[A-Za-z0-9+/=]+$"
    )
    question: str = Field("", description="What was asked, where it is not the image, e.g. a text.")
    truth: str | None = Field(None, description="What the data says, e.g. grinning face.")
    teacher: Answer | None = Field(None, description="The teacher's answer; null without a teacher.")
    student: Answer = Field(description="The answer of the finished model.")
    agree: bool | None = Field(None, description="Whether both say the same; null without a teacher.")


class ExportedFile(ApiModel):
    """One exported artefact, loaded again and compared with the torch model."""

    format: str = Field(description="Its format, e.g. Onnx.")
    path: str = Field(description="Where it lies under the output, e.g. model/model.onnx.")
    bytes: Annotated[int, Field(ge=1)] = Field(description="Bytes on disk, side files included, e.g. 1200000.")
    num_compared: Count = Field(description="Validation samples it was compared on, e.g. 64.")
    max_difference: NonNegative | None = Field(None, description="Largest absolute difference, e.g. 0.0001.")
    min_cosine: FiniteFloat | None = Field(None, description="Worst cosine to the torch model, e.g. 0.9999.")


class Environment(ApiModel):
    """Where the figures were measured."""

    device: str = Field(description="Device of the models, e.g. cpu.")
    cpu: str = Field(description="Processor, e.g. AMD EPYC 7B13.")
    num_cores: Annotated[int, Field(ge=1)] = Field(description="Cores that the process may use, e.g. 2.")
    num_threads: Annotated[int, Field(ge=1)] = Field(description="Threads of one model call, e.g. 2.")
    memory_bytes: Annotated[int, Field(ge=1)] | None = Field(None, description="Memory of the machine.")
    platform: str = Field(description="Operating system, e.g. Linux-6.1-x86_64.")
    versions: dict[str, str] = Field(description="Versions of limbeck, Python and the libraries.")


class Report(ApiModel):
    """The whole report, as report.json holds it."""

    model_config = ConfigDict(title="LimbeckReport")

    version: Literal[1] = Field(REPORT_VERSION, description="Version of this format, 1.")
    job: str = Field(description="Name of the job, e.g. emoji.")
    task: str = Field(description="The task, e.g. ImageText.")
    created_at: datetime = Field(description="When the report was made, e.g. 2026-11-24T06:00:00Z.")
    main_metric: str = Field(description="The metric that recovery is taken of, e.g. recall@10.")
    environment: Environment = Field(description="Machine and versions that the figures were measured on.")
    plan: list[PlanEntry] = Field(default_factory=list, description="Derived values, each with its reason.")
    rows: Annotated[list[Row], Field(min_length=1)] = Field(
        description="Teacher, baseline, then the steps in their order; the last is the result."
    )
    gate: GateVerdict = Field(description="Whether the target was reached.")
    steps: list[StepReport] = Field(default_factory=list, description="What each step did.")
    bad_samples: BadSamples = Field(description="Samples that were skipped.")
    samples: list[SampleComparison] = Field(default_factory=list, description="Answers side by side.")
    exports: list[ExportedFile] = Field(default_factory=list, description="Files of the result.")
    model_uri: str = Field("", description="Where the result lies, e.g. s3://results/emoji/model.")

    @model_validator(mode="after")
    def _rows_are_in_order(self) -> Report:
        labels = [row.label for row in self.rows]
        if len(set(labels)) != len(labels):
            raise ValueError(f"`rows` must have unique labels, got {labels}; rename a step")
        if self.rows[-1].kind is not RowKind.STEP:
            raise ValueError(f"`rows` must end with a step's result, got {labels[-1]!r}; evaluate the result")
        if self.main_metric not in self.rows[-1].metrics:
            raise ValueError(
                f"`mainMetric` must be a metric of the result, got {self.main_metric!r}; "
                f"take one of {', '.join(self.rows[-1].metrics)}"
            )
        return self

    @property
    def teacher(self) -> Row | None:
        """The teacher's row, if there was a teacher."""
        return self._first(RowKind.TEACHER)

    @property
    def baseline(self) -> Row | None:
        """The row of the hard-label student, if one was trained."""
        return self._first(RowKind.BASELINE)

    @property
    def final(self) -> Row:
        """The row of the result."""
        return self.rows[-1]

    def size_ratio(self, row: Row) -> float | None:
        """Bytes of the teacher's artefact over those of `row`; None where either is unknown."""
        teacher = self.teacher
        if teacher is None or teacher.artefact_bytes is None or row.artefact_bytes is None:
            return None
        return teacher.artefact_bytes / row.artefact_bytes

    def to_json(self) -> str:
        """The report as report.json holds it: camelCase, indented."""
        return self.model_dump_json(by_alias=True, indent=2)

    def _first(self, kind: RowKind) -> Row | None:
        return next((row for row in self.rows if row.kind is kind), None)
