"""KubeRay as it comes out of its own module."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from controlplane import ControlPlane

pytestmark = [pytest.mark.controlplane, pytest.mark.skipif(shutil.which("go") is None, reason="needs Go")]


def test_the_crds_are_kuberays_own() -> None:
    import kuberay

    names = {crd["metadata"]["name"] for crd in kuberay.crds()}
    assert {"rayclusters.ray.io", "rayjobs.ray.io", "rayservices.ray.io"} <= names


@pytest.fixture
def own_plane(control_plane_binaries: dict[str, Path], tmp_path: Path) -> Iterator[ControlPlane]:
    """Not the session's: other tests want to find that one without KubeRay."""
    from controlplane import ControlPlane

    plane = ControlPlane(tmp_path / "plane", control_plane_binaries)
    try:
        plane.start()
        yield plane
    finally:
        plane.stop()


def test_a_real_api_server_takes_the_crds_and_then_rayjobs(own_plane: ControlPlane) -> None:
    import kuberay
    from kubectl import Kubectl

    kubectl = Kubectl(own_plane.kubeconfig)
    kuberay.install_crds(kubectl)
    job = {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": "some", "namespace": "default"},
        "spec": {"entrypoint": "true", "submissionMode": "SidecarMode"},
    }
    kubectl.apply([job])
    assert kubectl.get("rayjob", "some", "--namespace", "default")["spec"]["submissionMode"] == "SidecarMode"
