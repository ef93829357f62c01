"""SIGKILL at each operation on the disk that a run's checkpoints make."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def campaign(folder: Path, stride: int) -> Any:
    script = Path(__file__).with_name("kill_campaign.py")
    done = subprocess.run(
        [sys.executable, str(script), str(folder), str(stride), "1", "5"],
        check=True,
        capture_output=True,
        timeout=240,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    return json.loads(done.stdout)


def test_a_run_killed_while_it_writes_ends_with_the_same_bits_and_no_debris(tmp_path: Path) -> None:
    found = campaign(tmp_path, stride=9)
    assert found["wrong"] == []
    assert found["points"] >= 15


@pytest.mark.slow
def test_a_run_killed_at_every_operation_ends_with_the_same_bits_and_no_debris(tmp_path: Path) -> None:
    found = campaign(tmp_path, stride=1)
    assert found["wrong"] == []
    assert found["points"] > 2 * found["operations"]
