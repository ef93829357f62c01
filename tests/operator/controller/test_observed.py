"""What a RayJob and its pods say about an attempt."""

from __future__ import annotations

from typing import Any

import pytest

from limbeck.controller.observed import RunEnding, trouble, verdict

Object = dict[str, Any]


def pod(kind: str = "head", name: str = "p", **status: Any) -> Object:
    return {"metadata": {"name": name, "labels": {"ray.io/node-type": kind}}, "status": status}


def evicted(kind: str) -> Object:
    condition = {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}
    return pod(kind, conditions=[condition])


def said(code: int) -> str:
    return (
        f"Job entrypoint command failed with exit code {code}, last available logs (truncated to 20,000 chars):\n"
        f'line\nLIMBECK_OUTCOME {{"exit_code": {code}, "reason": "R", "message": "words"}}\n'
    )


FAILED = {"jobStatus": "FAILED", "jobDeploymentStatus": "Failed", "reason": "AppFailed"}


@pytest.mark.parametrize(
    ("status", "pods", "ending"),
    [
        ({}, [], None),
        ({"jobDeploymentStatus": "Initializing"}, [], None),
        ({"jobStatus": "RUNNING", "jobDeploymentStatus": "Running"}, [], None),
        ({"jobStatus": "RUNNING", "jobDeploymentStatus": "Running"}, [evicted("worker")], None),
        ({"jobStatus": "RUNNING", "jobDeploymentStatus": "Running"}, [evicted("head")], RunEnding.PREEMPTED),
        ({"jobStatus": "SUCCEEDED", "jobDeploymentStatus": "Running"}, [], RunEnding.SUCCEEDED),
        ({"jobStatus": "SUCCEEDED", "jobDeploymentStatus": "Complete"}, [evicted("head")], RunEnding.SUCCEEDED),
        ({"jobStatus": "STOPPED", "jobDeploymentStatus": "Complete"}, [], RunEnding.FAILED),
        ({"jobDeploymentStatus": "Failed", "reason": "SubmissionFailed"}, [], RunEnding.FAILED),
        ({"jobDeploymentStatus": "ValidationFailed"}, [], RunEnding.INVALID_SPEC),
        ({**FAILED, "message": "node died"}, [], RunEnding.FAILED),
        ({**FAILED, "message": "node died"}, [evicted("worker")], RunEnding.PREEMPTED),
        ({**FAILED, "message": "x"}, [pod("worker", phase="Failed", reason="Evicted")], RunEnding.PREEMPTED),
        ({**FAILED, "message": said(1)}, [], RunEnding.FAILED),
        ({**FAILED, "message": said(1)}, [evicted("worker")], RunEnding.PREEMPTED),
        ({**FAILED, "message": said(10)}, [evicted("worker")], RunEnding.GATE_FAILED),
        ({**FAILED, "jobDeploymentStatus": "Running", "message": said(10)}, [], RunEnding.GATE_FAILED),
        ({**FAILED, "message": said(11)}, [], RunEnding.USER_CODE_ERROR),
        ({**FAILED, "message": said(12)}, [], RunEnding.INVALID_SPEC),
        ({**FAILED, "message": said(130)}, [], RunEnding.INTERRUPTED),
        ({**FAILED, "message": "Job entrypoint command failed with exit code 10. No logs."}, [], RunEnding.GATE_FAILED),
        ({**FAILED, "message": "Job entrypoint command failed with exit code -9. No logs."}, [], RunEnding.FAILED),
        ({**FAILED, "message": 'LIMBECK_OUTCOME {"exit_code": "cut'}, [], RunEnding.FAILED),
    ],
)
def test_an_attempt_ends_as_its_ray_job_and_pods_say(status: Object, pods: list[Object], ending: Any) -> None:
    found = verdict({"metadata": {"name": "emoji-1"}, "status": status}, pods)
    assert (found.ending if found else None) == ending


def test_the_last_outcome_in_the_log_counts_and_its_words_are_kept() -> None:
    text = 'LIMBECK_OUTCOME {"exit_code": 11, "reason": "R", "message": "old"}\n' + said(10)
    found = verdict({"metadata": {"name": "emoji-1"}, "status": {**FAILED, "message": text}}, [])
    assert found is not None
    assert (found.ending, found.message) == (RunEnding.GATE_FAILED, "words")


@pytest.mark.parametrize(
    ("status", "reason", "words"),
    [
        (
            {"containerStatuses": [{"image": "no/such:1", "state": {"waiting": {"reason": "ImagePullBackOff"}}}]},
            "ImagePullFailed",
            "spec.cluster.image",
        ),
        (
            {
                "initContainerStatuses": [
                    {"state": {"waiting": {"reason": "CreateContainerConfigError", "message": 'secret "s3" not found'}}}
                ]
            },
            "ContainerConfigInvalid",
            'secret "s3" not found',
        ),
        (
            {"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1"}]},
            "Unschedulable",
            "ask for less",
        ),
    ],
)
def test_what_keeps_a_pod_from_starting_is_told_with_what_to_do(status: Object, reason: str, words: str) -> None:
    found = trouble({}, [pod(phase="Running"), pod(name="q", **status)])
    assert found is not None
    assert found[0] == reason
    assert words in found[1]


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ('violates PodSecurity "restricted:latest": container "ray-job-submitter"', "enforce=baseline"),
        ("exceeded quota: small, requested: pods=1, used: pods=3, limited: pods=3", "raise the namespace's quota"),
        ("denied by somebody", "correct the pod templates"),
    ],
)
def test_pods_that_kuberay_cannot_make_are_told_in_the_same_words_at_each_try(said: str, words: str) -> None:
    tries = []
    for name in ("emoji-1-head-a1", "emoji-1-head-b2"):
        message = f'FailedCreateHeadPod\npods "{name}" is forbidden: {said}'
        condition = {"type": "ReplicaFailure", "status": "True", "message": message}
        tries.append(trouble({"status": {"rayClusterStatus": {"conditions": [condition]}}}, []))
    assert tries[0] == tries[1]
    assert tries[0] is not None
    assert tries[0][0] == "PodsRefused"
    assert said in tries[0][1]
    assert words in tries[0][1]


def test_a_cluster_that_has_its_pods_is_in_no_trouble() -> None:
    condition = {"type": "ReplicaFailure", "status": "False", "message": ""}
    assert trouble({"status": {"rayClusterStatus": {"conditions": [condition]}}}, []) is None
