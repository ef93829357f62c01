"""Settings of the methods that make a trained model smaller: pruning, low rank, quantization."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import ConfigDict, Field, model_validator

from limbeck.api.fields import ApiModel, KeptPercent, LayerPattern, Percent, names_given, rule, with_rules
from limbeck.api.v1alpha1.training import Distil, Finetune

LayerPatterns = Annotated[list[LayerPattern], Field(max_length=64)]
CalibrationSamples = Annotated[int, Field(ge=1, le=1_000_000)]


class Granularity(StrEnum):
    """What pruning removes at a time."""

    UNSTRUCTURED = "Unstructured"
    TWO_FOUR = "TwoFour"
    STRUCTURED = "Structured"


class Criterion(StrEnum):
    """How pruning ranks what it may remove."""

    L1 = "L1"
    L2 = "L2"
    TAYLOR = "Taylor"
    FISHER = "Fisher"
    WANDA = "Wanda"
    RANDOM = "Random"


class PruneUnit(StrEnum):
    """What structured pruning removes as a whole."""

    CHANNELS = "Channels"  # of convolutions, inside a block
    HEADS = "Heads"  # attention heads; under grouped-query attention a key-value head with its query heads
    MLP_WIDTH = "MlpWidth"  # inner features between two linear layers
    RESIDUAL_WIDTH = "ResidualWidth"  # what all layers of a stack add to
    LAYERS = "Layers"  # whole blocks of a stack


class PruneScope(StrEnum):
    """Within what weights or units are ranked: each layer by itself, or all layers together."""

    LAYER = "Layer"
    GLOBAL = "Global"


class PruneSchedule(StrEnum):
    """How the removed share grows over the rounds: evenly, or fast first (Zhu and Gupta, 2017)."""

    LINEAR = "Linear"
    CUBIC = "Cubic"


class Recovery(ApiModel):
    """Training after each round of pruning; exactly one of the two."""

    model_config = ConfigDict(
        json_schema_extra=with_rules(
            rule(
                "(has(self.distil) ? 1 : 0) + (has(self.finetune) ? 1 : 0) == 1",
                "`recover` must hold exactly one of `distil`, `finetune`; keep one",
            )
        )
    )

    distil: Distil | None = Field(None, description="Learn from the teacher after each round, e.g. {epochs: 1}.")
    finetune: Finetune | None = Field(None, description="Learn from the data after each round, e.g. {epochs: 1}.")

    @model_validator(mode="after")
    def _one(self) -> Recovery:
        if (self.distil is None) == (self.finetune is None):
            raise ValueError("`recover` must hold exactly one of `distil`, `finetune`; keep one")
        return self


class Prune(ApiModel):
    """Remove weights, channels, heads or layers, and keep a record of what went."""

    model_config = ConfigDict(
        json_schema_extra=with_rules(
            rule(
                "(has(self.sparsityPercent) ? 1 : 0) + (has(self.parameterPercent) ? 1 : 0) + "
                "(has(self.macPercent) ? 1 : 0) == 1",
                "`prune` must hold exactly one of `sparsityPercent`, `parameterPercent`, `macPercent`; keep one",
            )
        )
    )

    method: Criterion = Field(Criterion.TAYLOR, description="How weights are ranked, e.g. Taylor.")
    granularity: Granularity = Field(Granularity.STRUCTURED, description="What is removed, e.g. Structured.")
    sparsity_percent: Annotated[int, Field(ge=1, le=99)] | None = Field(
        None, description="Share of weights or units that is removed, e.g. 30; TwoFour takes 50."
    )
    parameter_percent: KeptPercent | None = Field(
        None, description="Share of the model's parameters that is kept; structured only, e.g. 60."
    )
    mac_percent: KeptPercent | None = Field(
        None, description="Share of the multiply-accumulates that is kept; structured only, e.g. 50."
    )
    units: Annotated[list[PruneUnit], Field(max_length=5)] = Field(
        default_factory=list,
        description="What structured pruning may remove; empty is the same as e.g. [Channels, Heads, MlpWidth].",
    )
    scope: PruneScope = Field(PruneScope.LAYER, description="Within what is ranked, e.g. Global.")
    rounds: Annotated[int, Field(ge=1, le=32)] = Field(
        1, description="Rounds in which it is removed; at most a third a round recovers well, e.g. 2."
    )
    schedule: PruneSchedule = Field(PruneSchedule.LINEAR, description="How the share grows over rounds, e.g. Cubic.")
    recover: Recovery | None = Field(
        None, description="Training after each round; none leaves it to later steps, e.g. {distil: {epochs: 1}}."
    )
    ignore: LayerPatterns = Field(
        default_factory=list, description="Layers that stay whole, shell patterns, e.g. [text.embeddings.*]."
    )
    calibration_samples: CalibrationSamples = Field(512, description="Samples for criteria that need data, e.g. 512.")

    @model_validator(mode="after")
    def _one_target(self) -> Prune:
        given = [self.sparsity_percent, self.parameter_percent, self.mac_percent]
        if sum(value is not None for value in given) != 1:
            raise ValueError(
                "`prune` must hold exactly one of `sparsityPercent`, `parameterPercent`, `macPercent`; keep one"
            )
        structured = self.granularity is Granularity.STRUCTURED
        if not structured and self.sparsity_percent is None:
            raise ValueError(
                f"`prune.sparsityPercent` must be the target of {self.granularity.value} pruning, which removes no "
                "parameter and no operation from the network; give it instead"
            )
        if not structured and self.units:
            raise ValueError(f"`prune.units` must be left out for {self.granularity.value} pruning; remove it")
        if self.granularity is Granularity.TWO_FOUR and (self.sparsity_percent, self.rounds) != (50, 1):
            raise ValueError(
                "`prune` with TwoFour must have `sparsityPercent` 50 and one round: two of each four weights go, "
                f"got {self.sparsity_percent} in {self.rounds} rounds"
            )
        return self


_BUDGETS = ("rank", "energyPercent", "parameterPercent")


class LowRank(ApiModel):
    """Replace a weight matrix by the product of two thin ones (truncated SVD)."""

    model_config = ConfigDict(
        json_schema_extra=with_rules(
            rule(
                "(has(self.rank) ? 1 : 0) + (has(self.energyPercent) ? 1 : 0) + "
                "(has(self.parameterPercent) ? 1 : 0) == 1",
                "`lowRank` must hold exactly one of `rank`, `energyPercent`, `parameterPercent`, got {got}; keep one",
                names_given(_BUDGETS),
            )
        )
    )

    rank: Annotated[int, Field(ge=1, le=65_536)] | None = Field(
        None, description="Rank of every factorised layer, e.g. 64."
    )
    energy_percent: KeptPercent | None = Field(
        None, description="Share of the squared singular values that is kept, e.g. 95."
    )
    parameter_percent: KeptPercent | None = Field(
        None, description="Share of the layers' weights that is kept, divided by what each rank brings, e.g. 50."
    )
    data_aware: bool = Field(True, description="Weigh the error by the layer's real inputs, e.g. true.")
    layers: LayerPatterns = Field(default_factory=list, description="Layers, shell patterns, else all, e.g. [text.*].")
    ignore: LayerPatterns = Field(
        default_factory=list, description="Layers that stay whole, shell patterns, e.g. [*.head]."
    )
    calibration_samples: CalibrationSamples = Field(512, description="Samples for the weighing, e.g. 512.")

    @model_validator(mode="after")
    def _one_budget(self) -> LowRank:
        values = (self.rank, self.energy_percent, self.parameter_percent)
        given = [name for name, value in zip(_BUDGETS, values, strict=True) if value is not None]
        if len(given) != 1:
            raise ValueError(
                "`lowRank` must hold exactly one of `rank`, `energyPercent`, `parameterPercent`, "
                f"got [{''.join(f' {name}' for name in given)} ]; keep one"
            )
        return self


class Scheme(StrEnum):
    """Number format of the weights."""

    INT8 = "Int8"
    INT4 = "Int4"
    FLOAT8 = "Float8"


class Activations(StrEnum):
    """How activations are quantized: not at all, by each input's own range, or by calibrated ranges."""

    NONE = "None"
    DYNAMIC = "Dynamic"
    STATIC = "Static"


class Calibration(StrEnum):
    """How a static range is chosen from what was seen."""

    MIN_MAX = "MinMax"
    PERCENTILE = "Percentile"
    MSE = "MSE"


class Quantize(ApiModel):
    """Store weights, and compute activations, in fewer bits."""

    scheme: Scheme = Field(Scheme.INT8, description="Number format of the weights, e.g. Int8.")
    activations: Activations = Field(Activations.DYNAMIC, description="How activations are quantized, e.g. Static.")
    calibration: Calibration = Field(Calibration.MIN_MAX, description="How static ranges are chosen, e.g. MSE.")
    calibration_samples: CalibrationSamples = Field(512, description="Samples for static ranges, e.g. 512.")
    aware: bool = Field(False, description="Train with rounding in the loop before converting, e.g. true.")
    embeddings: bool = Field(True, description="Quantize embedding tables too, e.g. true.")
    skip: LayerPatterns = Field(
        default_factory=list, description="Layers that stay in float, shell patterns, e.g. [image.stem.*]."
    )
    min_agreement_percent: Percent | None = Field(
        None, description="Fall back layer by layer until this agreement with the float model holds, e.g. 99."
    )
