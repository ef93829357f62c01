"""What a model costs: parameters, multiply-accumulates, memory, latency.

Operations are counted as the model runs, integer kernels too: quantization changes their bits, not their number.
Left out on purpose: bytes on disk, which the artefact's writer knows (limbeck_runtime.export).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from limbeck.api.report import LatencyFigure
from limbeck_runtime.evaluation.latency import measure_latency, take_samples
from limbeck_runtime.evaluation.memory import peak_memory_bytes
from limbeck_runtime.models.bundle import ModelBundle
from limbeck_runtime.quantization.operations import FLOP_FORMULAS

Inputs = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Cost:
    """Figures of one model on this machine. `macs` are of one sample."""

    parameters: int
    macs: int
    peak_memory_bytes: int
    latency: Sequence[LatencyFigure]


def measure_cost(bundle: ModelBundle, inputs: Inputs, batch_sizes: Sequence[int], num_calls: int) -> Cost:
    """Cost of calls with the first samples of `inputs`, a batch of the validation data; memory at the largest size."""
    module = bundle.module
    was_training = module.training
    module.eval()
    try:
        largest = take_samples(inputs, max(batch_sizes))
        return Cost(
            parameters=bundle.num_parameters(),
            macs=count_macs(module, largest),
            peak_memory_bytes=peak_memory_bytes(module, largest),
            latency=measure_latency(module, inputs, batch_sizes, num_calls),
        )
    finally:
        module.train(was_training)


def count_macs(module: nn.Module, inputs: Inputs) -> int:
    """Multiply-accumulates for one sample: half the floating-point operations of the batch over its samples."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=FLOP_FORMULAS) as counter:
        module(inputs)
    num_samples = len(next(iter(inputs.values())))
    total: int = counter.get_total_flops()
    macs: int = round(total / 2 / num_samples)
    return macs
