"""Settings that every training method shares, and those of distillation and fine-tuning."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import ConfigDict, Field, model_validator

from limbeck.api.fields import (
    ApiModel,
    LayerPattern,
    NonNegativeNumber,
    Percent,
    PositiveNumber,
    ShortText,
    rule,
    with_rules,
)


class LearningRateSchedule(StrEnum):
    """How the learning rate moves after the warm-up."""

    CONSTANT = "Constant"
    COSINE = "Cosine"
    LINEAR = "Linear"


class Precision(StrEnum):
    """Number format of the forward pass; Auto is bfloat16 on a GPU and float32 on a CPU."""

    AUTO = "Auto"
    FLOAT32 = "Float32"
    BFLOAT16 = "BFloat16"


class Parallelism(StrEnum):
    """How several workers share a model."""

    DATA_PARALLEL = "DataParallel"
    FULLY_SHARDED = "FullySharded"


class LayerRate(ApiModel):
    """A learning rate of its own for some parameters."""

    parameters: LayerPattern = Field(description="Which parameters, a shell pattern of their names, e.g. text.*.")
    learning_rate: PositiveNumber = Field(description="Their highest learning rate, e.g. 2e-5.")


class Training(ApiModel):
    """Settings of one training run."""

    epochs: Annotated[int, Field(ge=1, le=10_000)] = Field(3, description="Passes over the training data, e.g. 3.")
    batch_size: Annotated[int, Field(ge=1, le=1_048_576)] = Field(
        128, description="Samples in one step over all workers, e.g. 256."
    )
    learning_rate: PositiveNumber = Field(3e-4, description="Highest learning rate, of AdamW, e.g. 3e-4.")
    weight_decay: NonNegativeNumber = Field(0.01, description="Decoupled weight decay, e.g. 0.05.")
    warmup_percent: Percent = Field(5, description="Share of the steps in which the rate rises, e.g. 5.")
    schedule: LearningRateSchedule = Field(
        LearningRateSchedule.COSINE, description="How the rate moves after the warm-up, e.g. Cosine."
    )
    gradient_clip_norm: NonNegativeNumber = Field(
        1.0, description="Largest norm of the gradient; 0 does not clip, e.g. 1."
    )
    gradient_accumulation: Annotated[int, Field(ge=1, le=4096)] = Field(
        1, description="Parts into which a batch is cut to save memory, e.g. 4."
    )
    ema_decay_percent: Annotated[NonNegativeNumber, Field(lt=100)] = Field(
        0.0, description="Decay of the averaged weights in percent; 0 keeps no average, e.g. 99.9."
    )
    precision: Precision = Field(Precision.AUTO, description="Number format of the forward pass, e.g. BFloat16.")
    parallelism: Parallelism = Field(
        Parallelism.DATA_PARALLEL, description="How workers share the model, e.g. FullySharded."
    )
    freeze: Annotated[list[LayerPattern], Field(max_length=64)] = Field(
        default_factory=list, description="Parameters that stay as they are, shell patterns, e.g. [text.*]."
    )
    layer_rates: Annotated[list[LayerRate], Field(max_length=16)] = Field(
        default_factory=list,
        description="Rates that differ from `learningRate`; the first match counts, "
        "e.g. [{parameters: text.*, learningRate: 2e-5}].",
    )
    checkpoint_interval_seconds: Annotated[int, Field(ge=0, le=86_400)] = Field(
        60, description="Least time between two checkpoints; 0 writes one at every step, e.g. 60."
    )


class DistilMode(StrEnum):
    """Who teaches whom."""

    ONE_WAY = "OneWay"
    MUTUAL = "Mutual"
    CASCADE = "Cascade"


class SignalKind(StrEnum):
    """What of the teacher the student is to match."""

    FORWARD_KL = "ForwardKL"
    REVERSE_KL = "ReverseKL"
    JENSEN_SHANNON = "JensenShannon"
    TOTAL_VARIATION = "TotalVariation"
    DECOUPLED_KD = "DecoupledKD"
    FEATURE_MSE = "FeatureMSE"
    FEATURE_COSINE = "FeatureCosine"
    ATTENTION_MAPS = "AttentionMaps"
    RELATION_DISTANCE = "RelationDistance"
    RELATION_ANGLE = "RelationAngle"
    SIMILARITY_PRESERVING = "SimilarityPreserving"
    CONTRASTIVE_AFFINITY = "ContrastiveAffinity"
    CONTRASTIVE_FEATURE = "ContrastiveFeature"
    CONTRASTIVE_INTERACTIVE = "ContrastiveInteractive"
    CONTRASTIVE_RELATIONAL = "ContrastiveRelational"


class Signal(ApiModel):
    """One term of the distillation loss."""

    kind: SignalKind = Field(description="What is matched, e.g. ContrastiveAffinity.")
    weight: PositiveNumber = Field(1.0, description="Its weight in the sum, e.g. 0.5.")
    standardize: bool = Field(False, description="Standardise logits before the softmax, e.g. true.")
    student_layers: Annotated[list[LayerPattern], Field(max_length=64)] = Field(
        default_factory=list, description="The student's layers for feature signals, else its output, e.g. [blocks.5]."
    )
    teacher_layers: Annotated[list[LayerPattern], Field(max_length=64)] = Field(
        default_factory=list,
        description="The teacher's layers for feature signals, as many as the student's, e.g. [blocks.11].",
    )


class ValueShape(StrEnum):
    """How a scheduled value moves from start to end."""

    LINEAR = "Linear"
    COSINE = "Cosine"
    STEP = "Step"


class ValueSchedule(ApiModel):
    """A value that moves over the steps of a training run."""

    shape: ValueShape = Field(description="Form of the curve, e.g. Cosine.")
    start: NonNegativeNumber = Field(description="Value at the first step, e.g. 4.")
    end: NonNegativeNumber = Field(description="Value at the last step, e.g. 1.")


class OutputCodec(StrEnum):
    """How teacher outputs over many classes are stored."""

    TOP_K = "TopK"
    SAMPLED = "Sampled"
    FULL = "Full"


class TeacherOutputs(ApiModel):
    """How the teacher's outputs lie in the store."""

    codec: OutputCodec | None = Field(
        None, description="Form of stored logits; default Full up to 256 classes, TopK beyond, e.g. TopK."
    )
    count: Annotated[int, Field(ge=1, le=65_536)] = Field(
        20, description="Entries kept of each distribution: the k of TopK, the draws of Sampled, e.g. 20."
    )
    embedding_bits: Annotated[int, Field(ge=8, le=16)] = Field(
        16, description="Bits of each stored embedding value, 8 or 16, e.g. 8."
    )
    window_shards: Annotated[int, Field(ge=1, le=4096)] = Field(
        8,
        description="Shards among which samples are shuffled; as many are open, and as many captured ahead, e.g. 8.",
    )


_DISTIL_RULES = with_rules(
    rule(
        "!has(self.temperatureSchedule) || !has(self.temperature)",
        "`distil` must hold at most one of `temperature` and `temperatureSchedule`, got both; remove one",
    ),
    rule(
        "!has(self.hardLabelSchedule) || !has(self.hardLabelPercent)",
        "`distil` must hold at most one of `hardLabelPercent` and `hardLabelSchedule`, got both; remove one",
    ),
)


class Distil(Training):
    """Train the student to behave as the teacher does (Hinton et al., 2015, and its successors)."""

    model_config = ConfigDict(json_schema_extra=_DISTIL_RULES)

    mode: DistilMode = Field(DistilMode.ONE_WAY, description="Who teaches whom, e.g. OneWay.")
    signals: Annotated[list[Signal], Field(max_length=16)] = Field(
        default_factory=list, description="Terms of the loss, else what suits the task, e.g. [{kind: ForwardKL}]."
    )
    temperature: PositiveNumber | None = Field(
        None, description="Softness of the compared distributions; the default suits the task, e.g. 2."
    )
    temperature_schedule: ValueSchedule | None = Field(
        None, description="A moving temperature, e.g. {shape: Cosine, start: 4, end: 1}."
    )
    hard_label_percent: Percent | None = Field(
        None, description="Share of the loss on the data's own labels or pairs; default 30, e.g. 30."
    )
    hard_label_schedule: ValueSchedule | None = Field(
        None, description="A moving share in percent, e.g. {shape: Linear, start: 0, end: 50}."
    )
    assistants: Annotated[list[ShortText], Field(max_length=4)] = Field(
        default_factory=list, description="Steps whose students teach in between, for Cascade, e.g. [first]."
    )
    teacher_outputs: TeacherOutputs = Field(
        default_factory=TeacherOutputs, description="How teacher outputs are stored, e.g. {count: 20}."
    )

    @model_validator(mode="after")
    def _constants_or_schedules(self) -> Distil:
        if self.temperature is not None and self.temperature_schedule is not None:
            raise ValueError(
                "`distil` must hold at most one of `temperature` and `temperatureSchedule`, got both; remove one"
            )
        if self.hard_label_percent is not None and self.hard_label_schedule is not None:
            raise ValueError(
                "`distil` must hold at most one of `hardLabelPercent` and `hardLabelSchedule`, got both; remove one"
            )
        return self


class FinetuneObjective(StrEnum):
    """What fine-tuning minimises."""

    SUPERVISED = "Supervised"
    CONTRASTIVE = "Contrastive"
    MASKED = "Masked"


class Adapter(StrEnum):
    """Which weights fine-tuning moves."""

    FULL = "Full"
    LORA = "LoRA"


class Finetune(Training):
    """Train on the data's own labels or pairs, without a teacher."""

    objective: FinetuneObjective | None = Field(
        None, description="What is minimised; the default suits the task, e.g. Contrastive."
    )
    label_smoothing_percent: Percent = Field(0, description="Share of the target spread over all, e.g. 10.")
    adapter: Adapter = Field(Adapter.FULL, description="All weights, or low-rank updates, e.g. LoRA.")
    lora_rank: Annotated[int, Field(ge=1, le=1024)] = Field(8, description="Rank of the LoRA updates, e.g. 8.")
