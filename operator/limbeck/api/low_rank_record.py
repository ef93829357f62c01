"""The record of a low-rank step: which layers became two thin ones, of which rank, and which stayed whole and why.

It lies as low_rank.json beside the step's result.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field, FiniteFloat

from limbeck.api.fields import ApiModel

LOW_RANK_FILE: Final = "low_rank.json"

Count = Annotated[int, Field(ge=0)]


class FactorisedLayer(ApiModel):
    """One layer that became two. Its bias stays and does not count."""

    name: str = Field(description="Its path, e.g. text.network.encoder.layer.0.output.dense.")
    rank: Count = Field(description="Width between its factors, e.g. 96.")
    full_rank: Count = Field(description="The smaller side of its matrix, e.g. 384.")
    energy_percent: Annotated[FiniteFloat, Field(ge=0, le=100)] = Field(
        description="Share of the squared singular values that is kept, weighed by the inputs where asked, e.g. 97.5."
    )
    parameters_before: Count = Field(description="Weights before, e.g. 589824.")
    parameters_after: Count = Field(description="Weights of both factors, e.g. 184320.")


class LowRankRecord(ApiModel):
    """What a low-rank step did."""

    version: Literal[1] = Field(1, description="Version of this format, 1.")
    step: str = Field(description="Name of the step, e.g. factorise.")
    data_aware: bool = Field(description="Whether errors were weighed by the layers' inputs, e.g. true.")
    layers: list[FactorisedLayer] = Field(description="Layers that were factorised, in the model's order.")
    kept: dict[str, str] = Field(default_factory=dict, description="Layers that stayed whole, and why, by path.")
    zeros_lost: list[str] = Field(
        default_factory=list,
        description="Weights whose zeros from pruning went with the factorising, e.g. [fc.weight].",
    )
    parameters_before: Count = Field(description="Parameters of the model before, e.g. 22700000.")
    parameters_after: Count = Field(description="Parameters of the model after, e.g. 14100000.")

    def to_json(self) -> str:
        """The record as low_rank.json holds it."""
        return self.model_dump_json(by_alias=True, indent=1)
