"""Two and three workers compute what one computes: gradients, whole runs, stopping, going on from memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

Found = dict[int, dict[str, list[list[float]]]]

GRADIENTS = (
    "separate",
    "separate in parts",
    "coupled",
    "coupled in parts",
    "unused parameters",
    "loss with weights",
    "counted",
)
RUNS = ("trace", "stopped", "from memory", "sharded", "sharded, stopped")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    folder = tmp_path_factory.mktemp("workers")
    script = Path(__file__).with_name("forked_workers.py")
    subprocess.run(
        [sys.executable, "-W", "error", str(script), str(folder)],
        check=True,
        timeout=240,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    return {world_size: json.loads((folder / f"{world_size}.json").read_text()) for world_size in (1, 2, 3)}


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("case", GRADIENTS)
def test_gradients_of_several_workers_are_those_of_one(found: Found, world_size: int, case: str) -> None:
    """Each of the epoch's batches, of which one is uneven over workers and one has fewer samples than workers."""
    for step, (several, one) in enumerate(zip(found[world_size][case], found[1][case], strict=True)):
        np.testing.assert_allclose(several, one, rtol=0, atol=1e-9, err_msg=f"step {step}")


@pytest.mark.parametrize("case", ["separate", "coupled"])
def test_gradients_of_a_batch_in_parts_are_those_of_the_whole(found: Found, case: str) -> None:
    for in_parts, whole in zip(found[1][f"{case} in parts"], found[1][case], strict=True):
        np.testing.assert_allclose(in_parts, whole, rtol=0, atol=1e-9)


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("case", RUNS)
def test_runs_of_several_workers_end_as_that_of_one(found: Found, world_size: int, case: str) -> None:
    for several, one in zip(found[world_size][case], found[1]["trace"], strict=True):
        np.testing.assert_allclose(several, one, rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", ["stopped", "from memory"])
def test_a_run_that_goes_on_has_the_bits_of_one_that_was_never_stopped(found: Found, case: str) -> None:
    for world_size in (1, 2, 3):
        assert found[world_size][case] == found[world_size]["trace"]
