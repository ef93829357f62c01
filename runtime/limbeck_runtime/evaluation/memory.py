"""Peak memory of inference: the weights as they are served, and what one call needs on top.

Not the process, whose size depends on what else it has loaded, and on how its allocator feels; the figure is the same
in every run. Left out on purpose: what a kernel needs for itself while it runs. A profiler would see that, and prints
to the terminal.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from limbeck_runtime.quantization.serving import serving_bytes

Inputs = Mapping[str, torch.Tensor]


def peak_memory_bytes(module: nn.Module, inputs: Inputs) -> int:
    """Weights as served, and the largest sum of tensors of one call; on a GPU its allocator's own peak."""
    with torch.inference_mode():
        module(inputs)  # kernels make what they keep of the weights now
        if next(iter(inputs.values())).device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            module(inputs)
            return int(torch.cuda.max_memory_allocated())
        return serving_bytes(module) + most_alive(module, inputs)


def most_alive(module: nn.Module, inputs: Inputs) -> int:
    """The largest sum of bytes of the tensors that one call makes and that are alive at once."""
    there_before = [*module.parameters(), *module.buffers(), *inputs.values()]
    with _LiveTensors(there_before) as live:
        outputs = module(inputs)
    del outputs
    most: int = live.most
    return most


class _LiveTensors(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the memory of the tensors that operations return, and takes it off when nothing holds them any more."""

    def __init__(self, there_before: Iterable[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most = 0
        self._held = 0
        self._holders: dict[int, int] = {}
        self._before = {tensor.untyped_storage().data_ptr() for tensor in there_before}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.layout is torch.strided:
                self._hold(tensor)
        return result

    def _hold(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        address, num_bytes = storage.data_ptr(), storage.nbytes()
        if address in self._before:  # a view of a weight
            return
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
