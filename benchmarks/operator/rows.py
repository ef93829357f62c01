"""What `make bench-operator` measures. O3 and O4 have no rows of their own: they want what O1 and O2 have built up."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.rows import MINUTE, Row, at_least, at_most

ROWS: Mapping[str, Row] = {
    "O1": Row(
        what="1,000 jobs applied at once, children played by a mimic, until all are Complete; O4 over their lives",
        peer="KubeRay's published 1,000 RayJobs: 917 s",
        targets=(
            at_most("cpu_seconds", "O1: the operator's CPU time", 60, "s"),
            at_least("complete_percent", "O1: jobs Complete", 100, "%"),
            at_most("writes_per_job", "O4: API writes of a job's life", 12, ""),
        ),
        module="benchmarks.operator.jobs_at_once",
        limit_seconds=60 * MINUTE,
    ),
    "O2": Row(
        what="10,000 finished and 1,000 running jobs: memory, idle CPU, restart; O3 and O4 beside them",
        peer="Go operators: 28 to 128 MB for 3,000 pods",
        targets=(
            at_most("memory_mib", "O2: memory", 200, "MiB"),
            at_most("idle_cpu_percent", "O2: CPU when nothing changes", 2, "% of a core"),
            at_most("restart_seconds", "O2: restart to steady state", 15, "s"),
            at_most("spec_to_child_ms", "O3: spec change -> RayJob, p99", 250, "ms"),
            at_most("writes_per_idle_hour", "O4: API writes in an idle hour", 0, ""),
        ),
        module="benchmarks.operator.many_jobs",
        limit_seconds=90 * MINUTE,
    ),
    "O6": Row(
        what="the leader killed in mid-job: until the follower's first write; writes that were done twice",
        peer="client-go's default: 15 s",
        targets=(
            at_most("failover_seconds", "O6: until the follower acts", 5, "s"),
            at_most("repeated_writes", "O6: creates and deletes done twice", 0, ""),
        ),
        module="benchmarks.operator.failover",
        limit_seconds=30 * MINUTE,
    ),
}
