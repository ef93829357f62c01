"""Jobs in each state, as the operator itself leaves them."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from limbeck.api.status import Progress
from limbeck.api.v1alpha1.job import CompressionJob
from limbeck.controller.decide import decide
from limbeck.controller.observed import Observed, Refusal
from limbeck.controller.settings import Settings

Object = dict[str, Any]

MANIFESTS = Path(__file__).parent.parent.parent / "manifests"
_NOW = datetime(2026, 11, 24, 6, 0, tzinfo=UTC)
_STATES = {
    "running": {"jobStatus": "RUNNING", "jobDeploymentStatus": "Running", "rayClusterName": "smoke-1-x"},
    "complete": {"jobStatus": "SUCCEEDED", "jobDeploymentStatus": "Complete"},
    "failed": {
        "jobStatus": "FAILED",
        "jobDeploymentStatus": "Failed",
        "reason": "AppFailed",
        "message": 'LIMBECK_OUTCOME {"exit_code": 10, "reason": "GateFailed", "message": "recovery 12, wanted 80"}',
    },
}


@pytest.fixture(scope="session")
def manifests() -> Path:
    return MANIFESTS


@pytest.fixture
def jobs_by_state() -> dict[str, Object]:
    """`smoke.yaml` in every state that the GitOps tools must tell apart."""
    sample = yaml.safe_load((MANIFESTS / "samples" / "smoke.yaml").read_text(encoding="utf-8"))
    sample["metadata"] |= {
        "namespace": "team-a",
        "uid": "the-job",
        "generation": 1,
        "creationTimestamp": "2026-11-24T06:00:00Z",
    }
    new = {**sample, "status": {"observedGeneration": -1}}
    suspended = {**new, "spec": {**sample["spec"], "suspend": True}}
    reconciling = _after(new, Observed())
    running = _after(reconciling, Observed(ray_jobs=[_ray_job("running")]))
    progress = Progress(percent=40, step="distil").model_dump(mode="json", by_alias=True, exclude_none=True)
    return {
        "new": new,
        "reconciling": reconciling,
        "without KubeRay": _after(new, Observed(kuberay_served=False)),
        "suspended": _after(suspended, Observed()),
        "running": running,
        "running with progress": {**running, "status": {**running["status"], "progress": progress}},
        "resumed, not looked at": {**running, "metadata": {**sample["metadata"], "generation": 2}},
        "asked for a checkpoint": _after(
            {**running, "spec": suspended["spec"]}, Observed(ray_jobs=[_ray_job("running")])
        ),
        "complete": _after(running, Observed(ray_jobs=[_ray_job("complete")])),
        "failed": _after(running, Observed(ray_jobs=[_ray_job("failed")])),
        "invalid": _after(reconciling, Observed(refusal=(Refusal.INVALID, "no such template"))),
    }


def _ray_job(state: str) -> Object:
    metadata = {"name": "smoke-1", "uid": "the-ray-job", "labels": {"limbeck.dev/attempt": "1"}}
    return {"metadata": metadata, "status": {"startTime": "2026-11-24T06:00:00Z", **_STATES[state]}}


def _after(job: Object, observed: Observed) -> Object:
    settings = Settings(image="runtime", server_url="https://server:8443")
    status = decide(CompressionJob.model_validate(job), observed, _NOW, settings).status
    return {**job, "status": status.model_dump(mode="json", by_alias=True, exclude_none=True)}
