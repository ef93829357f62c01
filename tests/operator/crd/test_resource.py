"""The CRD as a resource of a real API server: how it is applied, explained, listed, and what a fresh status says."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from limbeck import names
from limbeck.api.crd import custom_resource_definition

pytestmark = pytest.mark.controlplane

Object = dict[str, Any]
CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
# The API server takes no more in all annotations together.
MOST_ANNOTATED = 256 * 1024
MERGE = "application/merge-patch+json"
# Explained by Kubernetes, not by us.
THEIRS = {".apiVersion", ".kind", ".metadata"}


def test_it_is_applied_by_the_client_and_then_by_the_server(
    new_api: Callable[..., Any], control_plane_binaries: dict[str, Path], tmp_path: Path
) -> None:
    from controlplane import ControlPlane

    crd = custom_resource_definition()
    as_kubectl_keeps_it = json.dumps(crd, separators=(",", ":")) + "\n"
    assert len(as_kubectl_keeps_it) < MOST_ANNOTATED
    plane = ControlPlane(tmp_path / "plane", control_plane_binaries)
    try:
        plane.start()
        api = new_api(plane)
        applied = custom_resource_definition()
        applied["metadata"]["annotations"] = {LAST_APPLIED: as_kubectl_keeps_it}
        assert api.ask("POST", CRDS, applied).status == 201
        served = api.wait_until_served()
        assert served["spec"]["versions"][0]["schema"] == crd["spec"]["versions"][0]["schema"]
        assert [each for each in served["status"]["conditions"] if each["type"] == "NonStructuralSchema"] == []
        assert api.apply_crd(crd).status == 200
    finally:
        plane.stop()


def _fields(schema: Object, path: str = "") -> Iterator[tuple[str, Object]]:
    for name, child in schema.get("properties", {}).items():
        yield f"{path}.{name}", child
        inner = child.get("items", child)
        yield from _fields(inner, f"{path}.{name}")


def _published(api: Any) -> Object:
    """The schema as the API server publishes it, which is what `kubectl explain` shows; that takes it a moment."""
    deadline = time.monotonic() + 30
    while True:
        answer = api.ask("GET", f"/openapi/v3/apis/{names.API_VERSION}")
        for name, schema in answer.body.get("components", {}).get("schemas", {}).items():
            if name.endswith(f".{names.KIND}"):
                return schema
        assert time.monotonic() < deadline, "the API server does not publish the schema"
        time.sleep(0.05)


def test_every_field_explains_itself_with_an_example(api: Any) -> None:
    published = dict(_fields(_published(api)))
    ours = dict(_fields(custom_resource_definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]))
    assert ours.keys() <= published.keys()
    for path in ours.keys() - THEIRS:
        description = published[path].get("description", "")
        assert "e.g. " in description, path
        assert description.endswith("."), path
    print(f"{len(ours.keys() - THEIRS)} fields, each explained with an example")


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl")
def test_kubectl_explains_every_field(api: Any, control_plane: Any, tmp_path: Path) -> None:
    def explain(*arguments: str) -> str:
        command = ["kubectl", f"--kubeconfig={control_plane.kubeconfig}", f"--cache-dir={tmp_path}", "explain"]
        return subprocess.run([*command, *arguments], check=True, capture_output=True, text=True).stdout

    _published(api)
    text = explain("compressionjobs.spec.pipeline.distil.temperature")
    assert "Softness of the compared distributions" in text
    everything = explain("compressionjobs", "--recursive")
    ours = dict(_fields(custom_resource_definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]))
    for path in ours:
        assert f" {path.rpartition('.')[2]}\t" in everything, path


@pytest.fixture
def job(api: Any, jobs_path: str, build_job: Callable[..., Object]) -> Object:
    answer = api.ask("POST", jobs_path, build_job())
    assert answer.status == 201, answer.message
    return answer.body


def test_the_status_of_a_new_job_speaks_of_no_generation(job: Object) -> None:
    assert job["status"] == {"observedGeneration": -1}
    assert job["metadata"]["generation"] == 1


def test_spec_and_status_are_written_apart(api: Any, jobs_path: str, job: Object) -> None:
    change = {"spec": {"suspend": True}, "status": {"observedGeneration": 1, "phase": "Running"}}
    through_status = api.ask("PATCH", f"{jobs_path}/emoji/status", change, content_type=MERGE).body
    assert through_status["status"]["phase"] == "Running"
    assert "suspend" not in through_status["spec"]
    assert through_status["metadata"]["generation"] == 1
    change["status"]["phase"] = "Failed"
    through_main = api.ask("PATCH", f"{jobs_path}/emoji", change, content_type=MERGE).body
    assert through_main["spec"]["suspend"] is True
    assert through_main["status"]["phase"] == "Running"
    assert through_main["metadata"]["generation"] == 2


def test_a_status_of_another_shape_is_refused(api: Any, jobs_path: str, job: Object) -> None:
    answer = api.ask("PATCH", f"{jobs_path}/emoji/status", {"status": {"phase": "Dancing"}}, content_type=MERGE)
    assert answer.status == 422
    assert 'status.phase: Unsupported value: "Dancing"' in answer.message


def test_the_printed_columns_tell_the_state_and_wide_ones_the_outcome(api: Any, jobs_path: str, job: Object) -> None:
    condition = {"lastTransitionTime": "2026-11-24T06:00:00Z", "reason": "Completed"}
    status = {
        "observedGeneration": 1,
        "phase": "Complete",
        "attempt": 2,
        "rayJob": "emoji-2",
        "conditions": [
            {"type": "Reconciling", "status": "False", "message": "over", **condition},
            {"type": "Complete", "status": "True", "message": "the result is there", **condition},
        ],
        "progress": {"percent": 40, "step": "distil", "etaSeconds": 340},
        "result": {"sizeRatio": 8.1, "recoveryPercent": 98.2},
    }
    answer = api.ask("PATCH", f"{jobs_path}/emoji/status", {"status": status}, content_type=MERGE)
    assert answer.status == 200, answer.message
    table = api.ask("GET", jobs_path, accept="application/json;as=Table;v=v1;g=meta.k8s.io").body
    (row,) = table["rows"]
    shown = dict(zip((column["name"] for column in table["columnDefinitions"]), row["cells"], strict=True))
    assert shown.pop("Age")
    assert shown == {
        "Name": "emoji", "Status": "Complete", "Step": "distil", "Progress": 40, "ETA": 340,
        "Ratio": 8.1, "Recovery": 98.2, "Attempt": 2, "RayJob": "emoji-2", "Message": "the result is there",
    }  # fmt: skip
    wide = [column["name"] for column in table["columnDefinitions"] if column["priority"]]
    assert wide == ["Ratio", "Recovery", "Attempt", "RayJob", "Message"]


def test_it_is_found_by_its_short_name_and_its_category(api: Any) -> None:
    (resource,) = [
        each for each in api.ask("GET", f"/apis/{names.API_VERSION}").body["resources"] if each["name"] == names.PLURAL
    ]
    assert (resource["shortNames"], resource["categories"]) == (["cpj"], ["limbeck"])
    assert resource["namespaced"] is True
