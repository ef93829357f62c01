"""`limbeck submit`: check the jobs of a file as `limbeck validate` does, then hand them to the API server.

By server-side apply: the same file again changes nothing, and a job that another tool manages is not taken from it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Final

from limbeck.api.v1alpha1.job import CompressionJob
from limbeck.cli.cluster import FIELD_MANAGER, Cluster
from limbeck.cli.exits import OK
from limbeck.cli.failures import CommandError, explained
from limbeck.cli.jobfile import JobDocument
from limbeck.cli.jobs import is_finished, outcome
from limbeck.cli.kinds import JOBS
from limbeck.cli.output import show
from limbeck.cli.wait import FINISHED, wait_for
from limbeck.kube.errors import KubeError, NotFoundError
from limbeck.kube.transport import APPLY, Object

DRY_RUNS: Final = ("none", "client", "server")


def submit(
    cluster: Cluster,
    documents: Sequence[JobDocument],
    *,
    dry_run: bool,
    wait: bool,
    timeout_seconds: float | None,
    output: str,
) -> int:
    """Apply each job; with `wait`, the exit code tells how they ended."""
    warn_about_paths(documents)
    objects = [_object(cluster, document.job) for document in documents]
    applied: list[Object] = []
    lines: list[str] = []
    for document, body in zip(documents, objects, strict=True):
        try:
            job, what = _apply(cluster, body, dry_run=dry_run)
        except KubeError as error:
            message, code = explained(error)
            done = f"\n{len(applied)} jobs before it were submitted" if applied and not dry_run else ""
            raise CommandError(f"{document.file}:{document.line_of('metadata')}: {message}{done}", code) from error
        applied.append(job)
        ended = f": it is {outcome(job)} already" if is_finished(job) else ""
        lines.append(f"{job['metadata']['name']} {what}{' (server dry run)' if dry_run else ''}{ended}")
    show(applied, output, lines)
    if dry_run or not wait:
        return OK
    codes = [wait_for(cluster, job, goal=FINISHED, timeout_seconds=timeout_seconds, output="table") for job in applied]
    return max(codes)


def submit_nowhere(documents: Sequence[JobDocument], *, output: str) -> int:
    """A dry run on this side: what would be sent."""
    bodies = [_wire(document.job) for document in documents]
    show(bodies, output, [f"{body['metadata']['name']} is valid (client dry run)" for body in bodies])
    return OK


def warn_about_paths(documents: Sequence[JobDocument]) -> None:
    """A relative path means something on a laptop; on a cluster it lies inside a pod and goes with it."""
    for document in documents:
        spec = document.job.spec
        places = [("spec.data.train.uri", spec.data.train.uri), ("spec.output.uri", spec.output.uri)]
        if spec.data.validation is not None:
            places.append(("spec.data.validation.uri", spec.data.validation.uri))
        if spec.store is not None:
            places.append(("spec.store.uri", spec.store.uri))
        for field, uri in places:
            if "://" not in uri and not uri.startswith("/"):
                where = f"{document.file}:{document.line_of(field)}"
                message = f"is a path inside the job's pods, {uri}, and is lost with them; use s3://, gs:// or az://"
                print(f"{where}: warning: `{field}` {message}", file=sys.stderr)


def _wire(job: CompressionJob) -> Object:
    body = job.to_wire()
    body.pop("status", None)
    return body


def _object(cluster: Cluster, job: CompressionJob) -> Object:
    body = _wire(job)
    own = body["metadata"].setdefault("namespace", cluster.namespace)
    if cluster.namespace_is_given and own != cluster.namespace:
        name = body["metadata"]["name"]
        raise CommandError(f"job {name} is of namespace {own}, -n says {cluster.namespace}; change one of them")
    return body


def _apply(cluster: Cluster, body: Object, *, dry_run: bool) -> tuple[Object, str]:
    """The job as the API server has it now, and whether that was any change."""
    name, namespace = body["metadata"]["name"], body["metadata"]["namespace"]
    try:
        before: Object | None = cluster.transport.get(JOBS, name, namespace)
    except NotFoundError as error:
        if error.reason != "NotFound":
            raise
        before = None
    job = cluster.transport.patch(
        JOBS, name, body, namespace, content_type=APPLY, field_manager=FIELD_MANAGER, dry_run=dry_run
    )
    if before is None:
        return job, "created"
    return job, "unchanged" if before["metadata"]["generation"] == job["metadata"]["generation"] else "changed"
