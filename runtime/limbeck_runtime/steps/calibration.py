"""Training samples for steps that look at data without training on it.

Left out on purpose: augmentation; the samples are as they are.
"""

from __future__ import annotations

from limbeck_runtime.context import Context
from limbeck_runtime.data.batch import Batch, Labels
from limbeck_runtime.data.loader import BatchLoader
from limbeck_runtime.steps.step import StepInputs
from limbeck_runtime.student.sampler import epoch_order


def calibration_batches(inputs: StepInputs, context: Context, count: int, size: int, labels: Labels) -> list[Batch]:
    """At most `count` samples in batches of `size`; which ones follows from the job's seed."""
    index = inputs.job.train
    order = epoch_order(context.spec.seed, 0, [int(number) for number in index.shard_sizes], len(index.shards))
    chosen = order[:count]
    batches = []
    with BatchLoader(index, inputs.bundle.preprocessing, labels=labels) as loader:
        for start in range(0, len(chosen), size):
            context.check_stop()
            batches.append(loader.batch(chosen[start : start + size]))
            context.events.emit(
                "step_progress", step=inputs.name, phase="calibrate", done=len(batches),
                total=-(-len(chosen) // size), unit="batches",
            )  # fmt: skip
    return batches
