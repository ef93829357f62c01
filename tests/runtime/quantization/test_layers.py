"""Int8 layers against naive float64 formulas, the float operation they stand for, and torchao."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from limbeck.api.v1alpha1.compression import Activations
from limbeck_runtime.quantization.conversion import LayerPlan, convert
from limbeck_runtime.quantization.kernels import kernel_support
from limbeck_runtime.quantization.layers import WEIGHT_ONLY, InputRounding
from limbeck_runtime.quantization.selection import LayerKind

NONE, DYNAMIC, STATIC = Activations.NONE, Activations.DYNAMIC, Activations.STATIC


def int8(layer: nn.Module, kind: LayerKind, rounding: InputRounding) -> Any:
    return convert(nn.Sequential(copy.deepcopy(layer)), [LayerPlan("0", kind, rounding)])[0]


def naive_weight(weight: torch.Tensor) -> torch.Tensor:
    """Per channel to the nearest of 255 levels and back, in float64."""
    wide = weight.detach().double()
    step = (wide.abs().flatten(1).amax(1) / 127).reshape(-1, *[1] * (wide.ndim - 1))
    return (wide / step).round() * step


def naive_rows(x: torch.Tensor, zero_point: int) -> torch.Tensor:
    wide = x.double()
    step = torch.maximum(wide.amax(-1, keepdim=True) / (255 - zero_point), wide.amin(-1, keepdim=True) / -zero_point)
    return ((wide / step).round() + zero_point).clamp(0, 255).sub(zero_point) * step


def naive_range(x: torch.Tensor, scale: float, zero_point: int) -> torch.Tensor:
    return ((x.double() / scale).round() + zero_point).clamp(0, 255).sub(zero_point) * scale


@pytest.fixture(params=["kernels", "graph"])
def call(request: pytest.FixtureRequest) -> Any:
    """Through the integer kernels, and as the operation that graphs hold."""
    if request.param == "kernels":
        if not kernel_support().integer:
            pytest.skip(kernel_support().detail)
        return lambda layer, x: layer(x)

    def as_graph(layer: Any, x: torch.Tensor) -> torch.Tensor:
        program = torch.export.export(layer, (x,))
        assert any("limbeck" in str(node.target) for node in program.graph.nodes)
        output: torch.Tensor = program.module()(x)
        return output

    return as_graph


def close(got: torch.Tensor, wanted: torch.Tensor, *, step: float) -> None:
    """Equal but for a few values at the border of two levels, which may have gone to the other side."""
    assert got.shape == wanted.shape
    difference = (got.double() - wanted).abs()
    assert float(difference.max()) <= 2 * step
    assert float(difference.median()) <= 1e-5 * float(wanted.abs().max())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rounding", [InputRounding(DYNAMIC, 1.0, 128), InputRounding(DYNAMIC, 1.0, 60)], ids=str)
def test_a_dynamic_linear_layer_rounds_each_row_by_its_own_scale(call: Any, bias: bool, rounding: Any) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(40, 24, bias=bias)
    x = torch.randn(3, 5, 40) * torch.logspace(-2, 2, 15).reshape(3, 5, 1)
    wanted = naive_rows(x, rounding.zero_point) @ naive_weight(layer.weight).T
    if bias:
        wanted = wanted + layer.bias.detach().double()
    with torch.no_grad():
        got = call(int8(layer, LayerKind.LINEAR, rounding), x)
    for row, wanted_row, scale in zip(
        got.reshape(15, -1), wanted.reshape(15, -1), x.abs().amax(-1).flatten(), strict=True
    ):
        close(row, wanted_row, step=float(scale) / 60 * 0.2)


@pytest.mark.parametrize("bias", [True, False])
def test_a_static_linear_layer_rounds_all_by_the_calibrated_range(call: Any, bias: bool) -> None:
    torch.manual_seed(1)
    layer = nn.Linear(40, 24, bias=bias)
    x = torch.randn(7, 40) * 2
    wanted = naive_range(x, 0.02, 100) @ naive_weight(layer.weight).T
    if bias:
        wanted = wanted + layer.bias.detach().double()
    with torch.no_grad():
        close(call(int8(layer, LayerKind.LINEAR, InputRounding(STATIC, 0.02, 100)), x), wanted, step=0.02 * 0.2)


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("rounding", [InputRounding(STATIC, 0.03, 90), InputRounding(DYNAMIC)], ids=str)
def test_a_convolution_rounds_its_whole_input(call: Any, dimensions: int, rounding: InputRounding) -> None:
    torch.manual_seed(2)
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dimensions - 1]
    layer: Any = kind(6, 8, 3, stride=2, padding=1, dilation=1, groups=2)
    x = torch.randn(2, 6, *[9] * dimensions)
    scale, zero_point = rounding.scale, rounding.zero_point
    if rounding.activations is DYNAMIC:
        scale = float((x.max() - x.min()) / 255)
        zero_point = round(float(-x.min()) / scale)
    function = (functional.conv1d, functional.conv2d, functional.conv3d)[dimensions - 1]
    wanted = function(
        naive_range(x, scale, zero_point),
        naive_weight(layer.weight),
        layer.bias.detach().double(),
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.groups,
    )
    with torch.no_grad():
        close(call(int8(layer, LayerKind.CONV, rounding), x), wanted, step=scale * 0.3)


def test_weights_only_layers_compute_what_the_rounded_weights_say(call: Any) -> None:
    torch.manual_seed(3)
    linear, conv = nn.Linear(12, 9), nn.Conv2d(4, 6, 3)
    x, image = torch.randn(5, 12), torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        got = call(int8(linear, LayerKind.LINEAR, WEIGHT_ONLY), x)
        wanted = x.double() @ naive_weight(linear.weight).T + linear.bias.double()
        torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-6)
        got = call(int8(conv, LayerKind.CONV, WEIGHT_ONLY), image)
        wanted = functional.conv2d(image.double(), naive_weight(conv.weight), conv.bias.double())
        torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-6)


def test_an_embedding_gives_the_rounded_rows() -> None:
    torch.manual_seed(4)
    layer = nn.Embedding(30, 8)
    ids = torch.tensor([[0, 29, 3], [3, 3, 7]])
    got = int8(layer, LayerKind.EMBEDDING, WEIGHT_ONLY)(ids)
    torch.testing.assert_close(got.double(), naive_weight(layer.weight)[ids], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", [DYNAMIC, STATIC])
def test_float_channels_are_multiplied_in_float_and_take_no_levels_from_the_others(
    call: Any, kind: Activations, bias: bool
) -> None:
    torch.manual_seed(5)
    layer = nn.Linear(16, 12, bias=bias)
    x = torch.randn(50, 16)
    x[:, [3, 11]] *= 100
    channels = (3, 11)
    others = x.index_fill(1, torch.tensor(channels), 0.0)
    rounded = naive_rows(others, 128) if kind is DYNAMIC else naive_range(others, 0.03, 128)
    rounded[:, channels] = x[:, channels].double()
    wanted = rounded @ naive_weight(layer.weight).T
    if bias:
        wanted = wanted + layer.bias.detach().double()
    with torch.no_grad():
        got = call(int8(layer, LayerKind.LINEAR, InputRounding(kind, 0.03, 128, float_channels=channels)), x)
        exact = x.double() @ naive_weight(layer.weight).T + (layer.bias.double() if bias else 0.0)
        plain = int8(layer, LayerKind.LINEAR, InputRounding(kind, 3.0 if kind is STATIC else 1.0, 128))(x)
    close(got, wanted, step=0.03 * 0.3)
    assert float((got - exact).norm()) < 0.1 * float((plain - exact).norm())


@pytest.mark.filterwarnings("ignore")  # torchao's own on import
def test_a_dynamic_layer_agrees_with_torchao() -> None:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    torch.manual_seed(6)
    layer = nn.Linear(64, 48)
    x = torch.randn(20, 64)
    theirs = nn.Sequential(copy.deepcopy(layer))
    quantize_(theirs, Int8DynamicActivationInt8WeightConfig())
    mine = int8(layer, LayerKind.LINEAR, InputRounding(DYNAMIC))
    weight = theirs[0].weight  # theirs divide by 127.5, so an integer may be one more
    assert int((weight.qdata.int() - mine.weight_int8.int()).abs().max()) <= 1
    with torch.no_grad():
        expected = layer(x)
        error, their_error = ((got - expected).norm() / expected.norm() for got in (mine(x), theirs(x)))
    assert float(error) < 0.01
    assert float(error) <= 1.05 * float(their_error)


def test_a_samples_answer_does_not_depend_on_its_batch() -> None:
    torch.manual_seed(7)
    layer = int8(nn.Linear(32, 16), LayerKind.LINEAR, InputRounding(DYNAMIC, 1.0, 60))
    quiet, loud = torch.randn(1, 32), torch.randn(1, 32) * 1000
    with torch.inference_mode():
        assert layer(torch.cat([quiet, loud]))[:1].equal(layer(quiet))


def test_new_weights_are_served_at_once() -> None:
    torch.manual_seed(8)
    layer = int8(nn.Linear(8, 8), LayerKind.LINEAR, InputRounding(DYNAMIC))
    other = int8(nn.Linear(8, 8), LayerKind.LINEAR, InputRounding(DYNAMIC))
    x = torch.randn(2, 8)
    layer(x)
    layer.load_state_dict(other.state_dict())
    assert layer(x).equal(other(x))
    assert copy.deepcopy(layer)(x).equal(other(x))


@pytest.mark.parametrize("rounding", [InputRounding(DYNAMIC), InputRounding(STATIC, 0.1, 128), WEIGHT_ONLY], ids=str)
def test_a_layer_first_called_in_inference_mode_serves_outside_of_it(rounding: InputRounding) -> None:
    layer = int8(nn.Linear(8, 8), LayerKind.LINEAR, rounding)
    x = torch.randn(2, 8, requires_grad=True)
    with torch.inference_mode():
        inside = layer(x)
    assert layer(x).detach().equal(inside)


def test_code_that_asks_for_the_weight_gets_a_float_one() -> None:
    linear = nn.Linear(8, 8)
    layer = int8(linear, LayerKind.LINEAR, InputRounding(DYNAMIC))
    assert layer.weight.dtype is torch.float32
    torch.testing.assert_close(layer.weight.double(), naive_weight(linear.weight), rtol=1e-5, atol=1e-7)
