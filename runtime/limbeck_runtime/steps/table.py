"""Which function does which method."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from limbeck_runtime.context import Context
from limbeck_runtime.steps.distil import distil
from limbeck_runtime.steps.finetune import finetune
from limbeck_runtime.steps.low_rank import low_rank
from limbeck_runtime.steps.prune import prune
from limbeck_runtime.steps.quantize import quantize
from limbeck_runtime.steps.step import StepInputs, StepResult

StepFunction = Callable[[Any, StepInputs, Context], StepResult]

STEPS: dict[str, StepFunction] = {
    "distil": distil,
    "finetune": finetune,
    "prune": prune,
    "lowRank": low_rank,
    "quantize": quantize,
}
