"""The operator's metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prometheus_client import generate_latest

from limbeck.controller.metrics import Metrics


def exposed(metrics: Metrics) -> str:
    return generate_latest(metrics.registry).decode()


def test_series_of_a_job_vanish_when_it_finishes_and_no_other_names_it(new_world: Callable[..., Any]) -> None:
    world = new_world()
    world.reconcile()
    assert 'limbeck_job_attempt{job_name="emoji",namespace="team"} 1.0' in exposed(world.metrics)
    world.run_to_rest()
    text = exposed(world.metrics)
    assert "emoji" not in text
    assert 'limbeck_jobs{phase="Complete"} 1.0' in text
    assert 'limbeck_operator_jobs_finished_total{reason="Completed"} 1.0' in text


def test_series_of_a_job_vanish_when_it_is_deleted(new_world: Callable[..., Any]) -> None:
    world = new_world()
    world.reconcile()
    world.cluster.objects.clear()
    world.reconcile()
    text = exposed(world.metrics)
    assert "emoji" not in text
    assert 'limbeck_jobs{phase="Pending"} 0.0' in text


def test_rounds_and_writes_are_counted_by_outcome_and_kind(new_world: Callable[..., Any]) -> None:
    world = new_world()
    world.run_to_rest()
    world.metrics.reconciled(0.01, None)
    world.metrics.reconciled(0.01, ValueError("x"))
    text = exposed(world.metrics)
    assert 'limbeck_operator_writes_total{kind="RayJob"} 1.0' in text
    assert 'limbeck_operator_reconciles_total{outcome="ok"} 1.0' in text
    assert 'limbeck_operator_reconciles_total{outcome="ValueError"} 1.0' in text
