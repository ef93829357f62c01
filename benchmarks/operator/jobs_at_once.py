"""O1: so many jobs applied at once, until all are Complete. O4: the operator's writes over a job's life.

The operator's CPU time is its own process's; API server and mimic share the machine's cores with it, so the wall time
is theirs as much as the operator's and stands in the details.
"""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.operator.cluster import (
    NAMESPACE,
    KeptAlive,
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

_PATIENCE_SECONDS = 3000


def measure() -> dict[str, Any]:
    number = number_of("JOBS", 1000)
    with api_server() as plane, mimic(plane, "succeed") as player, Replicas(plane) as replicas:
        transport = Transport(plane.client())
        operator = KeptAlive(replicas)
        cpu_before, player_before, started = operator.cpu_seconds(), _cpu(player), time.monotonic()
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda n: transport.create(JOBS, job(f"job-{n}"), NAMESPACE), range(number)))
        applied = time.monotonic() - started
        until(lambda: operator.cpu_seconds() > 0 and _num_complete(transport) == number, _PATIENCE_SECONDS, 1.0)
        wall = time.monotonic() - started
        until(lambda: not transport.list(RAY_JOBS, NAMESPACE, limit=1)["items"], 120, 1.0)
        cpu = operator.cpu_seconds() - cpu_before
        written = writes(plane, operator.users)
        by_kind = Counter(f"{each['verb']} {each['objectRef']['resource']}" for each in written)
        return {
            "cpu_seconds": cpu,
            "complete_percent": 100.0 * _num_complete(transport) / number,
            "writes_per_job": len(written) / number,
            "jobs": number,
            "applied_seconds": round(applied, 1),
            "wall_seconds": round(wall, 1),
            "mimic_cpu_seconds": round(_cpu(player) - player_before, 1),
            "memory_mib": round(operator.current.memory_mib(), 1),
            "restarts_for_want_of_the_lease": operator.num_restarts,
            "writes_by_kind_per_job": {kind: round(count / number, 2) for kind, count in sorted(by_kind.items())},
        }


def _num_complete(transport: Transport) -> int:
    return sum(phase == "Complete" for phase in phases(transport).values())


def _cpu(process: Any) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
