"""What a model holds in memory while it serves."""

from __future__ import annotations

from torch import nn

from limbeck.api.v1alpha1.compression import Activations
from limbeck_runtime.quantization.kernels import kernel_support
from limbeck_runtime.quantization.layers import Int8Conv, Int8Layer, Int8Linear

_FLOAT_BYTES = 4


def serving_bytes(module: nn.Module) -> int:
    """Bytes of the state, shared memory counted once, and of the copies that kernels keep of int8 weights."""
    seen: dict[int, int] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        seen[tensor.data_ptr()] = max(seen.get(tensor.data_ptr(), 0), tensor.numel() * tensor.element_size())
    return sum(seen.values()) + sum(_copy_bytes(layer) for layer in module.modules() if isinstance(layer, Int8Layer))


def _copy_bytes(layer: Int8Layer) -> int:
    if not isinstance(layer, Int8Linear | Int8Conv):
        return 0
    if layer.rounding.activations is Activations.NONE:
        return layer.weight_int8.numel() * _FLOAT_BYTES
    return layer.weight_int8.numel() if isinstance(layer, Int8Conv) and kernel_support().integer else 0
