"""Flux's health check expressions, evaluated over the states in which the operator leaves jobs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import celpy
import pytest
import yaml
from celpy.adapter import json_to_cel

Object = dict[str, Any]

HEALTH = {
    "new": "InProgress",
    "reconciling": "InProgress",
    "without KubeRay": "InProgress",
    "suspended": "Current",
    "running": "Current",
    "running with progress": "Current",
    "resumed, not looked at": "InProgress",
    "asked for a checkpoint": "Current",
    "complete": "Current",
    "failed": "Failed",
    "invalid": "Failed",
}


@pytest.fixture
def expressions(manifests: Path) -> Object:
    text = (manifests / "gitops" / "flux" / "kustomizations.yaml").read_text(encoding="utf-8")
    (jobs,) = [each for each in yaml.safe_load_all(text) if each["metadata"]["name"] == "compression-jobs"]
    (found,) = jobs["spec"]["healthCheckExprs"]
    assert (found["apiVersion"], found["kind"]) == ("limbeck.dev/v1alpha1", "CompressionJob")
    return {name: found[name] for name in ("inProgress", "failed", "current")}


def statuses_of(expressions: Object, job: Object) -> list[str]:
    """All that hold: where one alone does, nothing depends on the order in which Flux asks."""
    names = {"inProgress": "InProgress", "failed": "Failed", "current": "Current"}
    return [verdict for name, verdict in names.items() if _holds(expressions[name], job)]


def _holds(expression: str, job: Object) -> bool:
    environment = celpy.Environment()
    program = environment.program(environment.compile(expression))
    variables = {name: json_to_cel(job[name]) for name in ("metadata", "spec", "status")}
    return bool(program.evaluate(variables))


@pytest.mark.parametrize("state", HEALTH)
def test_flux_reads_each_state_as_the_design_intends(
    expressions: Object, jobs_by_state: dict[str, Object], state: str
) -> None:
    assert statuses_of(expressions, jobs_by_state[state]) == [HEALTH[state]]


def test_the_table_of_states_is_complete(jobs_by_state: dict[str, Object]) -> None:
    assert set(jobs_by_state) == set(HEALTH)


def test_what_flux_applies_lies_in_the_repository(manifests: Path) -> None:
    text = (manifests / "gitops" / "flux" / "kustomizations.yaml").read_text(encoding="utf-8")
    (limbeck,) = [
        each
        for each in yaml.safe_load_all(text)
        if each["kind"] == "Kustomization" and each["metadata"]["name"] == "limbeck"
    ]
    assert (manifests.parent / limbeck["spec"]["path"] / "kustomization.yaml").exists()
