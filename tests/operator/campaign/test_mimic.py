"""The mimic goes through the states through which KubeRay goes, and makes what KubeRay makes.

The same table is held against the real KubeRay on the whole test cluster (`cluster` marker), so that neither drifts.
What stands in it was read in KubeRay 1.6.2 (rayjob_controller.go, pod.go).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from mimic import CRASHED, FINALIZER, KUBERAY_FAILED, KUBERAY_STATES, RAY_CLUSTERS, RUNS_ON, SUCCEEDED

from limbeck.controller.names import PODS, RAY_JOBS

pytestmark = pytest.mark.controlplane

Object = dict[str, Any]


def watched_states(world: Any, until: Callable[[Object], bool]) -> list[tuple[str, str]]:
    """The states of the first RayJob in their order, from a watch that misses none."""
    states: list[tuple[str, str]] = []
    with world.transport.watch(RAY_JOBS, world.namespace, resource_version="0", timeout_seconds=60) as stream:
        for event in stream:
            if event["type"] == "BOOKMARK":
                continue
            status = event["object"].get("status") or {}
            state = (status.get("jobDeploymentStatus", ""), status.get("jobStatus", ""))
            if state != ("", "") and states[-1:] != [state]:
                states.append(state)
            if until(status):
                break
    return states


@pytest.mark.parametrize(
    ("ending", "wanted"),
    [(SUCCEEDED, KUBERAY_STATES), (CRASHED, (*KUBERAY_STATES[:-1], KUBERAY_FAILED[:2]))],
    ids=["succeeds", "fails"],
)
def test_a_ray_job_goes_through_kuberays_states(new_world: Callable[..., Any], ending: Object, wanted: Any) -> None:
    world = new_world([ending], **{"spec.backoffLimit": 0})
    world.start()
    assert watched_states(world, lambda status: bool(status.get("endTime"))) == list(wanted)


def test_what_a_running_ray_job_owns_carries_kuberays_labels(new_world: Callable[..., Any]) -> None:
    world = new_world([RUNS_ON], **{"spec.cluster": {"student": {"replicas": 2}}})
    world.start()
    world.wait(lambda: world.phase() == "Running")
    (ray_job,) = world.all_of(RAY_JOBS)
    assert FINALIZER in ray_job["metadata"]["finalizers"]
    (cluster,) = world.all_of(RAY_CLUSTERS)
    assert owner_of(cluster) == ("RayJob", ray_job["metadata"]["uid"])
    assert cluster["metadata"]["name"] == ray_job["status"]["rayClusterName"]
    assert cluster["metadata"]["labels"]["ray.io/originated-from-cr-name"] == "emoji-1"
    pods = world.all_of(PODS)
    assert {owner_of(pod) for pod in pods} == {("RayCluster", cluster["metadata"]["uid"])}
    assert sorted(kind_of(pod) for pod in pods) == [
        ("head", "headgroup"),
        ("worker", "student"),
        ("worker", "student"),
        ("worker", "teacher"),
    ]
    for pod in pods:
        labels = pod["metadata"]["labels"]
        assert labels["ray.io/cluster"] == cluster["metadata"]["name"]
        assert labels["ray.io/is-ray-node"] == "yes"
        # Ours win over KubeRay's where it lets them.
        assert labels["app.kubernetes.io/name"] == "limbeck"
        assert (labels["limbeck.dev/job"], labels["limbeck.dev/attempt"]) == ("emoji", "1")


def test_deleting_the_job_takes_everything_along(new_world: Callable[..., Any]) -> None:
    from limbeck.controller.names import JOBS

    world = new_world([RUNS_ON])
    world.start()
    world.wait(lambda: world.phase() == "Running")
    world.transport.delete(JOBS, "emoji", world.namespace)
    world.wait(world.is_gone)


def owner_of(item: Object) -> tuple[str, str]:
    (owner,) = item["metadata"]["ownerReferences"]
    assert owner["controller"]
    return owner["kind"], owner["uid"]


def kind_of(pod: Object) -> tuple[str, str]:
    labels = pod["metadata"]["labels"]
    return labels["ray.io/node-type"], labels["ray.io/group"]
