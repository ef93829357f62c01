"""Plays KubeRay, the kubelet and the garbage collector on a bare API server, which has none of them.

A RayJob in SidecarMode goes through the states through which KubeRay 1.6.2 takes it (`KUBERAY_STATES`), with the
finalizer, the RayCluster between RayJob and pods, the labels and the owners that the real one gives them; a test in
`tests/operator/campaign` holds it against this table, and one in `tests/cluster` the real KubeRay. What a run comes to
is the test's to say, attempt by attempt. What is deleted takes along what it owns, as the garbage collector sees to.
Left out on purpose: services, probes, submitter and autoscaler, Kueue, and the time that everything takes.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

from limbeck import names
from limbeck.controller.names import CONFIG_MAPS, JOBS, NETWORK_POLICIES, PODS, RAY_JOBS, children_name
from limbeck.kube.cache import Change, Key, owner_uids
from limbeck.kube.errors import AlreadyExistsError, ConflictError, NotFoundError
from limbeck.kube.informer import Informer
from limbeck.kube.queue import KeyedQueue
from limbeck.kube.transport import JSON_PATCH, Object, Resource, Transport
from limbeck.kube.workers import Workers

RAY_CLUSTERS: Final = Resource("ray.io", "v1", "rayclusters")
FINALIZER: Final = "ray.io/rayjob-finalizer"

# (jobDeploymentStatus, jobStatus) of a RayJob that succeeds, one after the other; a missing jobStatus is empty.
KUBERAY_STATES: Final = (
    ("Initializing", ""),
    ("Running", ""),
    ("Running", "RUNNING"),
    ("Complete", "SUCCEEDED"),
)
# What the real one may show between them, by when it looks; the mimic leaves these out.
KUBERAY_BETWEEN: Final = (("Running", "PENDING"), ("Running", "SUCCEEDED"), ("Running", "FAILED"))
# The last of them where the run fails.
KUBERAY_FAILED: Final = ("Failed", "FAILED", "AppFailed")

SUCCEEDED: Final[Object] = {"jobStatus": "SUCCEEDED", "jobDeploymentStatus": "Complete"}
CRASHED: Final[Object] = {
    "jobStatus": "FAILED",
    "jobDeploymentStatus": "Failed",
    "reason": "AppFailed",
    "message": "Job entrypoint command failed with exit code 1, last available logs:\nout of luck\n",
}
# It goes on until the test ends it.
RUNS_ON: Final[Object] = {}
# The cluster takes the head pod away.
PREEMPTED: Final[Object] = {"preempted": True}

_DISRUPTED: Final[Object] = {
    "phase": "Running",
    "conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}],
}


def outcome(code: int, reason: str, message: str) -> Object:
    """How a RayJob ends whose driver ended with that exit code, with what it said last."""
    said = f'{names.OUTCOME_PREFIX} {{"exit_code": {code}, "reason": "{reason}", "message": "{message}"}}'
    text = f"Job entrypoint command failed with exit code {code}, last available logs:\nsome log\n{said}\n"
    return {"jobStatus": "FAILED", "jobDeploymentStatus": "Failed", "reason": "AppFailed", "message": text}


def pod_labels(given: Mapping[str, str], cluster: str, node_type: str, group: str) -> dict[str, str]:
    """Labels of a pod of a RayCluster: those of its template, and KubeRay's, of which three cannot be overridden."""
    return {
        "app.kubernetes.io/name": "kuberay",
        "app.kubernetes.io/created-by": "kuberay-operator",
        "ray.io/is-ray-node": "yes",
        "ray.io/identifier": f"{cluster}-{node_type}",
        **given,
        "ray.io/cluster": cluster,
        "ray.io/node-type": node_type,
        "ray.io/group": group,
    }


# By the kind of a child: where it is, and where its owner is.
_OWNERS: Final = {"RayCluster": (RAY_CLUSTERS, RAY_JOBS), "Pod": (PODS, RAY_CLUSTERS), "RayJob": (RAY_JOBS, JOBS)}


class Mimic:
    """Plays for `namespaces` (none named: for all). `endings(job)` says how each attempt of a job comes out.

    The last of the endings goes for all attempts that follow. `with_workers` false leaves the worker pods out.
    """

    def __init__(
        self,
        transport: Transport,
        endings: Callable[[str], Sequence[Object]] = lambda _job: [SUCCEEDED],
        *,
        namespaces: Sequence[str] = (),
        num_workers: int = 1,
        with_workers: bool = True,
    ) -> None:
        self._transport = transport
        self._endings = endings
        self._with_workers = with_workers
        self._queue: KeyedQueue[tuple[str, Key]] = KeyedQueue()
        self._workers = Workers(self._queue, self._act, num_workers=num_workers)
        self._informers: dict[Resource, Informer] = {}
        watched = {
            JOBS: self._job_changed,
            RAY_JOBS: self._ray_job_changed,
            RAY_CLUSTERS: self._changed,
            PODS: self._changed,
        }
        for resource, on_change in watched.items():
            self._informers[resource] = Informer(
                transport, resource, on_change, namespaces=namespaces, indexes={"owner": owner_uids}
            )

    def start(self) -> None:
        for informer in self._informers.values():
            informer.start()
        pause = threading.Event()
        while not all(informer.has_synced or not informer.is_served for informer in self._informers.values()):
            pause.wait(0.01)
        self._workers.start()

    def stop(self) -> None:
        self._workers.stop()
        for informer in self._informers.values():
            informer.stop()

    def _job_changed(self, change: Change) -> None:
        if change.new is None and change.old is not None:
            self._queue.add(("job " + change.old["metadata"]["uid"], change.key))
        self._changed(change)

    def _ray_job_changed(self, change: Change) -> None:
        if change.new is not None:
            self._queue.add(("ray job", change.key))
        self._changed(change)

    def _changed(self, change: Change) -> None:
        """What is gone leaves orphans, and what was made a moment too late is one."""
        if change.new is None and change.old is not None:
            self._queue.add(("orphans of " + change.old["metadata"]["uid"], change.key))
        elif change.old is None and change.new is not None and change.new["metadata"].get("ownerReferences"):
            self._queue.add((change.new["kind"], change.key))

    def _act(self, task: tuple[str, Key]) -> float | None:
        what, key = task
        try:
            if what == "ray job":
                return self._move(key)
            if what in _OWNERS:
                return self._collect_if_orphaned(_OWNERS[what], key)
            uid = what.rpartition(" ")[2]
            if what.startswith("job "):
                self._collect_children(key, uid)
            self._collect(key, uid)
        except (ConflictError, AlreadyExistsError, NotFoundError):  # it has changed meanwhile, and is looked at again
            return 0.05
        return None

    def _move(self, key: Key) -> float | None:
        """One step of a RayJob."""
        ray_job = self._informers[RAY_JOBS].get(*key)
        if ray_job is None:
            return None
        metadata, status = ray_job["metadata"], ray_job.get("status") or {}
        deployment, state = status.get("jobDeploymentStatus", ""), status.get("jobStatus", "")
        if "deletionTimestamp" in metadata:
            self._let_go(ray_job)
        elif not deployment:
            self._begin(ray_job)
        elif deployment == "Initializing":
            self._start_pods(ray_job)
            self._write(ray_job, {"jobDeploymentStatus": "Running", "dashboardURL": "head.example:8265"})
        elif deployment == "Running" and not state:
            self._write(ray_job, {"jobStatus": "RUNNING"})
        elif deployment == "Running":
            self._end(ray_job)
        elif deployment in ("Complete", "Failed"):
            self._delete(RAY_CLUSTERS, key.namespace, _cluster_name(ray_job))
        return None

    def _begin(self, ray_job: Object) -> None:
        metadata = ray_job["metadata"]
        if FINALIZER not in metadata.get("finalizers", []):
            finalizers = [*metadata.get("finalizers", []), FINALIZER]
            change = {"metadata": {"finalizers": finalizers, "resourceVersion": metadata["resourceVersion"]}}
            ray_job = self._transport.patch(RAY_JOBS, metadata["name"], change, metadata["namespace"])
        begun = {
            "jobDeploymentStatus": "Initializing",
            "jobId": f"{metadata['name']}-id",
            "rayClusterName": _cluster_name(ray_job),
            "startTime": _now(),
            "succeeded": 0,
            "failed": 0,
        }
        self._write(ray_job, begun)

    def _start_pods(self, ray_job: Object) -> None:
        namespace, name = ray_job["metadata"]["namespace"], _cluster_name(ray_job)
        spec = ray_job["spec"]["rayClusterSpec"]
        body = {
            "apiVersion": "ray.io/v1",
            "kind": "RayCluster",
            "metadata": {
                "name": name,
                "labels": {
                    "ray.io/originated-from-cr-name": ray_job["metadata"]["name"],
                    "ray.io/originated-from-crd": "RayJob",
                },
                "ownerReferences": [_owner(ray_job, "RayJob")],
            },
            "spec": spec,
        }
        cluster = self._create_or_get(RAY_CLUSTERS, body, namespace)
        self._start_pod(cluster, f"{name}-head", "head", "headgroup", spec["headGroupSpec"]["template"])
        for group in spec.get("workerGroupSpecs", []) if self._with_workers else []:
            for number in range(group["replicas"]):
                pod = f"{name}-{group['groupName']}-worker-{number}"
                self._start_pod(cluster, pod, "worker", group["groupName"], group["template"])

    def _start_pod(self, cluster: Object, name: str, node_type: str, group: str, template: Object) -> None:
        namespace = cluster["metadata"]["namespace"]
        given = copy.deepcopy(template)
        labels = pod_labels(given["metadata"].get("labels", {}), cluster["metadata"]["name"], node_type, group)
        metadata = {"name": name, "labels": labels, "ownerReferences": [_owner(cluster, "RayCluster")]}
        # As the admission of service accounts sees to.
        spec = {"serviceAccountName": "default", **given["spec"]}
        self._create_or_get(PODS, {"metadata": metadata, "spec": spec}, namespace)
        self._transport.patch(PODS, name, {"status": {"phase": "Running"}}, namespace, subresource="status")

    def _end(self, ray_job: Object) -> None:
        labels = ray_job["metadata"]["labels"]
        endings = self._endings(labels[names.LABEL_JOB])
        ending = endings[min(int(labels[names.LABEL_ATTEMPT]), len(endings)) - 1]
        if ending.get("preempted"):
            pod, namespace = f"{_cluster_name(ray_job)}-head", ray_job["metadata"]["namespace"]
            self._transport.patch(PODS, pod, {"status": _DISRUPTED}, namespace, subresource="status")
        elif ending:
            self.end(ray_job, ending)

    def end(self, ray_job: Object, ending: Object) -> None:
        """The run of a RayJob comes to its end."""
        counts = {"succeeded": 1} if ending["jobStatus"] == "SUCCEEDED" else {"failed": 1}
        self._write(ray_job, {"endTime": _now(), **counts, **ending})

    def _let_go(self, ray_job: Object) -> None:
        metadata = ray_job["metadata"]
        left = [each for each in metadata.get("finalizers", []) if each != FINALIZER]
        patch = [
            {"op": "test", "path": "/metadata/resourceVersion", "value": metadata["resourceVersion"]},
            {"op": "replace", "path": "/metadata/finalizers", "value": left},
        ]
        self._transport.patch(RAY_JOBS, metadata["name"], patch, metadata["namespace"], content_type=JSON_PATCH)

    def _write(self, ray_job: Object, status: Object) -> None:
        """Over the state that was read, and no other."""
        metadata = ray_job["metadata"]
        change = {"metadata": {"resourceVersion": metadata["resourceVersion"]}, "status": status}
        self._transport.patch(RAY_JOBS, metadata["name"], change, metadata["namespace"], subresource="status")

    def _collect_children(self, key: Key, uid: str) -> None:
        """Of a job that is gone: what no informer here looks at."""
        for resource in (CONFIG_MAPS, NETWORK_POLICIES):
            try:
                child = self._transport.get(resource, children_name(key.name), key.namespace)
            except NotFoundError:
                continue
            if uid in owner_uids(child):
                self._delete(resource, key.namespace, child["metadata"]["name"])

    def _collect(self, key: Key, uid: str) -> None:
        for resource in (RAY_JOBS, RAY_CLUSTERS, PODS):
            for child in self._informers[resource].by_index("owner", key.namespace, uid):
                self._delete(resource, key.namespace, child["metadata"]["name"])

    def _collect_if_orphaned(self, kinds: tuple[Resource, Resource], key: Key) -> None:
        resource, owners = kinds
        child = self._informers[resource].get(*key)
        if child is None:
            return
        (reference,) = child["metadata"]["ownerReferences"]
        owner = self._informers[owners].get(key.namespace, reference["name"])
        if owner is None:
            try:
                owner = self._transport.get(owners, reference["name"], key.namespace)
            except NotFoundError:
                self._delete(resource, *key)
                return
        if owner["metadata"]["uid"] != reference["uid"]:
            self._delete(resource, *key)

    def _create_or_get(self, resource: Resource, body: Object, namespace: str) -> Object:
        try:
            return self._transport.create(resource, body, namespace)
        except AlreadyExistsError:
            return self._transport.get(resource, body["metadata"]["name"], namespace)

    def _delete(self, resource: Resource, namespace: str, name: str) -> None:
        try:
            self._transport.delete(resource, name, namespace)
        except NotFoundError:
            return


def _cluster_name(ray_job: Object) -> str:
    """The real one ends in random letters; ours is the same in every life."""
    return f"{ray_job['metadata']['name']}-mimic"


def _owner(owner: Object, kind: str) -> Object:
    metadata = owner["metadata"]
    return {
        "apiVersion": "ray.io/v1",
        "kind": kind,
        "name": metadata["name"],
        "uid": metadata["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
