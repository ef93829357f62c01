"""The whole test cluster from outside: what a job will need of it, seen from a pod."""

from __future__ import annotations

import json
import urllib.parse
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import obstore
import pytest
from obstore.store import S3Store

if TYPE_CHECKING:
    from kubectl import Kubectl
    from testbed import Testbed

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(3600)]


@pytest.fixture
def kubectl(testbed: Testbed) -> Kubectl:
    return testbed.kubectl()


@pytest.fixture
def namespace(kubectl: Kubectl) -> Iterator[str]:
    """One under the strictest rules for pods, removed afterwards."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    kubectl.apply([{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}])
    yield name
    kubectl.run("delete", "namespace", name, "--wait=false")


@pytest.fixture
def shell(kubectl: Kubectl, namespace: str) -> Callable[[str], str]:
    """Runs a line of shell in a pod without rights, and gives its output."""
    from testbed import busybox_image

    security = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    container = {
        "name": "shell",
        "image": busybox_image().name,
        "imagePullPolicy": "Never",
        "securityContext": security,
    }
    profile = {"runAsNonRoot": True, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}}
    spec = {"containers": [container], "securityContext": profile, "terminationGracePeriodSeconds": 0}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "shell", "namespace": namespace}, "spec": spec}
    # The namespace's own service account comes a moment after the namespace.
    kubectl.run("--namespace", namespace, "wait", "--for=create", "serviceaccount/default", "--timeout=30s")
    kubectl.apply([pod])
    kubectl.run("--namespace", namespace, "wait", "--for=condition=Ready", "pod/shell", "--timeout=60s")
    return lambda line: kubectl.run("--namespace", namespace, "exec", "shell", "--", "sh", "-c", line)


def test_the_node_is_ready_and_every_pod_too(kubectl: Kubectl) -> None:
    kubectl.run("wait", "--for=condition=Ready", "nodes", "--all", "--timeout=5s")
    kubectl.run("wait", "--for=condition=Ready", "pods", "--all", "--all-namespaces", "--timeout=30s")


def test_a_pod_finds_services_by_name_and_nothing_of_the_world(shell: Callable[[str], str]) -> None:
    assert "10.96.0.1" in shell("nslookup kubernetes.default.svc.cluster.local")
    assert "NXDOMAIN" in shell("nslookup example.org 2>&1 || true")


def test_a_pod_cannot_leave_the_machine(shell: Callable[[str], str]) -> None:
    import network

    before = network.rejected_packets()
    assert "cut off" in shell("nc -w 2 192.0.2.77 80 </dev/null || echo cut off")
    assert network.rejected_packets() > before


def test_what_the_machine_puts_a_pod_gets(testbed: Testbed, shell: Callable[[str], str]) -> None:
    access = testbed.s3
    store = S3Store(
        access.bucket,
        endpoint=access.endpoint,
        region=access.region,
        access_key_id=access.access_key,
        secret_access_key=access.secret_key,
        client_options={"allow_http": True},
    )
    key = uuid.uuid4().hex
    store.put(key, b"seen in a pod")
    address = obstore.sign(store, "GET", key, timedelta(minutes=5))
    assert shell(f"wget -q -O - '{address}'") == "seen in a pod"
    putting = obstore.sign(store, "PUT", f"{key}-back", timedelta(minutes=5))
    line = urllib.parse.urlsplit(putting)
    head = (f"PUT {line.path}?{line.query} HTTP/1.1", f"Host: {line.netloc}", "Connection: close", "Content-Length: 4")
    request = "\\r\\n".join([*head, "", "back"]).replace("%", "%%")
    host, _, port = line.netloc.partition(":")
    assert "200 OK" in shell(f"printf '{request}' | nc -w 5 {host} {port}")
    assert bytes(store.get(f"{key}-back").bytes()) == b"back"


def test_the_s3_server_has_a_name_in_the_cluster(shell: Callable[[str], str]) -> None:
    assert "403 Forbidden" in shell("wget -S -O - http://s3.testbed.svc:7070/limbeck 2>&1 || true")


def test_prometheus_finds_a_pod_that_asks_to_be_scraped(testbed: Testbed) -> None:
    up = 'up{namespace="kube-system", job="pods"} == 1'
    testbed.daemons.wait("prometheus", 30, "scraped pod", lambda: bool(testbed.prometheus.query(up)))
    assert {each.labels["pod"].partition("-")[0] for each in testbed.prometheus.query(up)} == {"coredns"}


def test_a_privileged_pod_is_refused_where_the_namespace_is_restricted(kubectl: Kubectl, namespace: str) -> None:
    from kubectl import KubectlError

    container = {"name": "c", "image": "localhost/x", "securityContext": {"privileged": True}}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": namespace}}
    with pytest.raises(KubectlError, match='violates PodSecurity "restricted'):
        kubectl.apply([pod | {"spec": {"containers": [container]}}])


def test_a_rayjob_is_taken_up_by_the_operator(kubectl: Kubectl, namespace: str) -> None:
    container = {"name": "ray-head", "image": "localhost/no-such-image", "imagePullPolicy": "Never"}
    head = {"rayStartParams": {}, "template": {"spec": {"containers": [container]}}}
    spec = {"entrypoint": "true", "submissionMode": "SidecarMode", "rayClusterSpec": {"headGroupSpec": head}}
    job = {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": "some", "namespace": namespace}}
    kubectl.apply([job | {"spec": spec}])
    kubectl.run(
        "--namespace", namespace, "wait", "rayjob/some", "--for=jsonpath={.status.rayClusterName}", "--timeout=30s"
    )


def test_a_rayjob_with_a_worker_succeeds(testbed: Testbed, kubectl: Kubectl, namespace: str) -> None:
    image = "localhost/limbeck-runtime:dev"
    if image not in testbed.containerd.image_names():
        pytest.skip(f"needs {image}: python tests/cluster/testbed.py images")
    # KubeRay 1.6 gives the submitter in the head's pod no security context, which `restricted` refuses.
    kubectl.run("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=baseline", "--overwrite")
    code = "import ray; ray.init(); print(ray.get([ray.remote(lambda n: n * n).remote(n) for n in range(4)]))"
    cluster = {
        "rayVersion": "2.60.0",
        "headGroupSpec": ray_group("ray-head", image, cpus=0, memory="1Gi"),
        "workerGroupSpecs": [
            {"groupName": "one", "replicas": 1, "minReplicas": 1, "maxReplicas": 1}
            | ray_group("ray-worker", image, cpus=1, memory="512Mi")
        ],
    }
    spec = {"entrypoint": f'python -c "{code}"', "submissionMode": "SidecarMode", "rayClusterSpec": cluster}
    job = {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": "squares", "namespace": namespace}}
    kubectl.apply([job | {"spec": spec | {"shutdownAfterJobFinishes": True}}])
    succeeded = "--for=jsonpath={.status.jobStatus}=SUCCEEDED"
    kubectl.run("--namespace", namespace, "wait", "rayjob/squares", succeeded, "--timeout=300s", seconds=310)


def ray_group(name: str, image: str, cpus: int, memory: str) -> dict[str, Any]:
    """Probed each second, as Ray's own probes would wait ten."""
    probe = {"httpGet": {"path": "/api/healthz", "port": 52365}, "periodSeconds": 1, "failureThreshold": 120}
    container = {
        "name": name,
        "image": image,
        "imagePullPolicy": "Never",
        "env": [{"name": "HOME", "value": "/tmp"}],
        "resources": {"requests": {"cpu": "100m", "memory": memory}, "limits": {"memory": "2Gi"}},
        "readinessProbe": probe,
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    profile = {"runAsNonRoot": True, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}}
    start = {"num-cpus": str(cpus), "object-store-memory": "100000000", "disable-usage-stats": "true"}
    return {"rayStartParams": start, "template": {"spec": {"securityContext": profile, "containers": [container]}}}


def test_the_audit_log_says_who_wrote(testbed: Testbed, namespace: str) -> None:
    lines = [json.loads(line) for line in testbed.audit_log.read_text().splitlines()]
    made = [
        each for each in lines if each["verb"] in ("create", "patch") and each["objectRef"].get("name") == namespace
    ]
    assert [each["user"]["username"] for each in made] == ["admin"]


def test_an_archive_is_imported_once_and_again_when_it_differs(testbed: Testbed, tmp_path: Path) -> None:
    from imagearchive import Image, write_archive

    name = f"localhost/test-{uuid.uuid4().hex[:8]}:dev"
    for content, expected in (("x", [name]), ("x", []), ("y", [name]), ("x", [name])):
        (tmp_path / "program").write_text(content)
        write_archive(Image(name, {"/program": tmp_path / "program"}), tmp_path / "image.tar")
        assert testbed.load(tmp_path / "image.tar") == expected
    assert name in testbed.containerd.image_names()
