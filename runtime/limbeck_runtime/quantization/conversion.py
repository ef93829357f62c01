"""Turns chosen layers into int8 ones, from float weights or, when a record is replayed, as empty shells to be filled.

Left out on purpose: deciding (quantizing.py makes the plans).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import nn

from limbeck.api.v1alpha1.compression import Activations
from limbeck_runtime.quantization.errors import QuantizationError
from limbeck_runtime.quantization.integer_ops import ConvGeometry
from limbeck_runtime.quantization.layers import WEIGHT_ONLY, InputRounding, Int8Conv, Int8Embedding, Int8Linear
from limbeck_runtime.quantization.rounding import channel_scales, quantize_weight
from limbeck_runtime.quantization.selection import LayerKind, kind_of


@dataclass(frozen=True)
class LayerPlan:
    """What one layer becomes."""

    path: str
    kind: LayerKind
    rounding: InputRounding = WEIGHT_ONLY

    def to_record(self) -> dict[str, Any]:
        """Plain JSON, for the architecture record."""
        return {
            "path": self.path,
            "layer": self.kind.value,
            "activations": self.rounding.activations.value,
            "input_scale": self.rounding.scale,
            "zero_point": self.rounding.zero_point,
            "output_scale": self.rounding.output_scale,
            "output_zero_point": self.rounding.output_zero_point,
            "float_channels": list(self.rounding.float_channels),
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """Inverse of `to_record`; raises KeyError and ValueError."""
        rounding = InputRounding(
            Activations(record["activations"]),
            float(record["input_scale"]),
            int(record["zero_point"]),
            float(record["output_scale"]),
            int(record["output_zero_point"]),
            tuple(int(channel) for channel in record["float_channels"]),
        )
        return cls(record["path"], LayerKind(record["layer"]), rounding)


@dataclass
class _Shared:
    """The int8 form of each float weight, by identity, so that tied layers stay tied."""

    weights: dict[int, tuple[nn.Parameter, torch.Tensor]]

    def int8(self, parameter: nn.Parameter, weight_OR: torch.Tensor) -> tuple[nn.Parameter, torch.Tensor]:
        if id(parameter) not in self.weights:
            scale_O = channel_scales(weight_OR)
            integers = nn.Parameter(quantize_weight(weight_OR, scale_O).contiguous(), requires_grad=False)
            self.weights[id(parameter)] = (integers, scale_O)
        return self.weights[id(parameter)]


def convert(module: nn.Module, plans: Sequence[LayerPlan]) -> nn.Module:
    """`module` itself with the planned layers replaced.

    Raises QuantizationError for a path that has no layer of the planned kind.
    """
    shared = _Shared({})
    replaced: dict[int, nn.Module] = {}
    keep_alive: list[nn.Module] = []  # an id is only unique while its object lives
    for plan in plans:
        try:
            layer = module.get_submodule(plan.path)
        except AttributeError as error:
            raise QuantizationError(f"a quantized layer must exist in its model, got {plan.path!r}") from error
        if kind_of(layer) is not plan.kind:
            raise QuantizationError(f"{plan.path} must be a {plan.kind.value} layer, is a {type(layer).__name__}")
        keep_alive.append(layer)
        replaced[id(layer)] = _int8_layer(layer, plan, shared)
    for path, layer in list(module.named_modules(remove_duplicate=False)):
        if id(layer) in replaced:
            module.set_submodule(path, replaced[id(layer)].train(layer.training))
    return module


def _int8_layer(layer: Any, plan: LayerPlan, shared: _Shared) -> nn.Module:
    if plan.kind is LayerKind.EMBEDDING:
        return Int8Embedding(*shared.int8(layer.weight, layer.weight))
    if plan.kind is LayerKind.CONV:
        geometry = ConvGeometry(layer.stride, layer.padding, layer.dilation, layer.groups)
        return Int8Conv(*shared.int8(layer.weight, layer.weight), _frozen(layer.bias), plan.rounding, geometry)
    weight_NK = layer.weight if isinstance(layer, nn.Linear) else layer.weight.t()
    return Int8Linear(*shared.int8(layer.weight, weight_NK), _frozen(layer.bias), plan.rounding)


def _frozen(bias: nn.Parameter | None) -> nn.Parameter | None:
    return None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)
