"""How int8 layers are said in ONNX, in standard operations, chosen by what onnxruntime (1.32, CPU) does with them.

Linear   rows or the whole are rounded by QuantizeLinear and multiplied by MatMulInteger: 2.4 to 4 times faster than
         float. Q/DQ around a MatMul is as slow as float, because the weight is turned to float at each call.
Conv     Static: Q/DQ around Conv, its output too, which becomes QLinearConv: 3 times faster. Dynamic: int8 weights
         and float inputs, for ConvInteger is 5 times slower than float.
Weights only (None, embeddings): Cast and Mul, which onnxruntime does once, at loading. DequantizeLinear is done at
         each call.
Left out on purpose: operations of onnxruntime's own domain, which other runtimes do not know.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from limbeck.api.v1alpha1.compression import Activations
from limbeck_runtime.quantization.rounding import INPUT_MAX, TINY

OPSET = 20


def translations() -> dict[Any, Callable[..., Any]]:
    """The table that torch.onnx.export takes, by operation."""
    import torch

    from limbeck_runtime.quantization import integer_ops  # defines the operations

    assert integer_ops
    return {
        torch.ops.limbeck.int8_linear.default: _linear,
        torch.ops.limbeck.int8_conv.default: _conv,
        torch.ops.aten._is_all_true.default: _is_all_true,
    }


def _linear(
    x: Any,
    weight: Any,
    scale: Any,
    bias: Any,
    activations: str,
    input_scale: float,
    zero_point: int,
    float_channels: Sequence[int],
) -> Any:
    from onnxscript import opset20 as op

    weight_KN = op.Transpose(weight, perm=[1, 0])
    if activations == Activations.NONE:
        output = op.MatMul(x, op.Mul(op.Cast(weight_KN, to=_FLOAT), scale))
        return output if bias is None else op.Add(output, bias)
    added = bias
    if float_channels:
        channels = op.Constant(value_ints=list(float_channels))
        weight_FN = op.Mul(op.Cast(op.Gather(weight_KN, channels, axis=0), to=_FLOAT), scale)
        in_float = op.MatMul(op.Gather(x, channels, axis=-1), weight_FN)
        added = in_float if bias is None else op.Add(in_float, bias)
        x = op.Mul(x, _zeros_at(weight.shape[1], float_channels))
    zero = _uint8(zero_point)
    rows = None if activations == Activations.STATIC else _row_scales(x, zero_point)
    step = op.Constant(value_float=input_scale if rows is None else 1.0)
    integers = op.QuantizeLinear(x if rows is None else op.Div(x, rows), step, zero)
    sums = op.Cast(op.MatMulInteger(integers, weight_KN, zero), to=_FLOAT)
    output = op.Mul(sums, op.Mul(scale, step)) if rows is None else op.Mul(op.Mul(sums, scale), rows)
    return output if added is None else op.Add(output, added)


def _zeros_at(num_channels: int, channels: Sequence[int]) -> Any:
    import numpy as np
    import onnx
    from onnxscript import opset20 as op

    others = np.ones(num_channels, np.float32)
    others[list(channels)] = 0.0
    return op.Constant(value=onnx.numpy_helper.from_array(others, "others"))


def _row_scales(x: Any, zero_point: int) -> Any:
    from onnxscript import opset20 as op

    last = op.Constant(value_ints=[-1])
    high = op.Mul(op.ReduceMax(x, last, keepdims=1), op.Constant(value_float=1 / (INPUT_MAX - zero_point)))
    low = op.Mul(op.ReduceMin(x, last, keepdims=1), op.Constant(value_float=-1 / zero_point))
    return op.Max(high, low, op.Constant(value_float=TINY))


def _conv(
    x: Any,
    weight: Any,
    scale: Any,
    bias: Any,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    activations: str,
    input_scale: float,
    zero_point: int,
    output_scale: float,
    output_zero_point: int,
) -> Any:
    from onnxscript import opset20 as op

    settings = {
        "strides": list(stride),
        "pads": [*padding, *padding],
        "dilations": list(dilation),
        "group": groups,
    }
    inputs = () if bias is None else (bias,)
    if activations != Activations.STATIC:
        channels = op.Constant(value_ints=[-1, *[1] * (len(stride) + 1)])
        weight_float = op.Mul(op.Cast(weight, to=_FLOAT), op.Reshape(scale, channels))
        return op.Conv(x, weight_float, *inputs, **settings)
    rounded = _rounded(x, input_scale, zero_point)
    weight_float = op.DequantizeLinear(weight, scale, axis=0)
    return _rounded(op.Conv(rounded, weight_float, *inputs, **settings), output_scale, output_zero_point)


def _rounded(x: Any, scale: float, zero_point: int) -> Any:
    from onnxscript import opset20 as op

    step, zero = op.Constant(value_float=scale), _uint8(zero_point)
    return op.DequantizeLinear(op.QuantizeLinear(x, step, zero), step, zero)


def _is_all_true(x: Any) -> Any:
    """What models check of their own inputs; torch's exporter has no form for it."""
    from onnxscript import opset20 as op

    return op.Cast(op.ReduceMin(op.Cast(x, to=_FLOAT), keepdims=0), to=_BOOL)


def _uint8(value: int) -> Any:
    import onnx
    from onnxscript import opset20 as op

    return op.Constant(value=onnx.helper.make_tensor("zero_point", onnx.TensorProto.UINT8, [], [value]))


_FLOAT, _BOOL = 1, 9  # of onnx.TensorProto
