"""Training samples for steps that look at data without training on it.

Left out on purpose: augmentation; the samples are as they are.
"""

from __future__ import annotations

from collections.abc import Iterator

from limbeck_runtime.context import Context
from limbeck_runtime.data.batch import Batch, Labels
from limbeck_runtime.data.loader import BatchLoader
from limbeck_runtime.steps.step import StepInputs
from limbeck_runtime.student.sampler import epoch_order


def calibration_batches(inputs: StepInputs, context: Context, count: int, size: int, labels: Labels) -> list[Batch]:
    """`sample_batches` in a list, telling how far they are."""
    total = -(-min(count, inputs.job.train.num_samples) // size)
    batches = []
    for batch in sample_batches(inputs, context, count, size, labels):
        context.check_stop()
        batches.append(batch)
        context.events.emit(
            "step_progress", step=inputs.name, phase="calibrate", done=len(batches), total=total, unit="batches"
        )
    return batches


def sample_batches(inputs: StepInputs, context: Context, count: int, size: int, labels: Labels) -> Iterator[Batch]:
    """At most `count` samples in batches of `size`; which ones follows from the job's seed."""
    index = inputs.job.train
    order = epoch_order(context.spec.seed, 0, [int(number) for number in index.shard_sizes], len(index.shards))
    chosen = order[:count]
    with BatchLoader(index, inputs.bundle.preprocessing, labels=labels) as loader:
        for start in range(0, len(chosen), size):
            yield loader.batch(chosen[start : start + size])
