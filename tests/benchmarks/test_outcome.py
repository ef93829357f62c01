"""Figures against targets, and the JSON that comes of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from benchmarks.outcome import MeasurementError, Outcome, judge
from benchmarks.rows import Row

RATIO = {"value": 2.5, "spread": [2.0, 3.0], "runs": 5}


def test_a_row_is_met_when_all_its_targets_are(row: Callable[..., Row]) -> None:
    assert judge("F1", row("meets"), {"ratio": RATIO, "bytes": 20}).met


@pytest.mark.parametrize(
    "measured",
    [{"ratio": RATIO, "bytes": 20.1}, {"ratio": {**RATIO, "value": 1.99}, "bytes": 20}],
    ids=["too large", "too small"],
)
def test_a_row_is_missed_when_one_of_its_targets_is(row: Callable[..., Row], measured: dict[str, Any]) -> None:
    assert not judge("F1", row("meets"), measured).met


@pytest.mark.parametrize(
    "value",
    [None, "fast", {"value": 2.0}, {"value": 2.0, "spread": [1.0], "runs": 5}],
    ids=["nothing", "a word", "no spread", "half a spread"],
)
def test_a_figure_that_is_none_is_named(row: Callable[..., Row], value: Any) -> None:
    with pytest.raises(MeasurementError, match=r"meets\.measure.* must give ratio"):
        judge("F1", row("meets"), {"ratio": value, "bytes": 20})


def test_the_entry_of_a_row_holds_its_figures_and_targets(row: Callable[..., Row]) -> None:
    entry = judge("F1", row("meets"), {"ratio": RATIO, "bytes": 20, "seconds": [1, 2]}).to_json()
    assert entry == {
        "id": "F1",
        "what": "a row that meets",
        "peer": "a peer",
        "ratio": 2.5,
        "target": "peer / ours >= 2 x, size <= 20 B",
        "met": True,
        "spread": [2.0, 3.0],
        "runs": 5,
        "checks": [
            {
                "figure": "ratio",
                "what": "peer / ours",
                "unit": "x",
                "value": 2.5,
                "spread": [2.0, 3.0],
                "runs": 5,
                "target": "peer / ours >= 2 x",
                "met": True,
            },
            {
                "figure": "bytes",
                "what": "size",
                "unit": "B",
                "value": 20.0,
                "spread": [20.0, 20.0],
                "runs": 1,
                "target": "size <= 20 B",
                "met": True,
            },
        ],
        "details": {"seconds": [1, 2]},
        "reason": None,
    }


def test_the_entry_of_a_row_that_could_not_run_says_why_and_is_not_met(row: Callable[..., Row]) -> None:
    entry = Outcome("F1", row("meets"), reason="no peer").to_json()
    assert (entry["met"], entry["reason"], entry["ratio"], entry["runs"]) == (False, "no peer", None, 0)
