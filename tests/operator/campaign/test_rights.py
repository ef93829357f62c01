"""Rights that are taken and given back in the middle of a life, and how often an operator without any asks."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from faulty_client import Faults
from mimic import RUNS_ON, SUCCEEDED

from limbeck.controller.names import JOBS
from limbeck.kube.errors import ForbiddenError

pytestmark = pytest.mark.controlplane

NewWorld = Callable[..., Any]


def test_rights_that_are_taken_and_given_back_cost_no_restart(new_world: NewWorld, rights: Any) -> None:
    take, give_back = rights
    world = new_world([RUNS_ON])
    running = world.start()
    world.wait(lambda: world.phase() == "Running")
    take(world.transport)
    try:
        world.wait(lambda: any("403" in problem for problem in running.operator.problems))
        world.end_attempt(1, SUCCEEDED)
        threading.Event().wait(1.0)
        assert world.phase() == "Running"
    finally:
        give_back(world.transport)
    world.wait(world.is_over)
    assert world.says("Complete", "True")
    assert running.operator.is_alive
    world.wait(lambda: running.operator.problems == [])


def test_the_rights_that_the_operator_has_end_where_its_work_does(plane: Any, new_world: NewWorld) -> None:
    """All lives of this folder are lived with these rights; here is what they do not hold."""
    from limbeck.kube.transport import Resource, Transport

    world = new_world([RUNS_ON])
    theirs = Transport(plane.client("limbeck-operator"))
    with pytest.raises(ForbiddenError):
        theirs.patch(JOBS, "emoji", {"spec": {"suspend": True}}, world.namespace)
    with pytest.raises(ForbiddenError):
        theirs.list(Resource("", "v1", "secrets"), world.namespace)
    with pytest.raises(ForbiddenError):
        theirs.create(Resource("", "v1", "pods"), {"metadata": {"name": "p"}}, world.namespace)


@pytest.mark.slow
def test_an_operator_that_is_refused_everything_asks_less_and_less_often(new_world: NewWorld) -> None:
    world = new_world([RUNS_ON])
    world.patience = None
    running = world.start(Faults(refused=True), must_be_ready=False)
    threading.Event().wait(20)
    early = running.client.num_requests
    threading.Event().wait(20)
    late = running.client.num_requests - early
    print(f"{early} requests in the first 20 seconds of refusal, {late} in the next 20")
    # Three kinds of object, each asked for after 0.1, 0.2, 0.4 ... 30 seconds.
    assert early <= 3 * 10
    assert late <= 3 * 2
    running.client.faults.refused = False
    world.wait(lambda: world.phase() == "Running", seconds=45)


@pytest.mark.slow
def test_an_operator_whose_writes_are_refused_tries_each_job_less_and_less_often(
    new_world: NewWorld, build_job: Callable[..., Any]
) -> None:
    world = new_world([RUNS_ON])
    for number in range(4):
        world.transport.create(JOBS, build_job(**{"metadata.name": f"other-{number}"}), world.namespace)
    world.patience = None
    running = world.start(Faults(writes_refused=True))
    threading.Event().wait(20)
    early = running.client.num_requests
    threading.Event().wait(20)
    late = running.client.num_requests - early
    print(f"{early} requests for five jobs in the first 20 seconds of refused writes, {late} in the next 20")
    assert early <= 5 * 10 + 6
    assert late <= 5 * 2
    running.client.faults.writes_refused = False
    world.wait(lambda: world.phase() == "Running", seconds=45)
