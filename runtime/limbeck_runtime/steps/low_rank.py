"""Step lowRank: matrices become products of two thin ones, weighed by what the layers read on training samples.

Left out: how (lowrank/).
"""

from __future__ import annotations

from limbeck.api.low_rank_record import LOW_RANK_FILE
from limbeck.api.v1alpha1.compression import LowRank
from limbeck_runtime.context import Context
from limbeck_runtime.data.batch import Labels
from limbeck_runtime.errors import InvalidSpecError
from limbeck_runtime.lowrank.errors import LowRankError
from limbeck_runtime.lowrank.factorising import factorise
from limbeck_runtime.steps.calibration import calibration_batches
from limbeck_runtime.steps.step import StepInputs, StepResult

_BATCH_SIZE = 64


def low_rank(settings: LowRank, inputs: StepInputs, context: Context) -> StepResult:
    """A factorised copy of the model, with its record beside it.

    Raises:
        InvalidSpecError: the model cannot be factorised as the settings ask.
    """

    def tell(done: int, total: int) -> None:
        context.check_stop()
        context.events.emit("step_progress", step=inputs.name, phase="weigh", done=done, total=total, unit="batches")

    batches = []
    if settings.data_aware:
        batches = calibration_batches(inputs, context, settings.calibration_samples, _BATCH_SIZE, Labels.NONE)
    try:
        made = factorise(inputs.bundle, settings, [batch.inputs for batch in batches], name=inputs.name, progress=tell)
    except LowRankError as error:
        raise InvalidSpecError(f"`{inputs.path}`: {error}") from error
    lost = made.record.zeros_lost
    if lost:
        context.warn(
            f"{inputs.name}: the zeros that pruning left in {', '.join(lost)[:400]} are lost in the factors; prune "
            "after the step, or put these layers on `lowRank.ignore`"
        )
    return StepResult(made.bundle, {LOW_RANK_FILE: made.record.to_json().encode()})
