"""Two replicas as processes of their own, the leader killed in the middle of a job; the audit log is the witness."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from mimic import RUNS_ON, SUCCEEDED

pytestmark = pytest.mark.controlplane

Object = dict[str, Any]


@dataclass(frozen=True)
class Replica:
    """One `python -m limbeck.controller` that speaks to the API server as an account of its own."""

    user: str
    process: subprocess.Popen[bytes]
    log: Path

    def has_said(self, event: str) -> bool:
        lines = self.log.read_text(encoding="utf-8").splitlines()
        return any(line.startswith("{") and json.loads(line)["event"] == event for line in lines)


@pytest.fixture
def replica(plane: Any, account: Callable[[str, str], Path], tmp_path: Path) -> Iterator[Callable[..., Replica]]:
    started: list[Replica] = []

    def start(world: Any, name: str) -> Replica:
        settings = {
            "IMAGE": "registry.example/limbeck:1",
            "LIMBECK_NAMESPACE": world.namespace,
            "NAMESPACES": json.dumps([world.namespace]),
            "HOST": "127.0.0.1",
            "PORT": "0",
        }
        environment = {f"LIMBECK_OPERATOR_{key}": value for key, value in settings.items()}
        environment["KUBECONFIG"] = str(account(world.namespace, name))
        log = tmp_path / f"{name}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "limbeck.controller"], env=os.environ | environment, stderr=out
            )
        started.append(Replica(f"system:serviceaccount:{world.namespace}:{name}", process, log))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.process.wait()


def writes_in(plane: Any, namespace: str) -> list[Object]:
    """What was carried out in a namespace by service accounts, leases apart, in the order of arrival."""
    found = []
    for line in plane.audit_log.read_text().splitlines(keepends=True):
        if not line.endswith("\n") or f'"namespace":"{namespace}"' not in line:
            continue
        entry = json.loads(line)
        if entry["responseStatus"]["code"] < 300 and entry["user"]["username"].startswith("system:serviceaccount"):
            found.append(entry)
    found.sort(key=lambda entry: entry["requestReceivedTimestamp"])
    return [entry for entry in found if entry["objectRef"]["resource"] != "leases"]


def what(entry: Object) -> str:
    ref = entry["objectRef"]
    return f"{entry['verb']} {ref['resource']}/{ref.get('name', '')}/{ref.get('subresource', '')}"


STAGES: dict[str, Callable[[Any], bool]] = {
    "when the attempt is claimed": lambda world: world.status().get("attempt") == 1,
    "when the RayJob is there": lambda world: world.status().get("rayJob") == "emoji-1",
    "when the job runs": lambda world: world.phase() == "Running",
}


def live(world: Any, wait_for: Callable[[Any], bool], then: Callable[[], None]) -> None:
    """The job from its creation to the end, with something happening on the way."""
    world.wait(lambda: wait_for(world))
    then()
    world.wait(lambda: world.state_of_attempt(1) == "RUNNING")
    world.end_attempt(1, SUCCEEDED)
    world.wait(world.is_over)
    assert world.says("Complete", "True")


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_when_the_leader_is_killed_in_mid_job_the_follower_goes_on_within_five_seconds_and_repeats_nothing(
    plane: Any, new_world: Callable[..., Any], replica: Callable[..., Replica], stage: str
) -> None:
    calm = new_world([RUNS_ON])
    replica(calm, "alone")
    live(calm, STAGES[stage], lambda: None)
    wanted = Counter(what(entry) for entry in writes_in(plane, calm.namespace))

    world = new_world([RUNS_ON], wait=True)
    leader = replica(world, "first")
    world.wait(lambda: leader.has_said("acting"))
    follower = replica(world, "second")
    world.wait(lambda: follower.has_said("started"))
    world.create_job()
    killed_at: list[datetime] = []

    def kill() -> None:
        leader.process.send_signal(signal.SIGKILL)
        leader.process.wait()
        killed_at.append(datetime.now().astimezone())

    live(world, STAGES[stage], kill)
    writes = writes_in(plane, world.namespace)
    users = [entry["user"]["username"] for entry in writes]
    assert set(users) == {leader.user, follower.user}
    assert users == sorted(users)  # "first" before "second", and never again
    first_of_follower = next(entry for entry in writes if entry["user"]["username"] == follower.user)
    took = (datetime.fromisoformat(first_of_follower["requestReceivedTimestamp"]) - killed_at[0]).total_seconds()
    print(f"{stage}: the follower acted {took:.2f} s after the leader's death; {len(writes)} writes")
    assert took <= 5
    done = Counter(what(entry) for entry in writes)
    assert {name: number for name, number in done.items() if number > wanted[name] and "events" not in name} == {}
