"""Int8 layers: int8 weights and float32 scales in plain tensors, served by integer kernels where there are some.

State: `weight_int8`, `weight_scale` (one for each output channel or row) and `bias`. The calibrated numbers of a layer
belong to the architecture record, not to the state:
  Dynamic   Linear: a zero point for all rows, a scale for each row, so that a sample's answer does not depend on its
            batch. Conv: scale and zero point follow from each call's whole input, as its padding wants them.
  Static    one scale and one zero point, calibrated.
  None      weights only. They are turned to float at the first call and kept: the file is four times smaller, the
            speed is that of float, and memory is not saved.
Left out on purpose: training. Gradients do not flow through these layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import nn
from torch.nn import functional

from limbeck.api.v1alpha1.compression import Activations
from limbeck_runtime.quantization import kernels
from limbeck_runtime.quantization.integer_ops import ConvGeometry, convolve, int8_conv, int8_linear
from limbeck_runtime.quantization.rounding import INPUT_MAX, dequantize_weight


@dataclass(frozen=True)
class InputRounding:
    """How a layer's inputs become integers. `scale` counts for Static only, `zero_point` for Linear and Static.

    The output's range is that of a Static convolution, for exported graphs in which integers go from one to the next.
    A linear layer multiplies the inputs of `float_channels` in float (see calibration.py).
    """

    activations: Activations
    scale: float = 1.0
    zero_point: int = 128
    output_scale: float = 1.0
    output_zero_point: int = 128
    float_channels: tuple[int, ...] = ()


WEIGHT_ONLY = InputRounding(Activations.NONE)


class Int8Layer(nn.Module):
    """What all int8 layers share: the weight, and what a kernel has made of it for itself."""

    weight_int8: nn.Parameter
    weight_scale: torch.Tensor

    def __init__(self, weight_int8: nn.Parameter, weight_scale: torch.Tensor) -> None:
        super().__init__()
        self.weight_int8 = weight_int8
        self.register_buffer("weight_scale", weight_scale)
        self._packed: Any = None

    @property
    def weight(self) -> torch.Tensor:
        """The float weight that the integers stand for, computed at each access.

        For code that asks a layer for its weight's type, or multiplies with it by itself.
        """
        return dequantize_weight(self.weight_int8, self.weight_scale)

    def packed(self) -> Any:
        """What the kernel wants beside the stored tensors, or instead of them; made at the first call."""
        if self._packed is None:
            # It outlives this call, which may be in inference mode while the next one is not.
            with torch.inference_mode(False), torch.no_grad():
                self._packed = self._pack()
        return self._packed

    def _pack(self) -> Any:
        raise NotImplementedError

    def _load_from_state_dict(self, *arguments: Any, **options: Any) -> None:
        self._packed = None
        super()._load_from_state_dict(*arguments, **options)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        self._packed = None
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_packed": None}  # a copy packs for itself


class Int8Linear(Int8Layer):
    """(..., K) float32 to (..., N) float32."""

    bias: nn.Parameter | None

    def __init__(
        self,
        weight_int8_NK: nn.Parameter,
        weight_scale_N: torch.Tensor,
        bias_N: nn.Parameter | None,
        rounding: InputRounding,
    ) -> None:
        super().__init__(weight_int8_NK, weight_scale_N)
        self.out_features, self.in_features = weight_int8_NK.shape
        self.bias = bias_N
        self.rounding = rounding

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kind, zero_point = self.rounding.activations, self.rounding.zero_point
        if _records_a_graph() or (kind is not Activations.NONE and not _integer_kernels(x)):
            output: torch.Tensor = int8_linear(
                x,
                self.weight_int8,
                self.weight_scale,
                self.bias,
                kind.value,
                self.rounding.scale,
                zero_point,
                self.rounding.float_channels,
            )
            return output
        if kind is Activations.NONE:
            return functional.linear(x, self.packed(), self.bias)
        if kind is Activations.STATIC:
            return kernels.static_linear(x, self.packed(), self.rounding.scale)
        return kernels.dynamic_linear(x, self.packed(), self.bias, zero_point)

    def _pack(self) -> Any:
        if self.rounding.activations is Activations.NONE:
            return self.weight.detach()
        if self.rounding.activations is Activations.STATIC:
            bias_N = None if self.bias is None else self.bias.detach()
            return self._constants(self.weight_scale * self.rounding.scale, bias_N)
        # With a scale for each row the bias comes after it.
        return self._constants(self.weight_scale / (INPUT_MAX - self.rounding.zero_point), None)

    def _constants(self, scale_N: torch.Tensor, bias_N: torch.Tensor | None) -> kernels.LinearConstants:
        float_part = None
        if self.rounding.float_channels:
            float_part = kernels.float_part(self.weight.detach(), self.rounding.float_channels)
        return kernels.linear_constants(
            self.weight_int8.detach(), scale_N, bias_N, self.rounding.zero_point, float_part
        )

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {self.rounding}"


class Int8Conv(Int8Layer):
    """(B, I, ...) float32 to (B, O, ...) float32, in one, two or three dimensions."""

    bias: nn.Parameter | None

    def __init__(
        self,
        weight_int8: nn.Parameter,
        weight_scale_O: torch.Tensor,
        bias_O: nn.Parameter | None,
        rounding: InputRounding,
        geometry: ConvGeometry,
    ) -> None:
        super().__init__(weight_int8, weight_scale_O)
        self.bias = bias_O
        self.rounding = rounding
        self.geometry = geometry

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kind = self.rounding.activations
        if _records_a_graph() or (kind is not Activations.NONE and not _integer_kernels(x)):
            output: torch.Tensor = int8_conv(
                x,
                self.weight_int8,
                self.weight_scale,
                self.bias,
                *self.geometry.as_arguments(),
                kind.value,
                self.rounding.scale,
                self.rounding.zero_point,
                self.rounding.output_scale,
                self.rounding.output_zero_point,
            )
            return output
        if kind is Activations.NONE:
            return convolve(x, self.packed(), self.bias, self.geometry)
        if kind is Activations.STATIC:
            return kernels.static_conv(x, self.packed(), self.rounding.scale, self.rounding.zero_point)
        return kernels.dynamic_conv(x, self.packed())

    def _pack(self) -> Any:
        if self.rounding.activations is Activations.NONE:
            return self.weight.detach()
        bias_O = None if self.bias is None else self.bias.detach()
        return kernels.conv_constants(self.weight_int8.detach(), self.weight_scale, bias_O, self.geometry)

    def extra_repr(self) -> str:
        return f"{tuple(self.weight_int8.shape)}, {self.geometry}, {self.rounding}"


class Int8Embedding(Int8Layer):
    """Token ids to (..., D) float32; only the rows that are looked up become float."""

    def __init__(self, weight_int8_VD: nn.Parameter, weight_scale_V: torch.Tensor) -> None:
        super().__init__(weight_int8_VD, weight_scale_V)
        self.num_embeddings, self.embedding_dim = weight_int8_VD.shape

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        rows = functional.embedding(ids, self.weight_int8).to(self.weight_scale.dtype)
        return rows * functional.embedding(ids, self.weight_scale.unsqueeze(1))

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}"


def _records_a_graph() -> bool:
    return torch.compiler.is_compiling()  # torch.export counts as compiling


def _integer_kernels(x: torch.Tensor) -> bool:
    return x.device.type == "cpu" and kernels.kernel_support().integer
