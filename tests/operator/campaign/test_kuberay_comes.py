"""KubeRay's kinds are taken out of the API server, and come back, under an operator that runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from crds import install_crd, remove_crd
from kuberay import crds
from mimic import RUNS_ON, SUCCEEDED

pytestmark = [pytest.mark.controlplane, pytest.mark.slow]

NAME = "rayjobs.ray.io"


@pytest.fixture(scope="module")
def plane(new_plane: Any) -> Iterator[Any]:
    """One of this module's own: a kind that does not go in time must not be missing in other tests."""
    with new_plane() as plane:
        yield plane


@pytest.fixture
def bring() -> Any:
    (crd,) = [each for each in crds() if each["metadata"]["name"] == NAME]
    return lambda world: install_crd(world.transport, crd)


def test_a_job_waits_for_kuberay_and_goes_on_when_it_is_installed(
    new_world: Callable[..., Any], bring: Callable[[Any], None]
) -> None:
    world = new_world([SUCCEEDED], wait=True)
    remove_crd(world.transport, NAME)
    try:
        running = world.start()
        assert running.operator.is_ready
        world.create_job()
        world.wait(lambda: world.says("Reconciling", "True", "KubeRayAbsent"))
    finally:
        bring(world)
    world.wait(world.is_over, seconds=90)
    assert world.says("Complete", "True")
    assert world.status()["attempt"] == 1


def test_a_kuberay_that_is_removed_in_mid_run_costs_an_attempt_and_no_job(
    new_world: Callable[..., Any], bring: Callable[[Any], None]
) -> None:
    world = new_world([RUNS_ON, SUCCEEDED])
    world.start()
    world.wait(lambda: world.phase() == "Running")
    remove_crd(world.transport, NAME)
    bring(world)
    world.wait(world.is_over, seconds=90)
    assert world.says("Complete", "True")
    assert world.status()["attempt"] == 2
