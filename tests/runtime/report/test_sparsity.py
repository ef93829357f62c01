"""The report draws what pruning removed by layer, and says what it is worth."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from limbeck.api.prune_record import PrunedLayer
from limbeck.api.report import Pruning, Report, StepReport
from limbeck_runtime.report.html import render
from limbeck_runtime.report.sparsity import MAX_LAYERS_SHOWN, sparsity_sections


def _pruned(report: Report, granularity: str, num_layers: int = 2) -> Report:
    layers = [PrunedLayer(name=f"body.{place}.weight", weights=100 + place, removed=30) for place in range(num_layers)]
    pruning = Pruning(
        granularity=granularity, parameters_before=1000, parameters_after=940, zeros_after=60, layers=layers
    )
    step = StepReport(name="thin", method="prune", seconds=1, pruning=pruning)
    return report.model_copy(update={"steps": [step]})


@pytest.mark.parametrize(
    ("granularity", "said"),
    [
        ("Unstructured", "Single zeros bring no speed"),
        ("TwoFour", "That is no speed by itself"),
        ("Structured", "The network itself is smaller: 940 parameters instead of"),
    ],
)
def test_each_granularity_says_what_it_is_worth(report_of: Callable[..., Report], granularity: str, said: str) -> None:
    page = render(_pruned(report_of(), granularity))
    assert "What thin removed" in page
    assert said in page.replace("\N{NO-BREAK SPACE}", " ")


def test_bars_are_the_share_of_each_layer(report_of: Callable[..., Report]) -> None:
    (section,) = sparsity_sections(_pruned(report_of(), "Structured"))
    (bars,) = section.chart.figure["data"]
    assert bars["y"] == ["body.0", "body.1"]
    assert bars["x"] == [30.0, pytest.approx(3000 / 101)]


def test_of_very_many_layers_the_largest_are_drawn_and_the_rest_counted(report_of: Callable[..., Report]) -> None:
    (section,) = sparsity_sections(_pruned(report_of(), "Structured", MAX_LAYERS_SHOWN + 5))
    assert len(section.chart.figure["data"][0]["x"]) == MAX_LAYERS_SHOWN
    assert "5 smaller ones" in section.chart.note


def test_steps_that_did_not_prune_have_no_section(report_of: Callable[..., Report]) -> None:
    assert sparsity_sections(report_of()) == []
