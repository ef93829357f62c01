"""The shape that all steps share, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass

from limbeck_runtime.inputs import Inputs
from limbeck_runtime.models.bundle import ModelBundle


@dataclass(frozen=True)
class StepInputs:
    """What a step works on: the model as the step before left it, and what the job started from.

    `fingerprint` covers all that goes into the step; its checkpoints carry it.
    """

    name: str
    path: str
    bundle: ModelBundle
    job: Inputs
    fingerprint: str


@dataclass(frozen=True)
class StepResult:
    """The model that a step leaves. The bundle that went in stays as it was."""

    bundle: ModelBundle
