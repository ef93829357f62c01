from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CLUSTER = Path(__file__).parent


def obstacles(has_images: bool, **environment: str) -> str:
    """What a process of its own finds in its way."""
    program = f"import obstacles; print(obstacles.obstacles({has_images}))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=CLUSTER, env=os.environ | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="the others are named to root only")
def test_programs_that_are_missing_are_named(tmp_path: Path) -> None:
    (tmp_path / "unshare").symlink_to("/bin/true")
    said = obstacles(True, PATH=str(tmp_path))
    assert "needs Go" in said
    assert "needs Debian" in said


@pytest.mark.skipif(os.geteuid() != 0, reason="the others are named to root only")
def test_a_machine_that_may_not_make_namespaces_is_told(tmp_path: Path) -> None:
    (tmp_path / "unshare").symlink_to("/bin/false")
    assert "may not make namespaces" in obstacles(True, PATH=f"{tmp_path}:{os.environ['PATH']}")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may")
def test_whoever_is_not_root_is_told() -> None:
    assert "needs root" in obstacles(True)
