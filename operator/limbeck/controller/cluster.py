"""What the controller asks of Kubernetes, and how it looks at a job's children.

Left out: how (`limbeck.kube.transport`), and caches.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any, Protocol

from limbeck import names as api_names
from limbeck.api.v1alpha1.job import CompressionJob
from limbeck.controller.children import is_owned, uid_of
from limbeck.controller.conditions import is_finished
from limbeck.controller.ledger import Ledger
from limbeck.controller.names import (
    CONFIG_MAPS,
    KEY_LEDGER,
    PODS,
    RAY_JOBS,
    SECRETS,
    children_name,
    ray_job_name,
)
from limbeck.controller.observed import Observed
from limbeck.controller.rayjob import secrets_of
from limbeck.kube.errors import ForbiddenError, NotFoundError
from limbeck.kube.transport import Resource

Object = dict[str, Any]


class Cluster(Protocol):
    """The calls of `limbeck.kube.transport.Transport` that the controller needs. All raise KubeError.

    `get` and `list` may answer from caches, with two bounds: a `get` that does not find an object has asked the API
    server itself, and what one answers to a `list` has the labels' selector applied.
    """

    def get(self, resource: Resource, name: str, namespace: str | None = None) -> Object:
        """One object."""

    def list(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        label_selector: str | None = None,
        continue_: str | None = None,
    ) -> Object:
        """One page of objects."""

    def create(self, resource: Resource, body: Object, namespace: str | None = None) -> Object:
        """Create an object."""

    def patch(
        self,
        resource: Resource,
        name: str,
        body: Object,
        namespace: str | None = None,
        *,
        subresource: str | None = None,
        field_manager: str | None = None,
    ) -> Object:
        """Merge into an object, or into its status."""

    def delete(
        self,
        resource: Resource,
        name: str,
        namespace: str | None = None,
        *,
        propagation: str = "Background",
        uid: str | None = None,
    ) -> None:
        """Delete an object, if it has that UID."""


def observe(cluster: Cluster, job: CompressionJob) -> Observed:
    """What there is of the job. Of a finished one only what has to be removed is looked at."""
    if is_finished(job.status):
        ray_jobs, served = _listed_ray_jobs(cluster, job)
        return Observed(ray_jobs=ray_jobs, kuberay_served=served)
    ray_jobs, served = _ray_jobs(cluster, job)
    exists = any(each["metadata"]["name"] == _current_name(job) for each in ray_jobs)
    return Observed(
        ray_jobs=ray_jobs,
        pods=_pods(cluster, job),
        ledger=read_ledger(cluster, job) if job.status.attempt else Ledger(),
        missing_secrets=() if exists else _missing_secrets(cluster, job),
        kuberay_served=served,
    )


def read_ledger(cluster: Cluster, job: CompressionJob) -> Ledger:
    """How the job's attempts ended; an empty one where the ConfigMap is gone."""
    try:
        found = cluster.get(CONFIG_MAPS, children_name(job.metadata.name), job.metadata.namespace)
    except NotFoundError:
        return Ledger()
    return ledger_in(found) if is_owned(found, uid_of(job)) else Ledger()


def ledger_in(config_map: Object) -> Ledger:
    """The ledger that a ConfigMap holds."""
    return Ledger.from_json(str((config_map.get("data") or {}).get(KEY_LEDGER, "[]")))


def _ray_jobs(cluster: Cluster, job: CompressionJob) -> tuple[list[Object], bool]:
    """The job's RayJobs, and whether the cluster knows what that is."""
    found, served = _listed_ray_jobs(cluster, job)
    name = _current_name(job)
    # That one is lost, or still to be made, is never concluded from a list, which may be older than the one made.
    if served and name and all(each["metadata"]["name"] != name for each in found):
        try:
            current = cluster.get(RAY_JOBS, name, job.metadata.namespace)
        except NotFoundError:
            return found, True
        if is_owned(current, uid_of(job)):
            found.append(current)
    return found, served


def _listed_ray_jobs(cluster: Cluster, job: CompressionJob) -> tuple[list[Object], bool]:
    try:
        return [each for each in _all(cluster, RAY_JOBS, job) if is_owned(each, uid_of(job))], True
    except NotFoundError:
        return [], False


def _current_name(job: CompressionJob) -> str:
    attempt = job.status.attempt
    return ray_job_name(job.metadata.name, attempt) if attempt else ""


def _pods(cluster: Cluster, job: CompressionJob) -> list[Object]:
    """Pods with the job's label; older ones are of an earlier job of that name."""
    since = datetime.fromisoformat((job.metadata.model_extra or {})["creationTimestamp"])
    return [
        pod for pod in _all(cluster, PODS, job) if datetime.fromisoformat(pod["metadata"]["creationTimestamp"]) >= since
    ]


def _missing_secrets(cluster: Cluster, job: CompressionJob) -> list[str]:
    """Where our rights do not cover Secrets, the pods will tell."""
    missing = []
    for name in secrets_of(job.spec):
        try:
            cluster.get(SECRETS, name, job.metadata.namespace)
        except NotFoundError:
            missing.append(name)
        except ForbiddenError:
            continue
    return missing


def _all(cluster: Cluster, resource: Resource, job: CompressionJob) -> Iterator[Object]:
    selector = f"{api_names.LABEL_JOB}={job.metadata.name}"
    page = cluster.list(resource, job.metadata.namespace, label_selector=selector)
    yield from page["items"]
    while token := (page.get("metadata") or {}).get("continue"):
        page = cluster.list(resource, job.metadata.namespace, label_selector=selector, continue_=token)
        yield from page["items"]
