"""What GitOps tools make of our objects, said by the library that they use: kstatus, of sigs.k8s.io/cli-utils."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from mimic import CRASHED, RUNS_ON, SUCCEEDED, outcome

pytestmark = pytest.mark.controlplane

Object = dict[str, Any]
NewWorld = Callable[..., Any]


@pytest.fixture(scope="session")
def kstatus_binary() -> Path:
    import gotools

    try:
        return gotools.KSTATUS.build()
    except gotools.CannotBuildError as error:
        pytest.skip(str(error))


@pytest.fixture
def kstatus(kstatus_binary: Path) -> Callable[[Object], str]:
    """What it calls the state of an object."""

    def judge(item: Object) -> str:
        answer = subprocess.run([kstatus_binary], input=json.dumps(item), check=True, capture_output=True, text=True)
        return str(json.loads(answer.stdout)["status"])

    return judge


def test_a_new_job_is_in_progress_before_anybody_has_looked_at_it(
    new_world: NewWorld, kstatus: Callable[[Object], str]
) -> None:
    assert kstatus(new_world([RUNS_ON]).job()) == "InProgress"


@dataclass(frozen=True)
class State:
    """How a job comes into it, and what kstatus is to say."""

    endings: list[Object]
    reached: Callable[[Any], bool]
    wanted: str
    changes: Object = field(default_factory=dict)
    settings: Object = field(default_factory=dict)
    unserved: frozenset[str] = frozenset()


STATES = {
    # No Ready condition, and nothing that says Reconciling: a sync does not wait for days of training.
    "running": State([RUNS_ON], lambda world: world.phase() == "Running", "Current"),
    "waiting for KubeRay": State(
        [RUNS_ON],
        lambda world: world.says("Reconciling", "True", "KubeRayAbsent"),
        "InProgress",
        unserved=frozenset({"rayjobs"}),
    ),
    "waiting to retry": State(
        [CRASHED],
        lambda world: world.says("Reconciling", "True", "WaitingToRetry"),
        "InProgress",
        settings={"retry_base_seconds": 60},
    ),
    "suspended": State(
        [RUNS_ON], lambda world: world.says("Suspended", "True"), "Current", changes={"spec.suspend": True}
    ),
    "complete": State([SUCCEEDED], lambda world: world.says("Complete", "True"), "Current"),
    "failed for good": State(
        [outcome(10, "GateFailed", "too large")], lambda world: world.says("Failed", "True"), "Failed"
    ),
    "refused before anything was made": State(
        [RUNS_ON],
        lambda world: world.says("Failed", "True", "InvalidSpec"),
        "Failed",
        changes={"spec.export": {"formats": ["ExecuTorch"]}},
    ),
}


@pytest.mark.parametrize("name", STATES)
def test_kstatus_reads_a_job_as_it_is_meant(new_world: NewWorld, kstatus: Callable[[Object], str], name: str) -> None:
    state = STATES[name]
    world = new_world(state.endings, state.settings, **state.changes)
    world.unserved |= state.unserved
    world.start()
    world.wait(lambda: state.reached(world))
    assert kstatus(world.job()) == state.wanted


def test_a_change_that_nobody_has_looked_at_is_in_progress(
    new_world: NewWorld, kstatus: Callable[[Object], str]
) -> None:
    world = new_world([RUNS_ON])
    running = world.start()
    world.wait(lambda: world.phase() == "Running")
    running.end()
    world.change_spec(backoffLimit=7)
    assert kstatus(world.job()) == "InProgress"
    world.start()
    world.wait(lambda: world.status()["observedGeneration"] == 2)
    assert kstatus(world.job()) == "Current"


def test_a_job_that_goes_is_terminating(new_world: NewWorld, kstatus: Callable[[Object], str]) -> None:
    from limbeck.controller.names import JOBS

    world = new_world([RUNS_ON])
    world.transport.patch(JOBS, "emoji", {"metadata": {"finalizers": ["example.dev/wait"]}}, world.namespace)
    world.transport.delete(JOBS, "emoji", world.namespace)
    assert kstatus(world.job()) == "Terminating"
    world.transport.patch(JOBS, "emoji", {"metadata": {"finalizers": None}}, world.namespace)
