"""O2: many finished jobs and some that run: memory, CPU when nothing changes, restart. O3 and O4 beside them.

O3 resumes suspended jobs one by one and takes the time until the watch of a third party shows the RayJob.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.operator.cluster import (
    NAMESPACE,
    KeptAlive,
    Replica,
    Replicas,
    api_server,
    job,
    mimic,
    number_of,
    phases,
    until,
    writes,
)
from limbeck.controller.names import JOBS, RAY_JOBS
from limbeck.kube.transport import Transport

_BUILD_SECONDS = 3000
_IDLE_SECONDS = 60.0
# Beyond what the operator answers in, so that one change never waits for another.
_PAUSE_SECONDS = 0.3


def measure() -> dict[str, Any]:
    finished, active, changes = number_of("FINISHED", 10_000), number_of("ACTIVE", 1_000), number_of("CHANGES", 200)
    with api_server() as plane, mimic(plane, "run-on"), Replicas(plane) as replicas:
        transport = Transport(plane.client())
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda n: _create_finished(transport, f"finished-{n}"), range(finished)))
        builder = KeptAlive(replicas)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda n: transport.create(JOBS, job(f"active-{n}"), NAMESPACE), range(active)))
            waiting = [f"change-{n}" for n in range(changes)]
            list(pool.map(lambda name: transport.create(JOBS, job(name, suspend=True), NAMESPACE), waiting))
        until(
            lambda: builder.cpu_seconds() > 0 and _counted(transport, "Running", "Suspended") == active + changes,
            _BUILD_SECONDS,
            2.0,
        )
        built = builder.look().memory_mib()
        builder.look().stop()
        operator = replicas.start()
        total = finished + active + changes
        restart = _seconds_to_steady(operator, total)
        idle_cpu, idle_writes = _idle(plane, operator)
        memory = operator.memory_mib()
        delays = sorted(_changes(transport, waiting))
        return {
            "memory_mib": memory,
            "idle_cpu_percent": idle_cpu,
            "restart_seconds": restart,
            "spec_to_child_ms": 1000 * delays[math.ceil(0.99 * len(delays)) - 1],
            "writes_per_idle_hour": idle_writes * 3600 / _IDLE_SECONDS,
            "finished": finished,
            "active": active,
            "changes": changes,
            "spec_to_child_median_ms": round(1000 * delays[len(delays) // 2], 1),
            "spec_to_child_worst_ms": round(1000 * delays[-1], 1),
            "memory_mib_of_the_operator_that_saw_all_being_made": round(built, 1),
            "memory_mib_after_the_changes": round(operator.memory_mib(), 1),
        }


def _create_finished(transport: Transport, name: str) -> None:
    """As an operator left it, long ago."""
    transport.create(JOBS, job(name), NAMESPACE)
    told = {"status": "True", "reason": "Completed", "message": "the job is complete", "observedGeneration": 1}
    over = {"status": "False", "reason": "Finished", "message": "the job has finished", "observedGeneration": 1}
    at = "2026-11-24T06:00:00Z"
    status = {
        "observedGeneration": 1,
        "phase": "Complete",
        "attempt": 1,
        "rayJob": f"{name}-1",
        "startTime": at,
        "completionTime": at,
        "conditions": [
            {"type": "Reconciling", "lastTransitionTime": at, **over},
            {"type": "Complete", "lastTransitionTime": at, **told},
        ],
    }
    transport.patch(JOBS, name, {"status": status}, NAMESPACE, subresource="status")


def _counted(transport: Transport, *wanted: str) -> int:
    return sum(phase in wanted for phase in phases(transport).values())


def _seconds_to_steady(operator: Replica, number: int) -> float:
    """From the start of the process until it has looked at each job once."""
    operator.wait_until_it_acts()
    until(lambda: operator.metric("limbeck_operator_reconcile_seconds_count") >= number, 300)
    return time.monotonic() - operator.started


def _idle(plane: Any, operator: Replica) -> tuple[float, int]:
    """Percent of a core, and writes, of a minute in which nothing changes."""
    time.sleep(5)
    before, num_writes, started = operator.cpu_seconds(), len(writes(plane, {operator.user})), time.monotonic()
    time.sleep(_IDLE_SECONDS)
    cpu = operator.cpu_seconds() - before
    share = 100 * cpu / (time.monotonic() - started)
    return share, len(writes(plane, {operator.user})) - num_writes


def _changes(transport: Transport, names: list[str]) -> Iterator[float]:
    """Seconds from each spec change to its RayJob."""
    seen: dict[str, float] = {}
    arrived = threading.Condition()
    version = transport.list(RAY_JOBS, NAMESPACE, limit=1)["metadata"]["resourceVersion"]
    stream = transport.watch(RAY_JOBS, NAMESPACE, resource_version=version, timeout_seconds=3600)

    def follow() -> None:
        for event in stream:
            if event["type"] == "ADDED":
                with arrived:
                    seen[event["object"]["metadata"]["name"]] = time.monotonic()
                    arrived.notify_all()

    thread = threading.Thread(target=follow, daemon=True)
    with stream:
        thread.start()
        for name in names:
            changed = time.monotonic()
            transport.patch(JOBS, name, {"spec": {"suspend": False}}, NAMESPACE)
            child = f"{name}-1"
            with arrived:
                if not arrived.wait_for(lambda child=child: child in seen, 60):  # type: ignore[misc]
                    raise TimeoutError(f"no RayJob {child} within a minute")
            yield seen[child] - changed
            time.sleep(_PAUSE_SECONDS)
        stream.close()
        thread.join(10)
