"""The real KubeRay goes through the states that the mimic plays, and tells how the driver ended."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from mimic import FINALIZER, KUBERAY_BETWEEN, KUBERAY_FAILED, KUBERAY_STATES, RAY_CLUSTERS, pod_labels

from limbeck.controller.names import PODS, RAY_JOBS
from limbeck.kube.connection import load_client
from limbeck.kube.transport import Resource, Transport

if TYPE_CHECKING:
    from testbed import Testbed

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]

Object = dict[str, Any]
IMAGE = "localhost/limbeck-runtime:dev"
SECONDS = 300
# Longer than KubeRay's three seconds between two looks, so that it sees the run at work.
WORKS = "python -c 'import time; time.sleep(10)"
LABELS = {"limbeck.dev/job": "some", "limbeck.dev/attempt": "1", "app.kubernetes.io/name": "limbeck"}


@pytest.fixture
def transport(testbed: Testbed) -> Transport:
    if IMAGE not in testbed.containerd.image_names():
        pytest.skip(f"needs {IMAGE}: python tests/cluster/testbed.py images")
    return Transport(load_client(str(testbed.kubeconfig)))


@pytest.fixture
def namespace(transport: Transport) -> str:
    name = f"states-{uuid.uuid4().hex[:8]}"
    transport.create(Resource("", "v1", "namespaces", False), {"metadata": {"name": name}})
    return name


@pytest.fixture
def run(transport: Transport, namespace: str) -> Callable[[str], tuple[list[tuple[str, str]], Object, list[Object]]]:
    """Runs an entrypoint; the states of its RayJob, its end, and the pods that it had while it ran."""

    def go(entrypoint: str) -> tuple[list[tuple[str, str]], Object, list[Object]]:
        created = transport.create(RAY_JOBS, ray_job(entrypoint), namespace)
        states: list[tuple[str, str]] = []
        pods: list[Object] = []
        version = created["metadata"]["resourceVersion"]
        with transport.watch(RAY_JOBS, namespace, resource_version=version, timeout_seconds=SECONDS) as stream:
            for event in stream:
                if event["type"] == "BOOKMARK":
                    continue
                status = event["object"].get("status") or {}
                state = (status.get("jobDeploymentStatus", ""), status.get("jobStatus", ""))
                if state != ("", "") and states[-1:] != [state]:
                    states.append(state)
                if state[0] == "Running" and not pods:
                    pods = transport.list(PODS, namespace)["items"]
                    assert FINALIZER in event["object"]["metadata"]["finalizers"]
                    (cluster,) = transport.list(RAY_CLUSTERS, namespace)["items"]
                    assert cluster["metadata"]["ownerReferences"][0]["uid"] == created["metadata"]["uid"]
                if state[0] in ("Complete", "Failed"):
                    return states, event["object"], pods
        raise AssertionError(f"no end within {SECONDS} s: {states}")

    return go


def ray_job(entrypoint: str) -> Object:
    probe = {"httpGet": {"path": "/api/healthz", "port": 52365}, "periodSeconds": 1, "failureThreshold": 120}
    container = {
        "name": "ray-head",
        "image": IMAGE,
        "imagePullPolicy": "Never",
        "env": [{"name": "HOME", "value": "/tmp"}],
        "resources": {"requests": {"cpu": "100m", "memory": "1Gi"}, "limits": {"memory": "2Gi"}},
        "readinessProbe": probe,
    }
    head = {
        "rayStartParams": {"num-cpus": "0", "object-store-memory": "100000000", "disable-usage-stats": "true"},
        "template": {"metadata": {"labels": LABELS}, "spec": {"containers": [container]}},
    }
    spec = {
        "entrypoint": entrypoint,
        "submissionMode": "SidecarMode",
        "backoffLimit": 0,
        "shutdownAfterJobFinishes": True,
        "rayClusterSpec": {"rayVersion": "2.60.0", "headGroupSpec": head},
    }
    return {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": "some-1"}, "spec": spec}


def test_a_run_that_succeeds_goes_through_the_states_of_the_table(run: Callable[..., Any]) -> None:
    states, end, pods = run(f"{WORKS}'")
    assert [state for state in states if state not in KUBERAY_BETWEEN] == list(KUBERAY_STATES)
    cluster = end["status"]["rayClusterName"]
    (head,) = pods
    labels = head["metadata"]["labels"]
    assert pod_labels(LABELS, cluster, "head", "headgroup").items() <= labels.items()
    (owner,) = head["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"], owner["controller"]) == ("RayCluster", cluster, True)


def test_how_the_driver_ended_is_read_before_the_submitter_fails(run: Callable[..., Any]) -> None:
    """With the end of our entrypoint; without it the words are lost if the submitter ends between two looks."""
    states, end, _ = run(f'{WORKS}; print("last words"); exit(10)\' || (sleep 10; exit 1)')
    wanted = [*KUBERAY_STATES[:-1], KUBERAY_FAILED[:2]]
    assert [state for state in states if state not in KUBERAY_BETWEEN] == wanted
    assert end["status"]["reason"] == KUBERAY_FAILED[2]
    assert "failed with exit code 10" in end["status"]["message"]
    assert "last words" in end["status"]["message"]
