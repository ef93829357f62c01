"""Step quantize: weights, and activations where asked, in fewer bits. Calibrates on training samples.

Left out: how (quantization/), and training with rounding in the loop, which is refused by name.
"""

from __future__ import annotations

from limbeck.api.v1alpha1.compression import Activations, Quantize
from limbeck_runtime import quantization
from limbeck_runtime.context import Context
from limbeck_runtime.data.batch import Labels
from limbeck_runtime.errors import InvalidSpecError
from limbeck_runtime.quantization import QuantizationError
from limbeck_runtime.steps.calibration import sample_batches
from limbeck_runtime.steps.step import StepInputs, StepResult

_BATCH_SIZE = 64


def quantize(settings: Quantize, inputs: StepInputs, context: Context) -> StepResult:
    """A quantized copy of the model.

    Raises:
        InvalidSpecError: the scheme cannot do what the settings ask of this model.
    """

    def tell(done: int, total: int) -> None:
        context.check_stop()
        context.events.emit(
            "step_progress", step=inputs.name, phase="calibrate", done=done, total=total, unit="batches"
        )

    batches = []
    if settings.activations is not Activations.NONE:
        samples = sample_batches(inputs, context, settings.calibration_samples, _BATCH_SIZE, Labels.NONE)
        batches = [batch.inputs for batch in samples]
    try:
        bundle, record = quantization.quantize(inputs.bundle, settings, batches, progress=tell)
    except QuantizationError as error:
        raise InvalidSpecError(f"`{inputs.path}`: {error}") from error
    for note in record.notes:
        context.warn(f"{inputs.name}: {note}")
    return StepResult(bundle)
