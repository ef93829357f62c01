"""What `make bench-operator` measures is there to be measured."""

from __future__ import annotations

import importlib

import pytest
from benchmarks.operator.cluster import job
from benchmarks.operator.rows import ROWS

from limbeck.api.v1alpha1.job import CompressionJob
from limbeck.controller.planning import resolve


@pytest.mark.parametrize("row_id", ROWS)
def test_each_row_has_a_module_that_measures(row_id: str) -> None:
    assert callable(importlib.import_module(ROWS[row_id].module).measure)


def test_the_job_that_is_measured_is_one_that_can_be_run() -> None:
    plan = resolve(CompressionJob.model_validate(job("bench", suspend=True)).spec)
    assert plan.spec.pipeline
