"""How calibration chooses ranges and zero points."""

from __future__ import annotations

import pytest
import torch

from limbeck.api.v1alpha1.compression import Calibration
from limbeck_runtime.quantization.observers import EveryNth, RowObserver, ValueObserver
from limbeck_runtime.quantization.ranges import CALIBRATIONS, SeenValues, row_zero_point
from limbeck_runtime.quantization.rounding import affine_range, rounded_input


def seen(values: torch.Tensor) -> SeenValues:
    observer = ValueObserver()
    observer.see(values)
    return observer.seen()


def error(values: torch.Tensor, low: float, high: float) -> float:
    scale, zero_point = affine_range(low, high)
    return float((rounded_input(values, scale, zero_point) * scale - values).square().mean())


def test_min_max_covers_everything() -> None:
    values = torch.tensor([-3.0, 0.1, 8.0])
    assert CALIBRATIONS[Calibration.MIN_MAX](seen(values)) == (-3.0, 8.0)


def test_percentile_leaves_out_one_value_in_ten_thousand_at_each_end() -> None:
    values = torch.linspace(-1, 1, 20_001)
    values[0], values[-1] = -1000.0, 500.0
    low, high = CALIBRATIONS[Calibration.PERCENTILE](seen(values))
    assert low == pytest.approx(-1.0, abs=0.001)
    assert high == pytest.approx(1.0, abs=0.001)


def test_mse_clips_where_that_lowers_the_error_and_only_there() -> None:
    generator = torch.Generator().manual_seed(0)
    even = torch.rand(5000, generator=generator) * 2 - 1
    spiked = torch.cat([torch.randn(30_000, generator=generator), torch.tensor([40.0])])
    assert CALIBRATIONS[Calibration.MSE](seen(even))[1] == pytest.approx(float(even.max()), rel=0.03)
    low, high = CALIBRATIONS[Calibration.MSE](seen(spiked))
    assert high < 39
    assert error(spiked, low, high) < error(spiked, float(spiked.min()), 40.0)


@pytest.mark.parametrize(("low", "high", "expected"), [(-1.0, 1.0, 128), (-0.17, 4.0, 12), (-4.0, 0.17, 244)], ids=str)
def test_the_zero_point_goes_where_rows_have_their_small_side(low: float, high: float, expected: int) -> None:
    assert row_zero_point(torch.full((9,), low), torch.full((9,), high)) == pytest.approx(expected, abs=4)


def test_a_few_rows_of_huge_values_do_not_move_the_zero_point_of_all() -> None:
    low, high = torch.full((100,), -0.2), torch.full((100,), 2.0)
    low[:3], high[:3] = -900.0, 900.0
    assert row_zero_point(low, high) < 60  # not 128, as the huge rows would have it


def test_a_sample_is_bounded_and_evenly_spread_however_the_values_come() -> None:
    values = torch.arange(10_000.0)
    at_once, in_parts = EveryNth(100), EveryNth(100)
    at_once.add(values)
    for part in values.split(333):
        in_parts.add(part)
    kept = in_parts.kept()
    assert kept.equal(at_once.kept())
    assert 50 <= len(kept) <= 100
    assert len(set(kept.diff().tolist())) == 1


@pytest.mark.parametrize("without", [(), (1, 4)])
def test_a_row_observer_knows_the_extremes_of_the_other_channels_exactly(without: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(1)
    batches = [torch.randn(4, 7, 5, generator=generator) for _ in range(3)]
    observer = RowObserver()
    for batch in batches:
        observer.see(batch)
    rows = torch.cat(batches).reshape(-1, 5)
    others = rows[:, [channel for channel in range(5) if channel not in without]]
    found = observer.seen(without)
    assert found.low == float(others.min())
    assert found.high == float(others.max())
    assert observer.largest().equal(rows.abs().amax(0))
    assert found.values.reshape(-1, 5).equal(rows.index_fill(1, torch.tensor(without, dtype=torch.long), 0.0))
