"""Step quantize: weights, and activations where asked, in fewer bits. Calibrates on training samples.

Left out: how (quantization/), and training with rounding in the loop, which is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from limbeck.api.v1alpha1.compression import Activations, Quantize
from limbeck_runtime import quantization
from limbeck_runtime.context import Context
from limbeck_runtime.data.batch import Labels
from limbeck_runtime.data.loader import BatchLoader
from limbeck_runtime.errors import InvalidSpecError
from limbeck_runtime.quantization import QuantizationError
from limbeck_runtime.steps.step import StepInputs, StepResult
from limbeck_runtime.student.sampler import epoch_order

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

    batches = [] if settings.activations is Activations.NONE else _calibration(settings, inputs, context)
    try:
        bundle, record = quantization.quantize(inputs.bundle, settings, batches, progress=tell)
    except QuantizationError as error:
        raise InvalidSpecError(f"`{inputs.path}`: {error}") from error
    for note in record.notes:
        context.warn(f"{inputs.name}: {note}")
    return StepResult(bundle)


def _calibration(settings: Quantize, inputs: StepInputs, context: Context) -> list[Mapping[str, Tensor]]:
    """Training samples as they are, without augmentation; which ones follows from the job's seed."""
    index = inputs.job.train
    order = epoch_order(context.spec.seed, 0, [int(size) for size in index.shard_sizes], len(index.shards))
    chosen = order[: settings.calibration_samples]
    with BatchLoader(index, inputs.bundle.preprocessing, labels=Labels.NONE) as loader:
        return [
            loader.batch(chosen[start : start + _BATCH_SIZE]).inputs for start in range(0, len(chosen), _BATCH_SIZE)
        ]
