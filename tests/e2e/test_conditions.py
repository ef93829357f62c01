"""What keeps a job from its end, or ends it early: each is a condition whose reason and message say what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from livejob import LiveJob

pytestmark = [pytest.mark.faults, pytest.mark.cluster, pytest.mark.timeout(900)]

Start = Callable[..., "LiveJob"]

NO_SUCH_IMAGE = "localhost/no-such-image:1"
# What waits for a container or for KubeRay to try.
_SECONDS = 120


def test_an_image_that_is_not_there(start: Start) -> None:
    job = start("imageless", {"spec.cluster.image": NO_SUCH_IMAGE})
    job.wait("the image is missed", lambda: job.says("Reconciling", "False", "ImagePullFailed"), _SECONDS)
    message = job.condition("Reconciling")["message"]
    assert NO_SUCH_IMAGE in message
    assert "correct `spec.cluster.image`" in message
    assert "ImagePullFailed" in job.reasons()
    job.delete()


def test_a_secret_that_comes_late(start: Start, kubectl: Any) -> None:
    job = start("secretless", {"spec.output.credentialsSecretRef.name": "late"})
    job.wait("the Secret is missed", lambda: job.says("Reconciling", "True", "SecretNotFound"), _SECONDS)
    message = job.condition("Reconciling")["message"]
    assert job.namespace in message
    assert "late; create it" in message
    assert job.left() == []
    kubectl.apply([job.secret("late")])
    job.wait("the job goes on", lambda: job.says("Reconciling", "False", "RayJobCreated"), _SECONDS)
    assert job.reasons().count("SecretNotFound") == 1
    assert job.status()["attempt"] == 1
    job.run("delete", "secret", "late")
    job.delete()


def test_pods_that_no_node_can_hold(start: Start) -> None:
    path = "spec.cluster.teacher.template.spec.containers.0.resources.requests.memory"
    job = start("homeless", {path: "900Ti"})
    job.wait("no node is found", lambda: job.says("Reconciling", "False", "Unschedulable"), _SECONDS)
    message = job.condition("Reconciling")["message"]
    assert "Insufficient memory" in message
    assert "ask for less in the pod template, or add nodes" in message
    assert "Unschedulable" in job.reasons()
    job.delete()


def test_a_namespace_that_refuses_the_pods(start: Start) -> None:
    job = start("refused", {}, security="restricted")
    job.wait("the pods are refused", lambda: job.says("Reconciling", "False", "PodsRefused"), _SECONDS)
    message = job.condition("Reconciling")["message"]
    assert "PodSecurity" in message
    assert "label its namespace pod-security.kubernetes.io/enforce=baseline" in message
    assert "PodsRefused" in job.reasons()
    job.delete()


def test_a_deadline_ends_the_job_and_its_pods(start: Start) -> None:
    job = start("late", {"spec.activeDeadlineSeconds": 10, "spec.backoffLimit": 3})
    status = job.wait_until_finished("Failed", "DeadlineExceeded", _SECONDS)
    assert status["attempt"] == 1
    assert "`spec.activeDeadlineSeconds`, 10" in job.condition("Failed")["message"]
    assert job.condition("Stalled")["status"] == "True"
    job.wait("its pods are gone", lambda: not _that_run(job), _SECONDS)
    job.delete()


def test_a_missed_gate_is_final_and_the_report_says_why(start: Start) -> None:
    changes = {
        "spec.target.minRecoveryPercent": 100,
        "spec.pipeline.0.distil.epochs": 1,
        "spec.pipeline.0.distil.learningRate": 1e-9,
        "spec.backoffLimit": 3,
    }
    job = start("gated", changes)
    status = job.wait_until_finished("Failed", "GateFailed")
    assert status["attempt"] == 1
    assert "`spec.target.minRecoveryPercent` must be at least 100, got" in job.condition("Failed")["message"]
    assert job.condition("Stalled")["status"] == "True"
    assert "GateFailed" in job.reasons()
    assert not json.loads(job.read("report.json"))["gate"]["passed"]
    job.wait("the server tells where the report is", lambda: job.status().get("result", {}).get("reportUri"), 60)
    job.wait("its pods are gone", lambda: not _that_run(job), _SECONDS)
    job.delete()


def _that_run(job: LiveJob) -> list[str]:
    return [each for each in job.left() if each.partition("/")[0] in ("Pod", "RayJob", "RayCluster")]
