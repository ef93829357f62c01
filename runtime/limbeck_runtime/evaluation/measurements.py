"""Quality and cost of one model in the shape that the report is built from."""

from __future__ import annotations

from limbeck.api.report import SliceValue
from limbeck_runtime.evaluation.cost import Cost
from limbeck_runtime.evaluation.evaluation import Evaluation
from limbeck_runtime.report.build import Measurements


def to_measurements(evaluation: Evaluation, cost: Cost, *, artefact: str, artefact_bytes: int) -> Measurements:
    """`artefact` says what was weighed and timed, e.g. `model.safetensors, torch eager`."""
    return Measurements(
        metrics=evaluation.metrics,
        parameters=cost.parameters,
        macs=cost.macs,
        artefact_bytes=artefact_bytes,
        peak_memory_bytes=cost.peak_memory_bytes,
        latency=cost.latency,
        agreement_percent=evaluation.agreement_percent,
        ece=evaluation.ece,
        slices={
            column: {value: SliceValue(count=part.count, metrics=dict(part.metrics)) for value, part in values.items()}
            for column, values in evaluation.slices.items()
        },
        artefact=artefact,
        unmeasured=evaluation.unmeasured,
    )
