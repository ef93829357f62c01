"""Doing what was decided. Each action may be done twice: a second time it finds its work done."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from limbeck.api.v1alpha1.job import CompressionJob
from limbeck.controller.children import config_map, is_owned, network_policy, uid_of
from limbeck.controller.cluster import Cluster, ledger_in, read_ledger
from limbeck.controller.decision import Action, Create, DeleteJob, DeleteRayJob, Event, Record
from limbeck.controller.ledger import Entry, Ledger
from limbeck.controller.metrics import Metrics
from limbeck.controller.names import (
    CONFIG_MAPS,
    EVENT_RAY_JOB_CREATED,
    FIELD_MANAGER,
    JOBS,
    KEY_LEDGER,
    NETWORK_POLICIES,
    RAY_JOBS,
    children_name,
)
from limbeck.controller.observed import Refusal
from limbeck.controller.planning import resolve
from limbeck.controller.rayjob import desired_rayjob
from limbeck.controller.settings import Settings
from limbeck.kube.errors import AlreadyExistsError, ConflictError, ForbiddenError, InvalidError, NotFoundError
from limbeck.kube.transport import Resource

Object = dict[str, Any]


class RefusedError(Exception):
    """A child could not be made, and trying again at once would not help."""

    def __init__(self, kind: Refusal, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Actions:
    """Acts for one job. All methods raise KubeError."""

    cluster: Cluster
    metrics: Metrics
    settings: Settings
    job: CompressionJob

    def run(self, action: Action) -> Iterator[Event]:
        """Do it, and yield what is worth telling. Raises RefusedError."""
        match action:
            case Create(attempt):
                yield from self._create_children(attempt)
            case Record(entry):
                self._record(entry)
            case DeleteRayJob(name, uid):
                self._delete(RAY_JOBS, name, uid)
            case DeleteJob():
                self._delete(JOBS, self.job.metadata.name, uid_of(self.job))

    def _create_children(self, attempt: int) -> Iterator[Event]:
        """The RayJob last: its pods mount the ConfigMap, and must not run a moment without the NetworkPolicy."""
        try:
            plan = resolve(self.job.spec)
        except ValueError as error:  # the operator that planned it was of another version
            raise RefusedError(Refusal.INVALID, str(error)) from error
        earlier = attempt > 1
        ledger = read_ledger(self.cluster, self.job) if earlier else Ledger()
        self._create(CONFIG_MAPS, config_map(self.job, plan, ledger, self.settings), look_first=earlier)
        self._create(NETWORK_POLICIES, network_policy(self.job, self.settings), look_first=earlier)
        ray_job = desired_rayjob(self.job, attempt, self.settings)
        if self._create(RAY_JOBS, ray_job):
            yield Event("Normal", EVENT_RAY_JOB_CREATED, f"RayJob {ray_job['metadata']['name']} was created")

    def _create(self, resource: Resource, body: Object, *, look_first: bool = False) -> bool:
        """Whether it was made now; False if the job has it already. `look_first` spares a write that would be vain."""
        name = body["metadata"]["name"]
        if look_first and self._has(resource, name):
            return False
        try:
            self.cluster.create(resource, body, self.job.metadata.namespace)
        except AlreadyExistsError:
            if self._has(resource, name):
                return False
            message = f"{body['kind']} {name} must be this job's, got one that is not; delete it, or rename the job"
            raise RefusedError(Refusal.NAME_TAKEN, message) from None
        except NotFoundError as error:
            if resource != RAY_JOBS:
                raise
            raise RefusedError(Refusal.KUBERAY_ABSENT, error.message) from error
        except ForbiddenError as error:
            message = f"{body['kind']} {name} may not be made: {error.message}; raise the quota or give the right"
            raise RefusedError(Refusal.FORBIDDEN, message) from error
        except InvalidError as error:
            raise RefusedError(Refusal.INVALID, f"{body['kind']} {name} is invalid: {error.message}") from error
        self.metrics.wrote(body["kind"])
        return True

    def _has(self, resource: Resource, name: str) -> bool:
        try:
            found = self.cluster.get(resource, name, self.job.metadata.namespace)
        except NotFoundError:
            return False
        return is_owned(found, uid_of(self.job)) and "deletionTimestamp" not in found["metadata"]

    def _record(self, entry: Entry) -> None:
        namespace, name = self.job.metadata.namespace, children_name(self.job.metadata.name)
        try:
            found = self.cluster.get(CONFIG_MAPS, name, namespace)
        except NotFoundError:
            body = config_map(self.job, resolve(self.job.spec), Ledger((entry,)), self.settings)
            if self._create(CONFIG_MAPS, body):
                self.metrics.attempt_ended(entry.ending.value)
            return
        if not is_owned(found, uid_of(self.job)):
            message = f"ConfigMap {name} must be this job's, got one that is not; delete it"
            raise RefusedError(Refusal.NAME_TAKEN, message)
        ledger = ledger_in(found)
        if ledger.of(entry.attempt) is not None:
            return
        change = {
            "metadata": {"resourceVersion": found["metadata"]["resourceVersion"]},
            "data": {KEY_LEDGER: ledger.with_entry(entry).to_json()},
        }
        self.cluster.patch(CONFIG_MAPS, name, change, namespace, field_manager=FIELD_MANAGER)
        self.metrics.wrote("ConfigMap")
        self.metrics.attempt_ended(entry.ending.value)

    def _delete(self, resource: Resource, name: str, uid: str) -> None:
        try:
            self.cluster.delete(resource, name, self.job.metadata.namespace, uid=uid)
        except (NotFoundError, ConflictError):  # gone, or another one by now
            return
        self.metrics.wrote(resource.plural)
