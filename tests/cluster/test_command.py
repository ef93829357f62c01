"""`testbed.py` as a command, where it starts nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from controlplane import ControlPlane

COMMAND = Path(__file__).with_name("testbed.py")


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(COMMAND), *arguments]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)


@pytest.mark.controlplane
@pytest.mark.skipif(shutil.which("go") is None, reason="needs Go to build kubectl")
def test_a_cluster_that_kubeconfig_names_is_taken_as_it_is(control_plane: ControlPlane) -> None:
    done = run("up", KUBECONFIG=str(control_plane.kubeconfig))
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"export KUBECONFIG={control_plane.kubeconfig}\n"
    assert "taken as it is: Server Version: v1.34" in done.stderr


@pytest.mark.parametrize("arguments", [("load",), ("up", "some.tar"), ("sideways",), ()])
def test_a_command_that_makes_no_sense_is_refused_with_the_usage(arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert "usage: testbed.py" in done.stderr


def test_a_cache_whose_path_is_too_long_for_sockets_is_refused_by_name(tmp_path: Path) -> None:
    done = run("status", LIMBECK_CACHE=str(tmp_path / ("x" * 60)))
    assert done.returncode != 0
    assert "LIMBECK_CACHE makes the folder" in done.stderr
