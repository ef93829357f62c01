"""O6: two replicas, a job that runs, the leader killed: seconds until the follower's first write, several times."""

from __future__ import annotations

import signal
import time
from collections import Counter
from datetime import datetime
from typing import Any

from benchmarks.operator.cluster import NAMESPACE, Replica, Replicas, api_server, job, mimic, phases, until, writes
from benchmarks.timing import RUNS, Figure
from limbeck.controller.names import JOBS
from limbeck.kube.transport import Transport


def measure() -> dict[str, Any]:
    took: list[float] = []
    users: set[str] = set()
    with api_server() as plane, mimic(plane, "run-on"), Replicas(plane) as replicas:
        transport = Transport(plane.client())
        leader = replicas.start()
        leader.wait_until_it_acts()
        for run in range(RUNS):
            follower = replicas.start()
            until(lambda follower=follower: follower.said("started") is not None, 60)  # type: ignore[misc]
            users |= {leader.user, follower.user}
            name = f"job-{run}"
            transport.create(JOBS, job(name), NAMESPACE)
            until(lambda name=name: phases(transport).get(name) == "Running", 60)  # type: ignore[misc]
            took.append(_failover(plane, transport, leader, follower, name))
            leader = follower
        done = Counter(
            (each["verb"], each["objectRef"]["resource"], each["objectRef"].get("name", ""))
            for each in writes(plane, users)
            if each["verb"] in ("create", "delete")
        )
    return {
        "failover_seconds": Figure.of(took).to_json(),
        "repeated_writes": sum(number - 1 for number in done.values()),
        "creates_and_deletes": sum(done.values()),
    }


def _failover(plane: Any, transport: Transport, leader: Replica, follower: Replica, name: str) -> float:
    """The job is to be suspended at the moment of the leader's death; the follower has to see to it."""
    killed = datetime.now().astimezone()
    leader.process.send_signal(signal.SIGKILL)
    leader.process.wait()
    transport.patch(JOBS, name, {"spec": {"suspend": True}}, NAMESPACE)
    until(lambda: bool(writes(plane, {follower.user})), 60)
    first = writes(plane, {follower.user})[0]
    until(lambda: phases(transport).get(name) == "Suspended", 60)
    time.sleep(0.5)  # the events that belong to it
    return (datetime.fromisoformat(first["requestReceivedTimestamp"]) - killed).total_seconds()
