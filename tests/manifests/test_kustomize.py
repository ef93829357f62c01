"""The manifests as the real kustomize builds them: they say what the chart says, and a real API server takes them."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

if TYPE_CHECKING:
    from controlplane import ControlPlane

Object = dict[str, Any]
Built = dict[tuple[str, str], Object]

pytestmark = pytest.mark.controlplane

CHART = Path(__file__).parent.parent.parent / "charts" / "limbeck"
NAMESPACE = "limbeck-system"
# What helm says about itself, and about a certificate of its own making.
OF_HELM = ("app.kubernetes.io/managed-by", "helm.sh/chart", "helm.sh/resource-policy", "limbeck.dev/tls-checksum")
# The chart's values that an overlay stands for.
VALUES_OF: dict[str, Object] = {
    "base": {},
    "overlays/dev": {
        "image": {"registry": "localhost", "tag": "dev", "pullPolicy": "Never"},
        "runtimeImage": {"registry": "localhost", "tag": "dev", "pullPolicy": "Never"},
        "operator": {
            "replicas": 1,
            "settings": {"logFormat": "Text"},
            "resources": {"requests": {"cpu": "20m", "memory": "96Mi"}},
        },
        "server": {"resources": {"requests": {"cpu": "20m", "memory": "96Mi"}}},
    },
    "overlays/prod": {
        "image": {"registry": "registry.example"},
        "runtimeImage": {"registry": "registry.example"},
        "operator": {"priorityClassName": "system-cluster-critical"},
        "server": {
            "replicas": 2,
            "priorityClassName": "system-cluster-critical",
            "database": {"secretName": "limbeck-database"},
            "tls": {"source": "CertManager"},
        },
        "metrics": {"monitors": {"enabled": True}},
        "networkPolicy": {
            "serverFrom": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
        },
    },
}


@pytest.fixture(scope="session")
def kustomize() -> Path:
    return _built("KUSTOMIZE")


@pytest.fixture(scope="session")
def helm() -> Path:
    return _built("HELM")


@pytest.fixture
def kubectl() -> Path:
    return _built("KUBECTL")


def _built(tool: str) -> Path:
    import gotools

    try:
        binary: Path = getattr(gotools, tool).build()
    except gotools.CannotBuildError as error:
        pytest.skip(str(error))
    return binary


@pytest.fixture
def build(kustomize: Path, manifests: Path) -> Callable[[str], str]:
    """`build("base")`: what kustomize makes of a folder."""

    def built(folder: str) -> str:
        done = subprocess.run(
            [str(kustomize), "build", str(manifests / folder)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return built


@pytest.fixture
def chart_says(helm: Path, tmp_path: Path) -> Callable[[Object], str]:
    """What helm makes of values."""

    def said(values: Object) -> str:
        file = tmp_path / "values.json"
        file.write_text(json.dumps(values), encoding="utf-8")
        command = [str(helm), "template", "limbeck", str(CHART), "--namespace", NAMESPACE, "--values", str(file)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    return said


def normalised(text: str) -> Built:
    """Objects by kind and name, without what the two are known to differ in, and without the order of named things."""
    found = {}
    for item in yaml.load_all(text, yaml.CSafeLoader):
        if not item or item["kind"] in ("Namespace", "Secret"):
            continue
        for metadata in (item["metadata"], item.get("spec", {}).get("template", {}).get("metadata", {})):
            for key in ("labels", "annotations"):
                kept = {name: text for name, text in metadata.get(key, {}).items() if name not in OF_HELM}
                metadata[key] = kept
        for container in item.get("spec", {}).get("template", {}).get("spec", {}).get("containers", []):
            container["env"] = {each["name"]: each for each in container["env"]}
        found[item["kind"], item["metadata"]["name"]] = item
    return found


@pytest.mark.parametrize("folder", VALUES_OF)
def test_chart_and_manifests_agree(
    build: Callable[[str], str], chart_says: Callable[[Object], str], folder: str
) -> None:
    tls = {"source": "Secret", "secretName": "limbeck-server-tls"}
    given = VALUES_OF[folder]
    values = {**given, "server": {"tls": tls, **given.get("server", {})}}
    ours, charts = normalised(build(folder)), normalised(chart_says(values))
    assert set(ours) == set(charts)
    for key in ours:
        # Helm merges maps of values, so that limits stay which an overlay's patch does not name either.
        assert ours[key] == charts[key], key


def test_the_chart_takes_the_values_of_the_argocd_application(
    chart_says: Callable[[Object], str], manifests: Path
) -> None:
    text = (manifests / "gitops" / "argocd" / "applications.yaml").read_text(encoding="utf-8")
    (limbeck,) = [each for each in yaml.safe_load_all(text) if each["metadata"]["name"] == "limbeck"]
    source = limbeck["spec"]["source"]
    assert manifests.parent / source["path"] == CHART
    rendered = normalised(chart_says(source["helm"]["valuesObject"]))
    # Not generated: that would be another certificate at each sync.
    assert ("Certificate", "limbeck-server") in rendered


def test_the_namespace_takes_only_restricted_pods(build: Callable[[str], str]) -> None:
    (namespace,) = [each for each in yaml.safe_load_all(build("base")) if each["kind"] == "Namespace"]
    assert namespace["metadata"]["name"] == NAMESPACE
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_the_persistence_component_claims_a_volume(
    build: Callable[[str], str], manifests: Path, tmp_path: Path
) -> None:
    relative = os.path.relpath(manifests, tmp_path.resolve())
    (tmp_path / "kustomization.yaml").write_text(
        f"resources: [{relative}/base]\ncomponents: [{relative}/components/persistence]\n", encoding="utf-8"
    )
    built = normalised(build(str(tmp_path)))
    volumes = built["Deployment", "limbeck-server"]["spec"]["template"]["spec"]["volumes"]
    assert {"name": "data", "persistentVolumeClaim": {"claimName": "limbeck-server"}} in volumes
    assert built["PersistentVolumeClaim", "limbeck-server"]["metadata"]["namespace"] == NAMESPACE


@pytest.fixture
def own_plane(control_plane_binaries: dict[str, Path], tmp_path: Path) -> Iterator[ControlPlane]:
    """An API server for one test: the manifests hold things that belong to no namespace."""
    from controlplane import ControlPlane

    plane = ControlPlane(tmp_path / "plane", control_plane_binaries)
    try:
        plane.start()
        yield plane
    finally:
        plane.stop()


@pytest.mark.parametrize("how", [["--server-side"], []], ids=["server-side", "client-side"])
def test_the_api_server_takes_all_of_it_and_the_samples(
    build: Callable[[str], str], kubectl: Path, own_plane: ControlPlane, manifests: Path, tmp_path: Path, how: list[str]
) -> None:
    """Twice: the second time nothing is left to change."""

    def kubectl_does(*arguments: str, given: str | None = None) -> str:
        done = subprocess.run(
            [str(kubectl), *arguments],
            env={"KUBECONFIG": str(own_plane.kubeconfig), "HOME": str(tmp_path), "PATH": os.environ["PATH"]},
            input=given,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        # A deprecated kind or an unknown field is a warning here.
        assert "arning" not in done.stderr
        return done.stdout

    overlay = build("overlays/dev")
    certificate = subprocess.run(
        [str(manifests / "server-certificate.sh"), NAMESPACE], capture_output=True, text=True, check=True
    ).stdout
    kubectl_does("apply", *how, "-f", "-", given=overlay)
    kubectl_does("apply", *how, "-f", "-", given=certificate)
    kubectl_does("wait", "--for=condition=Established", "crd/compressionjobs.limbeck.dev", "--timeout=60s")
    kubectl_does("apply", *how, "-f", str(manifests / "samples"))
    again = kubectl_does("apply", *how, "-f", "-", given=overlay).splitlines()
    # Server-side, kubectl does not tell whether anything changed.
    assert how or all(line.endswith("unchanged") for line in again), again
    jobs = kubectl_does("get", "compressionjobs", "-o", "name").split()
    assert len(jobs) == 5


def test_the_certificate_is_good_for_the_servers_names(manifests: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [str(manifests / "server-certificate.sh"), "elsewhere"], capture_output=True, text=True, check=True
    )
    secret = yaml.safe_load(done.stdout)
    assert secret["metadata"] == {"name": "limbeck-server-tls", "namespace": "elsewhere"}
    for name, text in secret["data"].items():
        (tmp_path / name).write_bytes(base64.b64decode(text))
    verified = subprocess.run(
        [
            *("openssl", "verify", "-x509_strict", "-purpose", "sslserver"),
            *("-verify_hostname", "limbeck-server.elsewhere.svc"),
            *("-CAfile", str(tmp_path / "ca.crt"), str(tmp_path / "tls.crt")),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert verified.returncode == 0, verified.stderr
