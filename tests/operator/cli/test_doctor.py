"""`limbeck doctor`: what it concludes from what it sees, and from what it may not see."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from limbeck.api.crd import custom_resource_definition
from limbeck.cli import checks
from limbeck.cli.checks import State

CRD_PATH = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
LIMBECK_CRD = f"{CRD_PATH}/compressionjobs.limbeck.dev"
RAY_CRD = f"{CRD_PATH}/rayjobs.ray.io"
LEASES = "/apis/coordination.k8s.io/v1/leases"
DEPLOYMENTS = "/apis/apps/v1/deployments"
REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
JOBS = "/apis/limbeck.dev/v1alpha1/namespaces/vision/compressionjobs"
Object = dict[str, Any]


@pytest.fixture
def tell_list(api, answer) -> Callable[..., None]:
    def tell(path: str, kind: str, *items: Object) -> None:
        body = {"apiVersion": "v1", "kind": f"{kind}List", "metadata": {"resourceVersion": "1"}, "items": list(items)}
        api.tell(path, answer(body=body))

    return tell


def ray_crd(cluster_spec: Object) -> Object:
    spec = {"properties": {"rayClusterSpec": cluster_spec}}
    schema = {"openAPIV3Schema": {"properties": {"spec": spec}}}
    return {"metadata": {"name": "rayjobs.ray.io"}, "spec": {"versions": [{"name": "v1", "schema": schema}]}}


def deployment(name: str, image: str = "x", **status: int) -> Object:
    template = {"spec": {"containers": [{"image": image}]}}
    return {"metadata": {"name": name, "namespace": "limbeck-system"}, "spec": {"template": template}, "status": status}


@pytest.mark.parametrize(
    ("served", "state", "words"),
    [
        (ray_crd({"properties": {"authOptions": {}}}), State.WRONG, "knows no authOptions"),
        (ray_crd({"properties": {"authOptions": {"type": "object"}}}), State.OK, "quay.example/kuberay:v1.6.2"),
        (ray_crd({}), State.WRONG, "serves no RayJob v1"),
        (None, State.WRONG, "no RayJob CRD"),
        (403, State.UNKNOWN, "not allowed to look"),
    ],
)
def test_kuberay_must_be_there_and_new_enough(api, cluster, answer, tell_list, served, state, words) -> None:
    if served == 403:
        api.status(RAY_CRD, 403, "Forbidden")
    elif served is not None:
        api.tell(RAY_CRD, answer(body=served))
    tell_list(DEPLOYMENTS, "Deployment", deployment("kuberay-operator", "quay.example/kuberay:v1.6.2"))
    finding = checks.check_kuberay(cluster)
    assert (finding.state, words in finding.found) == (state, True)


@pytest.mark.parametrize(
    ("age", "holder", "state", "words"),
    [
        (1, "pod-a", State.OK, "held by pod-a"),
        (60, "pod-a", State.WRONG, "not held since"),
        (1, "", State.WRONG, "not held since"),
        (None, "", State.WRONG, "nobody ever held it"),
    ],
)
def test_a_lease_counts_while_it_is_fresh(cluster, tell_list, age, holder, state, words) -> None:
    items = []
    if age is not None:
        renewed = (datetime.now(UTC) - timedelta(seconds=age)).isoformat()
        spec = {"holderIdentity": holder, "renewTime": renewed, "leaseDurationSeconds": 15}
        items = [{"metadata": {"name": "limbeck-operator", "namespace": "limbeck-system"}, "spec": spec}]
    tell_list(LEASES, "Lease", *items)
    finding = checks.check_lease(cluster)
    assert (finding.state, words in finding.found) == (state, True)


def test_an_operator_without_a_ready_pod_is_wrong(cluster, tell_list) -> None:
    tell_list(DEPLOYMENTS, "Deployment", deployment("limbeck-operator", replicas=2))
    finding = checks.check_operator(cluster)
    assert (finding.state, finding.found) == (State.WRONG, "limbeck-system/limbeck-operator has no ready pod")


def test_who_may_not_read_crds_learns_from_a_list_whether_jobs_are_served(api, cluster, tell_list) -> None:
    api.status(LIMBECK_CRD, 403, "Forbidden")
    assert checks.check_crd(cluster).state is State.WRONG
    tell_list(JOBS, "CompressionJob")
    assert checks.check_crd(cluster).found == "installed; not allowed to compare its version"


@pytest.mark.parametrize(("established", "state"), [("True", State.OK), ("False", State.WRONG)])
def test_a_crd_counts_once_it_is_established(api, cluster, answer, established, state) -> None:
    crd = custom_resource_definition()
    crd["status"] = {"conditions": [{"type": "Established", "status": established}]}
    api.tell(LIMBECK_CRD, answer(body=crd))
    assert checks.check_crd(cluster).state is state


def test_each_right_is_asked_for_in_the_namespace_and_the_missing_ones_are_named(api, cluster, answer) -> None:
    api.tell(REVIEWS, answer(body={"status": {"allowed": True}}), answer(body={"status": {"allowed": False}}))
    finding = checks.check_rights(cluster)
    assert finding.state is State.WRONG
    assert "get compressionjobs" not in finding.found
    assert "get pods/log" in finding.found
    asked = [request.body["spec"]["resourceAttributes"] for request in api.requests]
    assert {attributes["namespace"] for attributes in asked} == {"vision"}
    assert {"verb": "get", "group": "", "resource": "pods", "subresource": "log", "namespace": "vision"} in asked


@pytest.mark.parametrize(
    ("phase", "state", "words"),
    [
        ("Running", State.OK, "Running (RayJobCreated)"),
        ("Pending", State.WRONG, "SecretNotFound: Secret s3 is not in namespace vision"),
        ("Failed", State.WRONG, "GateFailed: recovery is 81.2"),
        (None, State.WRONG, "no operator has looked at it"),
    ],
)
def test_a_job_is_well_unless_somebody_must_do_something(cluster, build_stored, phase, state, words) -> None:
    finding = checks.check_job(cluster, build_stored(phase))
    assert (finding.state, words in finding.found) == (state, True)


def test_reasons_to_act_are_the_operators_own() -> None:
    from limbeck.controller import names

    known = {value for name, value in vars(names).items() if name.startswith("REASON_")}
    assert known >= checks._BLOCKED


def test_a_server_that_answers_is_well_and_one_that_does_not_is_not(api, cluster, answer) -> None:
    api.tell("/readyz", answer(body=b"ok"))
    assert checks.check_server(cluster, api.url, None).state is State.OK
    assert checks.check_server(cluster, "http://127.0.0.1:1", None).state is State.WRONG
    assert checks.check_server(cluster, "ftp://x", None).found.startswith("--server must start with https://")


def test_without_its_address_the_servers_deployment_tells_how_it_is(cluster, tell_list) -> None:
    tell_list(DEPLOYMENTS, "Deployment")
    tell_list(DEPLOYMENTS, "Deployment", deployment("limbeck-server", replicas=1, readyReplicas=1))
    assert checks.check_server(cluster, None, None).state is State.UNKNOWN
    finding = checks.check_server(cluster, None, None)
    assert (finding.state, finding.found) == (State.OK, "limbeck-system/limbeck-server, 1 of 1 ready")


def test_of_a_cluster_that_refuses_us_nothing_else_is_said(api, limbeck) -> None:
    api.status("/version", 401, "Unauthorized")
    result = limbeck("doctor", kubeconfig=api.kubeconfig)
    assert result.exit_code == 1
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["wrong"]
    assert "told Unauthorized" in result.stdout
    assert "; log in again, or see --context" in result.stdout


def test_a_check_that_stumbles_is_a_finding_and_stops_no_other(api, limbeck, answer) -> None:
    api.tell("/version", answer(body={"gitVersion": "v1.34.4"}))
    api.status(LEASES, 500, "InternalError")
    api.tell(REVIEWS, answer(body={"status": {"allowed": True}}))
    result = limbeck("doctor", kubeconfig=api.kubeconfig)
    assert result.exit_code == 1
    assert "wrong    operator's lease: the API server has trouble of its own" in result.stdout
    assert "ok       your rights" in result.stdout


def test_machines_get_the_findings_as_data(api, limbeck) -> None:
    api.status("/version", 401, "Unauthorized")
    result = limbeck("doctor", "-o", "json", kubeconfig=api.kubeconfig)
    assert '"state": "wrong"' in result.stdout
