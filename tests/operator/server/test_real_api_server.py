"""The server before a real API server, with no more rights than it is to have."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from limbeck.api.crd import custom_resource_definition
from limbeck.kube.errors import AlreadyExistsError
from limbeck.kube.events import EVENTS
from limbeck.kube.transport import APPLY, MERGE, Resource, Transport
from limbeck.server.cluster import JOBS, PODS

if TYPE_CHECKING:
    from controlplane import ControlPlane

pytestmark = pytest.mark.controlplane

USER = "limbeck-server"
AUDIENCE = "limbeck.dev/server"
RULES = [
    {"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"]},
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]},
    {"apiGroups": ["limbeck.dev"], "resources": ["compressionjobs"], "verbs": ["get"]},
    {"apiGroups": ["limbeck.dev"], "resources": ["compressionjobs/status"], "verbs": ["patch"]},
    {"apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create"]},
]
STARTED = ("run_started", {"job": "emoji", "steps": ["distil"], "epoch": 1, "attempt": 1})
RBAC = "rbac.authorization.k8s.io"


@pytest.fixture(scope="module")
def admin(control_plane: ControlPlane) -> Transport:
    """The administrator, after the CRD and the server's role were made."""
    transport = Transport(control_plane.client())
    ours = [
        (Resource("apiextensions.k8s.io", "v1", "customresourcedefinitions", False), custom_resource_definition()),
        (Resource(RBAC, "v1", "clusterroles", False), {"metadata": {"name": USER}, "rules": RULES}),
        (
            Resource(RBAC, "v1", "clusterrolebindings", False),
            {
                "metadata": {"name": USER},
                "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": USER},
                "subjects": [{"kind": "User", "name": USER, "apiGroup": RBAC}],
            },
        ),
    ]
    for resource, body in ours:
        try:
            transport.create(resource, body)
        except AlreadyExistsError:
            continue
    wait_until(lambda: str(transport.get(ours[0][0], "compressionjobs.limbeck.dev").get("status")), "NamesAccepted")
    wait_until(lambda: served_names(control_plane), "compressionjobs/status")
    return transport


@pytest.fixture
def token_of(control_plane: ControlPlane, admin: Transport, namespace: str) -> Callable[..., str]:
    """`token_of(job)`: makes the head pod of its first attempt, and a token that is bound to it."""

    def make(job: str, audience: str = AUDIENCE) -> str:
        name = f"{job}-1-x7k2p-head"
        owner = {
            "apiVersion": "ray.io/v1",
            "kind": "RayCluster",
            "name": f"{job}-1-x7k2p",
            "uid": "u",
            "controller": True,
        }
        labels = {"limbeck.dev/job": job, "limbeck.dev/attempt": "1"}
        metadata = {"name": name, "labels": labels, "ownerReferences": [owner]}
        spec = {"serviceAccountName": "runtime", "containers": [{"name": "ray-head", "image": "none"}]}
        uid = admin.create(PODS, {"metadata": metadata, "spec": spec}, namespace)["metadata"]["uid"]
        with contextlib.suppress(AlreadyExistsError):
            admin.create(Resource("", "v1", "serviceaccounts"), {"metadata": {"name": "runtime"}}, namespace)
        client = control_plane.client()
        bound = {"kind": "Pod", "apiVersion": "v1", "name": name, "uid": uid}
        _, url, headers, _, _ = client.param_serialize(
            "POST",
            f"/api/v1/namespaces/{namespace}/serviceaccounts/runtime/token",
            header_params={"Content-Type": "application/json"},
            auth_settings=["BearerToken"],
        )
        body = {"spec": {"audiences": [audience], "boundObjectRef": bound}}
        answer = json.loads(client.call_api("POST", url, header_params=headers, body=body).response.read())
        token: str = answer["status"]["token"]
        return token

    return make


@pytest.fixture
def make_job(admin: Transport, namespace: str, build_job: Callable[..., Any]) -> Callable[..., dict[str, Any]]:
    return lambda: admin.create(JOBS, build_job(), namespace)


def test_a_run_reports_and_the_status_shows_it_beside_the_operators_fields(
    control_plane: ControlPlane,
    admin: Transport,
    namespace: str,
    make_job: Any,
    token_of: Any,
    serve: Any,
    clock: Any,
    build_post: Any,
) -> None:
    make_job()
    operators = {"apiVersion": "limbeck.dev/v1alpha1", "kind": "CompressionJob", "metadata": {"name": "emoji"}}
    operators["status"] = {"attempt": 1, "phase": "Running"}
    admin.patch(
        JOBS, "emoji", operators, namespace, subresource="status", content_type=APPLY, field_manager="limbeck-operator"
    )
    served = serve(Transport(control_plane.client(USER)), patch_interval_seconds=0.1)
    reply = served.post(token_of("emoji"), build_post(1, STARTED), ns=namespace)
    assert (reply.status_code, reply.json()["wanted"]) == (200, "Run"), reply.text

    status = wait_for(admin, namespace, lambda status: "steps" in status)
    assert status["steps"] == [{"name": "distil", "state": "Pending", "progressPercent": 0, "message": ""}]
    assert (status["attempt"], status["phase"]) == (1, "Running")
    managed = admin.get(JOBS, "emoji", namespace)["metadata"]["managedFields"]
    [ours] = [entry for entry in managed if entry["manager"] == "limbeck-server"]
    assert (ours["operation"], ours["subresource"]) == ("Apply", "status")
    assert set(ours["fieldsV1"]["f:status"]) <= {"f:progress", "f:steps", "f:result"}


def test_what_people_should_know_is_among_the_events_of_the_job(
    control_plane: ControlPlane,
    admin: Transport,
    namespace: str,
    make_job: Any,
    token_of: Any,
    serve: Any,
    build_post: Any,
) -> None:
    uid = make_job()["metadata"]["uid"]
    served = serve(Transport(control_plane.client(USER)))
    finished = ("step_finished", {"step": "distil", "seconds": 41.0, "metrics": {"recall@10": 0.5}})
    assert served.post(token_of("emoji"), build_post(1, finished), ns=namespace).status_code == 200

    def noted() -> str:
        found = admin.list(EVENTS, namespace)["items"]
        return str([event["note"] for event in found if event["regarding"]["uid"] == uid])

    wait_until(noted, "step distil is complete: recall@10 0.5")


def test_a_token_for_another_audience_and_one_of_another_jobs_pod_are_refused(
    control_plane: ControlPlane, make_job: Any, token_of: Any, serve: Any, namespace: str, build_post: Any
) -> None:
    make_job()
    served = serve(Transport(control_plane.client(USER)))
    replies = [
        served.post(token_of("emoji", "https://kubernetes.default.svc"), build_post(1), ns=namespace),
        served.post(token_of("other"), build_post(1), ns=namespace),
        served.post("made-up", build_post(1), ns=namespace),
    ]
    assert [reply.status_code for reply in replies] == [401, 403, 401]


def test_a_job_made_anew_under_the_same_name_keeps_its_own_status(
    control_plane: ControlPlane,
    admin: Transport,
    namespace: str,
    make_job: Any,
    serve: Any,
    token_of: Any,
    clock: Any,
    build_post: Any,
) -> None:
    make_job()
    token = token_of("emoji")
    served = serve(Transport(control_plane.client(USER)), patch_interval_seconds=0.1, job_cache_seconds=3600)
    served.post(token, build_post(1, STARTED), ns=namespace)
    wait_for(admin, namespace, lambda status: "steps" in status)
    admin.delete(JOBS, "emoji", namespace)
    # Once while there is none of that name, and once while there is another.
    for sequence in (2, 3):
        assert served.post(token, build_post(sequence, STARTED), ns=namespace).status_code == 200
        clock.advance(1)
        wait_until(lambda: served.client.get("/metrics").text, f'patches_total{{outcome="gone"}} {sequence - 1}.0')
        if sequence == 2:
            make_job()
    assert "steps" not in admin.get(JOBS, "emoji", namespace)["status"]


def test_a_suspended_job_asks_its_run_for_a_checkpoint(
    control_plane: ControlPlane,
    admin: Transport,
    namespace: str,
    make_job: Any,
    token_of: Any,
    serve: Any,
    build_post: Any,
) -> None:
    make_job()
    admin.patch(JOBS, "emoji", {"spec": {"suspend": True}}, namespace, content_type=MERGE)
    served = serve(Transport(control_plane.client(USER)))
    assert served.post(token_of("emoji"), build_post(1), ns=namespace).json()["wanted"] == "Checkpoint"


def served_names(control_plane: ControlPlane) -> str:
    """What the API server serves of our group by now."""
    client = control_plane.client()
    _, url, headers, _, _ = client.param_serialize(
        "GET", "/apis/limbeck.dev/v1alpha1", header_params={}, auth_settings=["BearerToken"]
    )
    return str(client.call_api("GET", url, header_params=headers).response.read())


def wait_for(admin: Transport, namespace: str, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The status of the job once it is as wanted; told by a watch."""
    found = admin.get(JOBS, "emoji", namespace)
    if wanted(found.get("status", {})):
        return dict(found["status"])
    version = found["metadata"]["resourceVersion"]
    with admin.watch(JOBS, namespace, resource_version=version, timeout_seconds=30) as stream:
        for event in stream:
            status = event["object"].get("status", {})
            if event["type"] == "MODIFIED" and wanted(status):
                return dict(status)
    raise AssertionError("the status did not become as wanted")


def wait_until(text: Callable[[], str], wanted: str) -> None:
    """Each look is a request, so this is no busy loop."""
    for _ in range(1000):
        if wanted in text():
            return
    raise AssertionError(f"{wanted} did not come in {text()}")
