"""The shape that all steps share, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

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
    """The model that a step leaves, and files that are kept beside it. The bundle that went in stays as it was."""

    bundle: ModelBundle
    files: Mapping[str, bytes] = field(default_factory=dict)
