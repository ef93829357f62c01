"""`limbeck doctor`: one line for each thing that a job needs, and what to do where it is not so.

Three answers: ok, wrong, and unknown where our own rights do not let us look; only what is wrong makes the exit code 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from limbeck.cli import checks
from limbeck.cli.checks import Finding, State, guarded_check
from limbeck.cli.cluster import Cluster
from limbeck.cli.exits import JOB_FAILED, OK
from limbeck.cli.output import show_data
from limbeck.cli.printable import printable


def doctor(cluster: Cluster, name: str | None, *, server_url: str | None, server_ca: str | None, output: str) -> int:
    """Look at everything, and at one job more closely; 1 where something is wrong."""
    findings = examine(cluster, name, server_url, server_ca)
    if output in ("json", "yaml"):
        show_data([asdict(finding) | {"state": finding.state.value} for finding in findings], output)
    else:
        for line in lines(findings):
            print(line)
    return JOB_FAILED if any(finding.state is State.WRONG for finding in findings) else OK


def examine(cluster: Cluster, name: str | None, server_url: str | None, server_ca: str | None) -> list[Finding]:
    """All findings; of a cluster that does not answer just that."""
    first = guarded_check("API server", lambda: checks.check_api_server(cluster))
    if first.state is State.WRONG:
        return [first]
    findings = [
        first,
        guarded_check("CompressionJob CRD", lambda: checks.check_crd(cluster)),
        guarded_check("operator", lambda: checks.check_operator(cluster)),
        guarded_check("operator's lease", lambda: checks.check_lease(cluster)),
        guarded_check("KubeRay", lambda: checks.check_kuberay(cluster)),
        guarded_check("limbeck's server", lambda: checks.check_server(cluster, server_url, server_ca)),
        guarded_check("your rights", lambda: checks.check_rights(cluster)),
    ]
    if name is not None:
        job = cluster.job(name)
        findings += [checks.check_job(cluster, job), *checks.check_secrets(cluster, job)]
    return findings


def lines(findings: Sequence[Finding]) -> list[str]:
    """`wrong    KubeRay: no RayJob CRD; install ...`."""
    return [
        printable(f"{each.state:7}  {each.check}: {each.found}" + (f"; {each.advice}" if each.advice else ""))
        for each in findings
    ]
