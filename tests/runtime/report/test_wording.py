from __future__ import annotations

from collections.abc import Callable

import pytest

from limbeck_runtime.report import wording


@pytest.mark.parametrize(
    ("function", "value", "text"),
    [
        (wording.in_count, 0, "0"),
        (wording.in_count, 999, "999"),
        (wording.in_count, 173_000, "173 k"),
        (wording.in_count, 999_800, "1.00 M"),
        (wording.in_count, 1_812_000_000, "1.81 G"),
        (wording.in_bytes, 512, "512 B"),
        (wording.in_bytes, 90_900_000, "90.9 MB"),
        (wording.in_seconds, 2.5, "2.50 s"),
        (wording.in_seconds, 0.0123, "12.3 ms"),
        (wording.in_seconds, 0.00008, "80.0 us"),
        (wording.in_seconds, 0.0000001, "0.100 us"),
        (wording.in_times, 1.0, "1x"),
        (wording.in_times, 3.9, "3.90x"),
        (wording.in_times, 123.4, "123x"),
        (wording.in_percent, 98.24, "98.2 %"),
        (wording.in_number, 0.0, "0.000"),
        (wording.in_number, 0.6123, "0.612"),
        (wording.in_number, -0.5, "-0.500"),
        (wording.in_number, 0.0000123, "1.23e-05"),
        (wording.in_number, 12345.6, "1.23e+04"),
        (wording.in_duration, 41.23, "41.2 s"),
        (wording.in_duration, 200, "3 min 20 s"),
        (wording.in_duration, 7500, "2 h 05 min"),
    ],
)
def test_figures_read_well(function: Callable[[float], str], value: float, text: str) -> None:
    assert function(value) == text


@pytest.mark.parametrize(
    "function",
    [
        wording.in_count,
        wording.in_bytes,
        wording.in_seconds,
        wording.in_times,
        wording.in_percent,
        wording.in_number,
    ],
)
def test_a_figure_that_is_missing_is_a_dash_and_not_a_zero(function: Callable[[None], str]) -> None:
    assert function(None) == "-"


@pytest.mark.parametrize(
    ("reached", "wanted", "text"),
    [(15.4, 12, "15.4x"), (3.97, 4, "3.97x"), (3.9996, 4, "3.9996x"), (4.0, 4, "4.0x"), (96.96, 97, "96.96x")],
)
def test_a_target_that_was_just_missed_does_not_read_as_if_it_was_met(reached: float, wanted: float, text: str) -> None:
    assert wording.unlike(reached, wanted, "x") == text
