"""The report's section on pruning: how much of each layer went, and what that is worth.

Left out on purpose: scores and masks, which are in the record (records/<step>/prune.json).
"""

from __future__ import annotations

from dataclasses import dataclass

from limbeck.api.prune_record import PrunedLayer
from limbeck.api.report import Pruning, Report
from limbeck.api.v1alpha1.compression import Granularity
from limbeck_runtime.report import wording
from limbeck_runtime.report.charts import Chart, bars

MAX_LAYERS_SHOWN = 60
_NO_SPEED = {
    Granularity.UNSTRUCTURED.value: (
        "Single zeros bring no speed, and no smaller file: every operation is done as before. They make room for "
        "compression of the file by other tools, and for hardware that skips them."
    ),
    Granularity.TWO_FOUR.value: (
        "Two of each four weights are zero. That is no speed by itself: it needs a GPU with sparse matrix units and "
        "a runtime that uses them; what was timed here does not."
    ),
}


@dataclass(frozen=True)
class SparsitySection:
    """One step that pruned: a sentence, what it is worth, and the chart."""

    step: str
    sentence: str
    worth: str
    chart: Chart


def sparsity_sections(report: Report) -> list[SparsitySection]:
    """One section for each step that pruned something."""
    return [
        SparsitySection(
            step.name, _sentence(step.pruning), _worth(step.pruning), _chart(place, step.name, step.pruning)
        )
        for place, step in enumerate(report.steps)
        if step.pruning is not None and step.pruning.layers
    ]


def _sentence(pruning: Pruning) -> str:
    weights = sum(layer.weights for layer in pruning.layers)
    removed = sum(layer.removed for layer in pruning.layers)
    share = wording.in_percent(100 * removed / weights)
    return f"{share} of the weights of {len(pruning.layers)} layers went ({wording.in_count(removed)})."


def _worth(pruning: Pruning) -> str:
    if pruning.granularity in _NO_SPEED:
        return _NO_SPEED[pruning.granularity]
    before, after = wording.in_count(pruning.parameters_before), wording.in_count(pruning.parameters_after)
    return f"The network itself is smaller: {after} parameters instead of {before}."


def _chart(place: int, step: str, pruning: Pruning) -> Chart:
    shown = _shown(pruning.layers)
    labels = [layer.name.removesuffix(".weight") for layer in shown]
    figure = bars(labels, [layer.sparsity_percent for layer in shown], "removed, %", step)
    omitted = len(pruning.layers) - len(shown)
    note = ""
    if omitted:
        note = f"The {len(shown)} largest layers in the model's order; {omitted} smaller ones are in report.json."
    return Chart(f"sparsity-{place}", step, figure, note)


def _shown(layers: list[PrunedLayer]) -> list[PrunedLayer]:
    if len(layers) <= MAX_LAYERS_SHOWN:
        return layers
    least = sorted((layer.weights for layer in layers), reverse=True)[MAX_LAYERS_SHOWN - 1]
    return [layer for layer in layers if layer.weights >= least][:MAX_LAYERS_SHOWN]
