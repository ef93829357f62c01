"""The record of a pruning step: what went, by which scores, and what the model was before.

It lies as prune.json beside the step's result; the removed values themselves are in prune.safetensors. Both together
bring the model back (`limbeck prune-record undo`).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final, Literal

from pydantic import Field, FiniteFloat

from limbeck.api.fields import ApiModel, FreeForm
from limbeck.api.v1alpha1.compression import Criterion, Granularity, PruneScope, PruneUnit

RECORD_FILE: Final = "prune.json"
REMOVED_FILE: Final = "prune.safetensors"

Count = Annotated[int, Field(ge=0)]
Percentage = Annotated[FiniteFloat, Field(ge=0, le=100)]


class UndoData(StrEnum):
    """What prune.safetensors holds."""

    REMOVED = "Removed"  # the values that went; what stayed comes from the pruned model
    WHOLE = "Whole"  # all weights from before, since training changed what stayed


class PrunedLayer(ApiModel):
    """One weight tensor."""

    name: str = Field(description="Its name before, e.g. text.network.encoder.layer.0.output.dense.weight.")
    weights: Count = Field(description="Entries before, e.g. 589824.")
    removed: Count = Field(description="Entries that were cut out or set to zero, e.g. 176947.")
    threshold: FiniteFloat | None = Field(
        None, description="Highest score among the single weights that went; null where whole units went, e.g. 0.012."
    )

    @property
    def sparsity_percent(self) -> float:
        """Share that went."""
        return 100 * self.removed / self.weights if self.weights else 0.0


class PrunedSpace(ApiModel):
    """Units of one kind in one place: channels of a convolution, heads of an attention layer, blocks of a stack."""

    name: str = Field(description="Path of what writes the units, e.g. text.network.encoder.layer.0.attention.self.")
    kind: PruneUnit = Field(description="What the units are, e.g. Heads.")
    units: Count = Field(description="How many there were, e.g. 12.")
    removed: list[Count] = Field(description="Which went, counted from 0 before the step, e.g. [3, 7].")
    scores: list[FiniteFloat] = Field(
        description="Each unit's score at the last round that it saw; the mean of a round is 1, e.g. [0.2, 1.4]."
    )


class PruneRound(ApiModel):
    """How far one round went."""

    sparsity_percent: Percentage = Field(description="Share of weights or units gone after it, e.g. 15.")
    parameters: Count = Field(description="Parameters after it, e.g. 18200000.")


class PruneRecord(ApiModel):
    """What a pruning step did."""

    version: Literal[1] = Field(1, description="Version of this format, 1.")
    step: str = Field(description="Name of the step, e.g. prune.")
    method: Criterion = Field(description="How weights were ranked, e.g. Taylor.")
    granularity: Granularity = Field(description="What was removed, e.g. Structured.")
    scope: PruneScope = Field(description="Within what was ranked, e.g. Layer.")
    rounds: list[PruneRound] = Field(description="The rounds in their order.")
    layers: list[PrunedLayer] = Field(description="Weights that lost entries, in the model's order.")
    spaces: list[PrunedSpace] = Field(default_factory=list, description="Units by place, for structured pruning.")
    kept: dict[str, str] = Field(default_factory=dict, description="What stayed whole, and why, by path.")
    parameters_before: Count = Field(description="Parameters before, e.g. 22700000.")
    parameters_after: Count = Field(description="Parameters after, e.g. 17900000.")
    zeros_after: Count = Field(0, description="Of these, weights held at zero, e.g. 5300000.")
    macs_before: Count = Field(description="Multiply-accumulates for one sample before, e.g. 250000000.")
    macs_after: Count = Field(description="Multiply-accumulates for one sample after, e.g. 190000000.")
    weights_before: str = Field(description="Hash of all weights before; `undo` compares with it.")
    weights_after: str = Field(description="Hash of all weights that the step left; `undo` starts from these.")
    architecture_before: FreeForm = Field(description="Record from which the model before is rebuilt.")
    renamed: dict[str, str] = Field(
        default_factory=dict, description="Tensors whose names changed with the layers before them: before -> after."
    )
    undo: UndoData = Field(description="What prune.safetensors holds, e.g. Removed.")

    @property
    def sparsity_percent(self) -> float:
        """Share of all weights of the touched layers that went."""
        weights = sum(layer.weights for layer in self.layers)
        return 100 * sum(layer.removed for layer in self.layers) / weights if weights else 0.0

    def to_json(self) -> str:
        """The record as prune.json holds it."""
        return self.model_dump_json(by_alias=True, indent=1)
