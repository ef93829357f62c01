"""What a job is to reach, how that is measured, and where results go."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from limbeck.api.fields import ApiModel, FreeForm, Location, Percent, PositiveNumber


class Target(ApiModel):
    """The dial: how small, and how good."""

    size_ratio: Annotated[PositiveNumber, Field(ge=1, le=10_000)] = Field(
        description="Bytes of the teacher's artefact over bytes of the result's, e.g. 4."
    )
    min_recovery_percent: Percent = Field(
        97, description="Main metric of the result over that of the teacher, at least, e.g. 97."
    )
    max_latency_percent: Annotated[int, Field(ge=1, le=10_000)] | None = Field(
        None, description="Median latency of the result over that of the teacher, at most, e.g. 50."
    )


class Latency(ApiModel):
    """How latency is measured."""

    batch_sizes: Annotated[list[Annotated[int, Field(ge=1, le=65_536)]], Field(min_length=1, max_length=8)] = Field(
        default_factory=lambda: [1, 32], description="Batch sizes, e.g. [1, 32]."
    )
    repeats: Annotated[int, Field(ge=5, le=10_000)] = Field(
        20, description="Timed calls for each batch size, after a warm-up, e.g. 20."
    )


MetricName = Annotated[str, Field(min_length=1, max_length=64)]


class Evaluation(ApiModel):
    """What is measured after every step, on the validation data."""

    metrics: Annotated[list[MetricName], Field(max_length=32)] = Field(
        default_factory=list,
        description="Metrics beside the task's own, the first is the main one; e.g. [recall@10].",
    )
    slices: Annotated[list[MetricName], Field(max_length=16)] = Field(
        default_factory=list, description="Columns by which metrics are split, e.g. [category]."
    )
    latency: Latency = Field(default_factory=Latency, description="How latency is measured, e.g. {repeats: 20}.")
    baseline: bool = Field(
        False, description="Also train the same student without the teacher, for the report, e.g. true."
    )
    explain: bool = Field(False, description="Compare attributions of teacher and student, e.g. true.")
    samples: Annotated[int, Field(ge=0, le=64)] = Field(8, description="Samples shown in the report, e.g. 8.")


class ExportFormat(StrEnum):
    """File formats of the finished model."""

    SAFETENSORS = "Safetensors"
    ONNX = "Onnx"
    TORCH_EXPORT = "TorchExport"
    EXECUTORCH = "ExecuTorch"
    LITERT = "LiteRt"


class Export(ApiModel):
    """Which files the finished model is written to."""

    formats: Annotated[list[ExportFormat], Field(min_length=1, max_length=5)] = Field(
        default_factory=lambda: [ExportFormat.SAFETENSORS],
        description="File formats; each file is loaded again and compared, e.g. [Safetensors, Onnx].",
    )


class SecretRef(ApiModel):
    """A Secret in the job's namespace."""

    name: Annotated[str, Field(min_length=1, max_length=253)] = Field(description="The Secret's name, e.g. s3.")


class Place(ApiModel):
    """A place in an object store."""

    uri: Location = Field(description="Folder or prefix, e.g. s3://results/emoji.")
    credentials_secret_ref: SecretRef | None = Field(
        None, description="Secret whose entries become environment variables, e.g. {name: s3}."
    )


class Tracking(ApiModel):
    """Experiment trackers that are told as well."""

    tensor_board: bool = Field(False, description="Write TensorBoard event files, e.g. true.")
    mlflow: FreeForm | None = Field(None, description="MLflow settings, e.g. {trackingUri: file:///runs}.")
    wandb: FreeForm | None = Field(None, description="Weights & Biases settings, e.g. {project: emoji}.")
