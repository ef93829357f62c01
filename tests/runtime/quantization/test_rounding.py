"""The arithmetic of int8 against the formulas written out number by number in float64."""

from __future__ import annotations

import pytest
import torch

from limbeck_runtime.quantization.rounding import (
    affine_range,
    affine_range_of,
    channel_scales,
    dequantize_weight,
    quantize_weight,
    rounded_input,
    row_scales,
)


def test_each_channel_of_a_weight_is_rounded_to_the_nearest_of_its_own_255_levels() -> None:
    weight = torch.randn(5, 3, 2, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [1e-3, 1.0, 50.0, 0.2, 7.0]
    ).reshape(5, 1, 1, 1)
    scales = channel_scales(weight)
    integers = quantize_weight(weight, scales)
    for channel in range(5):
        values = [float(value) for value in weight[channel].flatten()]
        step = max(abs(value) for value in values) / 127
        assert float(scales[channel]) == pytest.approx(step, rel=1e-6)
        assert integers[channel].flatten().tolist() == [round(value / step) for value in values]
    error = (dequantize_weight(integers, scales) - weight).abs().flatten(1).amax(1)
    assert bool((error <= scales / 2 * 1.001).all())


def test_a_channel_of_zeros_stays_zero() -> None:
    weight = torch.zeros(2, 4)
    weight[1] = 1.0
    scales = channel_scales(weight)
    assert dequantize_weight(quantize_weight(weight, scales), scales).equal(weight)


@pytest.mark.parametrize(("low", "high"), [(-1.0, 3.0), (0.5, 2.0), (-4.0, -1.0), (-0.17, 6.0), (-1e-3, 1e-3)], ids=str)
def test_a_range_covers_its_ends_and_holds_zero_exactly(low: float, high: float) -> None:
    scale, zero_point = affine_range(low, high)
    x = torch.tensor([min(low, 0.0), 0.0, max(high, 0.0)])
    again = rounded_input(x, scale, zero_point) * scale
    assert float(again[1]) == 0.0
    assert float((again - x).abs().max()) <= scale / 2 * 1.01
    of_tensor = affine_range_of(torch.tensor([low, high]))
    assert float(of_tensor[0]) == pytest.approx(scale, rel=1e-6)
    assert int(of_tensor[1]) == zero_point


def test_a_range_of_nothing_but_zero_is_no_division_by_zero() -> None:
    assert affine_range(0.0, 0.0) == (1.0, 0)
    scale, zero_point = affine_range_of(torch.zeros(3))
    assert rounded_input(torch.zeros(3), scale, zero_point).equal(torch.zeros(3))


@pytest.mark.parametrize("zero_point", [8, 100, 128, 247])
def test_the_scale_of_a_row_is_the_smallest_at_which_all_of_it_fits(zero_point: int) -> None:
    x = torch.randn(6, 9, generator=torch.Generator().manual_seed(1)) * torch.tensor([[1e-4], [1], [5], [1], [9], [0]])
    scales = row_scales(x, zero_point)
    for row, scale in zip(x.tolist(), scales.flatten().tolist(), strict=True):
        wanted = max(max(row) / (255 - zero_point), min(row) / -zero_point, 1e-10)
        assert scale == pytest.approx(wanted, rel=1e-6)
    error = rounded_input(x, scales, zero_point) * scales - x
    assert bool((error.abs() <= scales * 0.501).all())
