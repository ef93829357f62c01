"""What a model costs: parameters, multiply-accumulates, memory, latency.

Operations are counted as the model runs, integer kernels too: quantization changes their bits, not their number.
Left out on purpose: bytes on disk, which the artefact's writer knows (limbeck_runtime.export).
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from limbeck.api.report import LatencyFigure
from limbeck_runtime.evaluation.latency import measure_latency, take_samples
from limbeck_runtime.models.bundle import ModelBundle
from limbeck_runtime.quantization.operations import FLOP_FORMULAS
from limbeck_runtime.quantization.serving import serving_bytes

Inputs = Mapping[str, torch.Tensor]

MEMORY_MEANING = "weights as served, and the largest sum of tensors alive at once in a call"


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
    return round(total / 2 / num_samples)


def peak_memory_bytes(module: nn.Module, inputs: Inputs) -> int:
    """Weights as served, and the largest sum of tensors that were alive at once in one call.

    Not the process, whose size depends on what else it has loaded. On a GPU the allocator's own peak.
    """
    resident = serving_bytes(module)
    with torch.inference_mode():
        module(inputs)  # kernels make their copies of the weights now
        if next(iter(inputs.values())).device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            module(inputs)
            return int(torch.cuda.max_memory_allocated())
        return resident + _most_allocated(module, inputs)


def _most_allocated(module: nn.Module, inputs: Inputs) -> int:
    with _LiveTensors() as live:
        outputs = module(inputs)
    del outputs
    return live.most


class _LiveTensors(TorchDispatchMode):
    """Adds up the memory of the tensors that operations return, and takes it off when nothing holds them any more.

    What a kernel needs for itself while it runs is not seen; a profiler would see it, and print to the terminal.
    """

    def __init__(self) -> None:
        super().__init__()
        self.most = 0
        self._held = 0
        self._holders: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.layout is torch.strided:
                self._hold(tensor)
        return result

    def _hold(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        address, num_bytes = storage.data_ptr(), storage.nbytes()
        if address not in self._holders:
            self._holders[address] = 0
            self._held += num_bytes
            self.most = max(self.most, self._held)
        self._holders[address] += 1
        weakref.finalize(tensor, self._let_go, address, num_bytes)

    def _let_go(self, address: int, num_bytes: int) -> None:
        self._holders[address] -= 1
        if not self._holders[address]:
            del self._holders[address]
            self._held -= num_bytes
