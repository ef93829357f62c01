"""An API server in memory, strict where the controller leans on it, a KubeRay that plays scripts, and builders."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from limbeck.api.v1alpha1.job import CompressionJob
from limbeck.controller.metrics import Metrics
from limbeck.controller.names import JOBS, PODS, RAY_JOBS
from limbeck.controller.reconcile import Reconciler
from limbeck.controller.settings import Settings
from limbeck.kube.errors import AlreadyExistsError, ConflictError, NotFoundError, UnreachableError
from limbeck.kube.transport import Resource

Object = dict[str, Any]
START = datetime(2026, 11, 24, 6, 0, tzinfo=UTC)
JOB_UID = "uid-of-the-job"


class Clock:
    """A time that stands still until told."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


class MemoryCluster:
    """Objects by kind, namespace and name, with resource versions, UIDs, owners and a status apart from the rest."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.objects: dict[tuple[Resource, str, str], Object] = {}
        self.unserved: set[Resource] = set()
        self.version = 0
        self.num_writes = 0
        self.writes: list[str] = []
        # Number of the write that fails, from 1, and whether it was carried out before the answer got lost.
        self.fault: tuple[int, bool] | None = None
        self.refusals: dict[Resource, Exception] = {}
        # Kinds of which a cache that lags behind lists nothing.
        self.unlisted: set[Resource] = set()
        # What a cache that lags behind answers to `get`.
        self.stale: dict[Resource, Object] = {}

    def get(self, resource: Resource, name: str, namespace: str | None = None) -> Object:
        return copy.deepcopy(self.stale.get(resource) or self._stored(resource, name, namespace))

    def list(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        label_selector: str | None = None,
        continue_: str | None = None,
    ) -> Object:
        """Pages of two, so that whoever forgets the second one is found out."""
        self._check_served(resource)
        key, _, value = (label_selector or "").partition("=")
        found = [
            item
            for (kind, place, _), item in sorted(self.objects.items(), key=lambda pair: pair[0][2])
            if kind == resource and place == namespace and item["metadata"].get("labels", {}).get(key) == value
        ]
        if resource in self.unlisted:
            found = []
        first = int(continue_ or 0)
        metadata = {"continue": str(first + 2)} if len(found) > first + 2 else {}
        return copy.deepcopy({"metadata": metadata, "items": found[first : first + 2]})

    def create(self, resource: Resource, body: Object, namespace: str | None = None) -> Object:
        def act() -> Object:
            self._check_served(resource)
            if resource in self.refusals:
                raise self.refusals[resource]
            key = (resource, namespace or "", body["metadata"]["name"])
            if key in self.objects:
                raise AlreadyExistsError(409, "AlreadyExists", f"{key[2]} exists")
            item = copy.deepcopy(body)
            self.version += 1
            item["metadata"] = {
                "uid": f"uid-{self.version}",
                "creationTimestamp": self._clock.now.isoformat(),
                "generation": 1,
                **item["metadata"],
                "namespace": namespace,
                "resourceVersion": str(self.version),
            }
            self.objects[key] = item
            return copy.deepcopy(item)

        return self._write(f"create {resource.plural}", act)

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
        def act() -> Object:
            stored = self._stored(resource, name, namespace)
            wanted = body.get("metadata", {}).get("resourceVersion")
            if wanted is not None and wanted != stored["metadata"]["resourceVersion"]:
                raise ConflictError(409, "Conflict", "the object has been modified")
            patched = _merged(stored, body)
            if subresource == "status":
                patched = {**stored, "status": patched.get("status", {})}
            else:
                patched = {**patched, "metadata": stored["metadata"] | patched["metadata"]}
                if "status" in stored:
                    patched["status"] = stored["status"]
                if patched.get("spec") != stored.get("spec"):
                    patched["metadata"]["generation"] = stored["metadata"]["generation"] + 1
            if patched != stored:
                self.version += 1
                patched = {
                    **patched,
                    "metadata": {**patched["metadata"], "resourceVersion": str(self.version)},
                }
                self.objects[resource, namespace or "", name] = patched
            return copy.deepcopy(patched)

        return self._write(f"patch {resource.plural}{'/' + subresource if subresource else ''}", act)

    def delete(
        self,
        resource: Resource,
        name: str,
        namespace: str | None = None,
        *,
        propagation: str = "Background",
        uid: str | None = None,
    ) -> None:
        def act() -> Object:
            stored = self._stored(resource, name, namespace)
            if uid is not None and stored["metadata"]["uid"] != uid:
                raise ConflictError(409, "Conflict", "the UID is another one")
            self._remove((resource, namespace or "", name))
            return {}

        self._write(f"delete {resource.plural}", act)

    def _remove(self, key: tuple[Resource, str, str]) -> None:
        self.version += 1
        uid = self.objects.pop(key)["metadata"]["uid"]
        owned = [
            other
            for other, item in self.objects.items()
            if any(owner["uid"] == uid for owner in item["metadata"].get("ownerReferences", []))
        ]
        for other in owned:
            if other in self.objects:
                self._remove(other)

    def _stored(self, resource: Resource, name: str, namespace: str | None) -> Object:
        self._check_served(resource)
        try:
            return self.objects[resource, namespace or "", name]
        except KeyError:
            raise NotFoundError(404, "NotFound", f"{resource} {name} not found") from None

    def _check_served(self, resource: Resource) -> None:
        if resource in self.unserved:
            raise NotFoundError(404, "NotFound", "the server could not find the requested resource")

    def _write(self, what: str, act: Callable[[], Object]) -> Object:
        self.num_writes += 1
        at, carried_out = self.fault or (0, False)
        if self.num_writes == at and not carried_out:
            raise UnreachableError("the connection broke before")
        self.writes.append(what)
        answer = act()
        if self.num_writes == at:
            raise UnreachableError("the connection broke after")
        return answer


def _merged(old: Any, patch: Any) -> Any:
    if not isinstance(patch, Mapping):
        return copy.deepcopy(patch)
    result = dict(old) if isinstance(old, Mapping) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = _merged(result.get(key), value)
    return result


@dataclass
class Told:
    """An event recorder that remembers."""

    events: list[tuple[str, str, str]] = field(default_factory=list)

    def record(self, regarding: Mapping[str, Any], type_: str, reason: str, note: str) -> None:
        assert regarding["kind"] == "CompressionJob"
        self.events.append((type_, reason, note))

    @property
    def reasons(self) -> list[str]:
        return [reason for _, reason, _ in self.events]


SUCCEEDED = {"jobStatus": "SUCCEEDED", "jobDeploymentStatus": "Complete"}
CRASHED = {"jobStatus": "FAILED", "jobDeploymentStatus": "Failed", "reason": "AppFailed", "message": "out of luck"}


@dataclass
class World:
    """A job, its cluster, a controller, and KubeRay as far as it concerns us."""

    cluster: MemoryCluster
    clock: Clock
    told: Told
    metrics: Metrics
    settings: Settings
    # How the attempts end, one after the other; the last entry goes for all that follow.
    script: Sequence[Object] = (SUCCEEDED,)
    name: str = "emoji"
    namespace: str = "team"

    def reconcile(self) -> float | None:
        # A new one each time: nothing may be remembered between rounds.
        controller = Reconciler(self.cluster, self.told, self.metrics, self.settings, self.clock)
        return controller.reconcile(self.namespace, self.name)

    def job(self) -> Object:
        return self.cluster.get(JOBS, self.name, self.namespace)

    def status(self) -> Object:
        return self.job().get("status", {})

    def condition(self, kind: str) -> Object:
        return next((each for each in self.status()["conditions"] if each["type"] == kind), {})

    def change_spec(self, **changes: Any) -> None:
        self._behind(lambda: self.cluster.patch(JOBS, self.name, {"spec": changes}, self.namespace))

    def ray_jobs(self) -> list[Object]:
        return [item for (kind, _, _), item in self.cluster.objects.items() if kind == RAY_JOBS]

    def set_ray_job(self, attempt: int, **status: Any) -> None:
        self._behind(
            lambda: self.cluster.patch(
                RAY_JOBS, f"{self.name}-{attempt}", {"status": status}, self.namespace, subresource="status"
            )
        )

    def kuberay_acts(self) -> bool:
        """One move for each RayJob: a head pod, then running, then the end that the script says."""
        moved = False
        for ray_job in self.ray_jobs():
            meta, status = ray_job["metadata"], ray_job.get("status", {})
            attempt = int(meta["labels"]["limbeck.dev/attempt"])
            if not status:
                self.add_pod(ray_job, "head")
                moves = {"jobDeploymentStatus": "Initializing", "startTime": self.clock.now.isoformat()}
            elif status["jobDeploymentStatus"] == "Initializing":
                moves = {
                    "jobDeploymentStatus": "Running",
                    "jobStatus": "RUNNING",
                    "rayClusterName": f"{meta['name']}-x",
                }
            elif status["jobDeploymentStatus"] == "Running":
                moves = self.script[min(attempt, len(self.script)) - 1]
                if not moves:
                    continue
            else:
                continue
            self.set_ray_job(attempt, **moves)
            moved = True
        return moved

    def add_pod(self, ray_job: Object, kind: str, status: Object | None = None) -> None:
        labels = {**ray_job["metadata"]["labels"], "ray.io/node-type": kind}
        owner = {"kind": "RayJob", "name": ray_job["metadata"]["name"], "uid": ray_job["metadata"]["uid"]}
        name = f"{ray_job['metadata']['name']}-{kind}"
        body = {"metadata": {"name": name, "labels": labels, "ownerReferences": [owner]}}
        body["status"] = status or {"phase": "Running"}
        self._behind(lambda: self.cluster.create(PODS, body, self.namespace))

    def run_to_rest(self, max_rounds: int = 300) -> None:
        """Rounds until nothing moves; a round that is cut off is begun again."""
        for _ in range(max_rounds):
            before = self.cluster.version
            try:
                again = self.reconcile()
            except (UnreachableError, ConflictError):
                continue
            if self.kuberay_acts() or self.cluster.version != before or again == 0:
                continue
            if again is None:
                return
            self.clock.advance(again)
        raise AssertionError(f"no rest after {max_rounds} rounds: {self.status()}")

    def _behind(self, act: Callable[[], Any]) -> None:
        """A write that is not the controller's: it neither counts nor fails."""
        num_writes, fault, self.cluster.fault = self.cluster.num_writes, self.cluster.fault, None
        num_told = len(self.cluster.writes)
        act()
        self.cluster.num_writes, self.cluster.fault = num_writes, fault
        del self.cluster.writes[num_told:]


@pytest.fixture
def settings() -> Settings:
    return Settings(image="registry.example/limbeck:1", server_url="https://limbeck.example:8443")


@pytest.fixture
def served_job(build_job: Callable[..., Object]) -> Callable[..., Object]:
    """A job as the API server hands it out."""

    def build(**changes: Any) -> Object:
        job = build_job(**changes)
        job["metadata"] |= {
            "namespace": "team",
            "uid": JOB_UID,
            "generation": 1,
            "creationTimestamp": START.isoformat(),
        }
        job["status"] = {"observedGeneration": -1, **job.get("status", {})}
        return job

    return build


@pytest.fixture
def job_model(served_job: Callable[..., Object]) -> Callable[..., CompressionJob]:
    def build(**changes: Any) -> CompressionJob:
        return CompressionJob.model_validate(served_job(**changes))

    return build


@pytest.fixture
def new_world(served_job: Callable[..., Object], settings: Settings) -> Callable[..., World]:
    """`new_world(script, **changes of the job)`."""

    def build(script: Sequence[Object] = (SUCCEEDED,), **changes: Any) -> World:
        clock = Clock()
        cluster = MemoryCluster(clock)
        cluster.create(JOBS, served_job(**changes), "team")
        cluster.num_writes = 0
        cluster.writes.clear()
        return World(cluster, clock, Told(), Metrics(), settings, script)

    return build
