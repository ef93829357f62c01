"""The API server that other tests rely on: real, with RBAC, and gone afterwards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from limbeck.kube.connection import load_client
from limbeck.kube.errors import ForbiddenError, UnreachableError
from limbeck.kube.transport import Resource, Transport

if TYPE_CHECKING:
    from controlplane import ControlPlane

pytestmark = pytest.mark.controlplane

CONFIG_MAPS = Resource("", "v1", "configmaps")


def test_a_user_has_no_right_that_nobody_gave_him(control_plane: ControlPlane, namespace: str) -> None:
    with pytest.raises(ForbiddenError, match="nobody-special"):
        Transport(control_plane.client("nobody-special")).list(CONFIG_MAPS, namespace)


def test_the_kubeconfig_is_the_administrators(control_plane: ControlPlane, namespace: str) -> None:
    transport = Transport(load_client(str(control_plane.kubeconfig)))
    assert transport.create(CONFIG_MAPS, {"metadata": {"name": "made"}}, namespace)["metadata"]["name"] == "made"


def test_every_write_is_in_the_audit_log(control_plane: ControlPlane, namespace: str) -> None:
    transport = Transport(control_plane.client())
    transport.create(CONFIG_MAPS, {"metadata": {"name": "seen"}}, namespace)
    transport.list(CONFIG_MAPS, namespace)
    lines = [json.loads(line) for line in control_plane.audit_log.read_text().splitlines()]
    ours = [line["verb"] for line in lines if line["objectRef"].get("namespace") == namespace]
    assert ours == ["create"]


def test_objects_outlive_a_restart_and_no_process_outlives_the_stop(
    control_plane_binaries: dict[str, Path], tmp_path: Path
) -> None:
    from controlplane import ControlPlane

    plane = ControlPlane(tmp_path / "plane", control_plane_binaries)
    try:
        plane.start()
        transport = Transport(plane.client())
        transport.create(CONFIG_MAPS, {"metadata": {"name": "kept"}}, "default")
        plane.stop_api_server()
        with pytest.raises(UnreachableError, match="refused"):
            transport.get(CONFIG_MAPS, "kept", "default")
        plane.start_api_server()
        assert transport.get(CONFIG_MAPS, "kept", "default")["metadata"]["name"] == "kept"
        pids = plane.pids()
    finally:
        plane.stop()
    assert len(pids) == 2
    assert not [pid for pid in pids if psutil.pid_exists(pid)]


def test_assets_that_lack_a_binary_are_refused_by_name(tmp_path: Path) -> None:
    from controlplane import control_plane_binaries

    (tmp_path / "etcd").touch()
    with pytest.raises(FileNotFoundError, match="holds no kube-apiserver; correct or unset it"):
        control_plane_binaries(str(tmp_path))


def test_assets_are_used_instead_of_a_build(tmp_path: Path) -> None:
    from controlplane import control_plane_binaries

    for name in ("etcd", "kube-apiserver"):
        (tmp_path / name).touch()
    assert control_plane_binaries(str(tmp_path))["etcd"] == tmp_path / "etcd"
