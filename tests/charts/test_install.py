"""A release on a real API server: installed, upgraded, removed; and the processes at work under its accounts."""

from __future__ import annotations

import base64
import json
import os
import signal
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from limbeck.controller.names import JOBS
from limbeck.kube.errors import InvalidError, NotFoundError
from limbeck.kube.transport import Resource, Transport

if TYPE_CHECKING:
    from controlplane import ControlPlane

Object = dict[str, Any]

pytestmark = pytest.mark.controlplane

NAMESPACE = "limbeck-system"
CRDS = Resource("apiextensions.k8s.io", "v1", "customresourcedefinitions", False)
DEPLOYMENTS = Resource("apps", "v1", "deployments")
EVENTS = Resource("events.k8s.io", "v1", "events")
LEASES = Resource("coordination.k8s.io", "v1", "leases")
NAMESPACES = Resource("", "v1", "namespaces", False)
PODS = Resource("", "v1", "pods")
SECRETS = Resource("", "v1", "secrets")
SAMPLE = Path(__file__).parent.parent.parent / "manifests" / "samples" / "smoke.yaml"
SECONDS = 60.0


@pytest.fixture
def admin(own_plane: ControlPlane) -> Transport:
    return Transport(own_plane.client())


@pytest.fixture
def release(request: pytest.FixtureRequest, cluster_helm: Any) -> Iterator[str]:
    """An installed release, the definition included; what it says is `release`'s value."""
    said = cluster_helm.install("limbeck", {"crds": {"keep": False}, **getattr(request, "param", {})})
    yield said
    cluster_helm.run("uninstall", "limbeck", "--namespace", NAMESPACE)


def test_the_notes_are_three_commands(release: str) -> None:
    notes = release[release.index("NOTES:") :]
    commands = [line.strip() for line in notes.splitlines() if line.startswith("  ")]
    assert [" ".join(command.split()[:2]) for command in commands] == ["kubectl apply", "kubectl get", "kubectl wait"]
    assert SAMPLE.parent.joinpath(commands[0].rsplit("/", 1)[1]).exists()


def test_an_upgrade_keeps_the_certificate_and_the_pods(release: str, cluster_helm: Any, admin: Transport) -> None:
    assert release
    secret = admin.get(SECRETS, "limbeck-server-tls", NAMESPACE)
    before = admin.get(DEPLOYMENTS, "limbeck-server", NAMESPACE)
    cluster_helm.install("limbeck", {"crds": {"keep": False}, "operator": {"replicas": 3}}, "upgrade")
    assert admin.get(SECRETS, "limbeck-server-tls", NAMESPACE)["data"] == secret["data"]
    after = admin.get(DEPLOYMENTS, "limbeck-server", NAMESPACE)
    assert after["spec"]["template"] == before["spec"]["template"]
    assert admin.get(DEPLOYMENTS, "limbeck-operator", NAMESPACE)["spec"]["replicas"] == 3


@pytest.mark.parametrize("release", [{"server": {"tls": {"extraDnsNames": ["limbeck.example"]}}}], indirect=True)
def test_an_upgrade_may_reuse_the_values(release: str, cluster_helm: Any, chart: Path) -> None:
    """Nothing that the templates keep for each other gets into them, a key least of all."""
    assert release
    done = cluster_helm.run("get", "values", "limbeck", "--namespace", NAMESPACE, "--output", "json")
    wanted = {"crds": {"keep": False}, "server": {"tls": {"extraDnsNames": ["limbeck.example"]}}}
    assert json.loads(done.stdout) == wanted
    done = cluster_helm.run("upgrade", "limbeck", str(chart), "--namespace", NAMESPACE, "--reuse-values")
    assert done.returncode == 0, done.stderr


def test_a_new_name_makes_a_new_certificate_and_new_pods(release: str, cluster_helm: Any, admin: Transport) -> None:
    assert release
    secret = admin.get(SECRETS, "limbeck-server-tls", NAMESPACE)
    before = admin.get(DEPLOYMENTS, "limbeck-operator", NAMESPACE)
    values = {"crds": {"keep": False}, "server": {"tls": {"extraDnsNames": ["limbeck.example"]}}}
    cluster_helm.install("limbeck", values, "upgrade")
    assert admin.get(SECRETS, "limbeck-server-tls", NAMESPACE)["data"] != secret["data"]
    after = admin.get(DEPLOYMENTS, "limbeck-operator", NAMESPACE)
    assert after["spec"]["template"] != before["spec"]["template"]


def test_the_pods_pass_the_restricted_profile(release: str, admin: Transport) -> None:
    """The API server's own admission judges them, in a namespace that takes no others."""
    assert release
    label = {"pod-security.kubernetes.io/enforce": "restricted"}
    admin.create(NAMESPACES, {"metadata": {"name": "restricted", "labels": label}})
    for name in ("limbeck-operator", "limbeck-server"):
        template = admin.get(DEPLOYMENTS, name, NAMESPACE)["spec"]["template"]
        # The one thing that we promise and the profile does not ask for.
        assert all(each["securityContext"]["readOnlyRootFilesystem"] for each in template["spec"]["containers"])
        admin.create(PODS, {"metadata": {"name": name}, "spec": template["spec"]}, "restricted")


def test_the_definition_outlives_the_release_that_is_told_so(cluster_helm: Any, admin: Transport) -> None:
    cluster_helm.install("limbeck")
    done = cluster_helm.run("uninstall", "limbeck", "--namespace", NAMESPACE)
    assert done.returncode == 0, done.stderr
    assert "compressionjobs.limbeck.dev" in done.stdout
    assert admin.get(CRDS, "compressionjobs.limbeck.dev")
    with pytest.raises(NotFoundError):
        admin.get(DEPLOYMENTS, "limbeck-operator", NAMESPACE)
    # The same release takes it back.
    cluster_helm.install("limbeck", {"crds": {"keep": False}})
    cluster_helm.run("uninstall", "limbeck", "--namespace", NAMESPACE)
    until(lambda: _is_gone(admin))


def test_the_definition_refuses_what_is_no_job(release: str, admin: Transport) -> None:
    assert release
    until(lambda: _is_served(admin))
    with pytest.raises(InvalidError, match="spec"):
        admin.create(
            JOBS, {"apiVersion": "limbeck.dev/v1alpha1", "kind": "CompressionJob", "metadata": {"name": "a"}}, "default"
        )


@pytest.mark.parametrize("release", [{}, {"watchNamespaces": ["default"]}], indirect=True)
def test_the_operator_does_its_work_with_the_rights_of_its_account(
    release: str, own_plane: ControlPlane, admin: Transport, tmp_path: Path
) -> None:
    """The process of the Deployment, with its environment and its account's token: it leads, writes and tells."""
    assert release
    deployment = admin.get(DEPLOYMENTS, "limbeck-operator", NAMESPACE)
    authority = admin.get(SECRETS, "limbeck-server-tls", NAMESPACE)["data"]["ca.crt"]
    (tmp_path / "ca.crt").write_bytes(base64.b64decode(authority))
    environment = _environment(deployment, {"/etc/limbeck/tls": str(tmp_path)})
    environment["LIMBECK_OPERATOR_PORT"] = "0"
    log = tmp_path / "operator.log"
    until(lambda: _is_served(admin))
    job = yaml.safe_load(SAMPLE.read_text(encoding="utf-8"))
    admin.create(JOBS, job, "default")
    with _process("limbeck.controller", environment, _kubeconfig(own_plane, "limbeck-operator", tmp_path), log):
        until(lambda: "Reconciling" in _condition_types(admin, "smoke"), log)
        until(lambda: _reasons(admin), log)
        lease = admin.get(LEASES, "limbeck-operator", NAMESPACE)
        assert lease["spec"]["holderIdentity"]
    assert "KubeRayAbsent" in _reasons(admin)
    assert "orbidden" not in log.read_text(encoding="utf-8")
    admin.delete(JOBS, "smoke", "default")


def test_the_server_starts_with_the_certificate_and_the_rights_of_its_account(
    release: str, own_plane: ControlPlane, admin: Transport, tmp_path: Path
) -> None:
    assert release
    deployment = admin.get(DEPLOYMENTS, "limbeck-server", NAMESPACE)
    for name, content in admin.get(SECRETS, "limbeck-server-tls", NAMESPACE)["data"].items():
        (tmp_path / name).write_bytes(base64.b64decode(content))
    environment = _environment(deployment, {"/etc/limbeck/tls": str(tmp_path)})
    port = _free_port()
    environment |= {
        "LIMBECK_SERVER_PORT": str(port),
        "LIMBECK_SERVER_HOST": "127.0.0.1",
        "LIMBECK_SERVER_DATABASE_URL": f"sqlite:///{tmp_path / 'server.sqlite'}",
    }
    log = tmp_path / "server.log"
    context = ssl.create_default_context(cafile=str(tmp_path / "ca.crt"))
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    with _process("limbeck.server", environment, _kubeconfig(own_plane, "limbeck-server", tmp_path), log):
        for probe in ("livenessProbe", "readinessProbe", "startupProbe"):
            path = container[probe]["httpGet"]["path"]
            until(lambda path=path: _status(f"https://localhost:{port}{path}", context) == 200, log)
        # 503 would say that it may not ask for a token review.
        post = f"https://localhost:{port}/api/v1/namespaces/default/jobs/smoke/progress"
        assert _status(post, context, token="of-nobody") == 401, log.read_text(encoding="utf-8")


def until(holds: Callable[[], Any], log: Path | None = None) -> None:
    """Asks again and again, for a minute at most."""
    deadline, pause = time.monotonic() + SECONDS, threading.Event()
    while not holds():
        said = log.read_text(encoding="utf-8")[-2000:] if log is not None and log.exists() else ""
        assert time.monotonic() < deadline, f"still not so; {said}"
        pause.wait(0.05)


def _is_served(admin: Transport) -> bool:
    try:
        admin.list(JOBS, limit=1)
    except NotFoundError:
        return False
    return True


def _is_gone(admin: Transport) -> bool:
    try:
        admin.get(CRDS, "compressionjobs.limbeck.dev")
    except NotFoundError:
        return True
    return False


def _condition_types(admin: Transport, job: str) -> list[str]:
    return [each["type"] for each in admin.get(JOBS, job, "default")["status"].get("conditions", [])]


def _reasons(admin: Transport) -> set[str]:
    return {each["reason"] for each in admin.list(EVENTS, "default")["items"]}


def _environment(deployment: Object, moved: dict[str, str]) -> dict[str, str]:
    """What the container of the Deployment is given, folders of its volumes replaced."""
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    found = {"PATH": os.environ["PATH"]}
    for variable in container["env"]:
        value = variable.get("value", NAMESPACE)  # the one field reference is the namespace
        for there, here in moved.items():
            value = value.replace(there, here)
        found[variable["name"]] = value
    return found


def _kubeconfig(plane: ControlPlane, account: str, folder: Path) -> Path:
    """For a token that the API server issues to the account."""
    path = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/{account}/token"
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    answer = plane.client().call_api(
        "POST",
        plane.address + path,
        header_params={"Content-Type": "application/json", "Authorization": "Bearer test-admin"},
        body=request,
    )
    token = json.loads(answer.response.read())["status"]["token"]
    text = plane.kubeconfig.read_text(encoding="utf-8")
    file = folder / f"{account}.kubeconfig"
    file.write_text(text.replace("test-admin", token), encoding="utf-8")
    return file


@contextmanager
def _process(module: str, environment: dict[str, str], kubeconfig: Path, log: Path) -> Iterator[None]:
    """Runs until the end of the block, then stops as the kubelet would have it."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", module],
            env={**environment, "KUBECONFIG": str(kubeconfig)},
            stdout=output,
            stderr=output,
        )
    try:
        yield
        process.send_signal(signal.SIGTERM)
        # uvicorn stops in order and then ends by the signal, as shells want it.
        assert process.wait(30) in (0, -signal.SIGTERM), log.read_text(encoding="utf-8")
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _free_port() -> int:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def _status(url: str, context: ssl.SSLContext, token: str = "") -> int:
    """What answers: to a GET, or to a POST with a token; 0 where nobody does."""
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"} if token else {}
    request = urllib.request.Request(url, data=b"{}" if token else None, headers=headers)
    try:
        with urllib.request.urlopen(request, context=context, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code
    except OSError:
        return 0
