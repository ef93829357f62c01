"""One job, one round: look, decide, write the status, act, tell.

Any round may be cut off after any write; the next one makes it good (see decide.py). An error of the API server goes
to the caller, who tries again later.
Left out: when to run a round (queue, watches), and who may (leader election).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final, Literal, Protocol

from pydantic import ValidationError

from limbeck import names as api_names
from limbeck.api.status import ConditionType, Status
from limbeck.api.v1alpha1.job import CompressionJob
from limbeck.controller.actions import Actions, RefusedError
from limbeck.controller.cluster import Cluster, observe
from limbeck.controller.conditions import is_finished
from limbeck.controller.decide import decide
from limbeck.controller.decision import Decision, Event
from limbeck.controller.finish import finished_status
from limbeck.controller.metrics import Metrics
from limbeck.controller.names import FIELD_MANAGER, JOBS, REASON_INVALID_SPEC
from limbeck.controller.settings import Settings
from limbeck.kube.errors import NotFoundError

Object = dict[str, Any]

# The part of the status that is ours; progress, steps and result are the server's.
_OWN_FIELDS: Final = frozenset(
    {
        "observed_generation",
        "conditions",
        "phase",
        "attempt",
        "start_time",
        "completion_time",
        "ray_job",
        "ray_cluster",
        "head_pod_uid",
        "plan",
    }
)


class Recorder(Protocol):
    """Tells people what happened: `limbeck.kube.events.EventRecorder`."""

    def record(self, regarding: Mapping[str, Any], type_: Literal["Normal", "Warning"], reason: str, note: str) -> None:
        """Returns at once."""


@dataclass(frozen=True)
class Reconciler:
    """Brings jobs one round further; rounds of different jobs may run side by side."""

    cluster: Cluster
    recorder: Recorder
    metrics: Metrics
    settings: Settings
    clock: Callable[[], datetime]

    def reconcile(self, namespace: str, name: str) -> float | None:
        """Seconds until the job wants another round; None: when something changes. Raises KubeError."""
        raw = self._get(namespace, name)
        if raw is None:
            self.metrics.forget(namespace, name)
            return None
        if (raw.get("spec") or {}).get("managedBy", api_names.MANAGED_BY) != api_names.MANAGED_BY:
            return None
        try:
            job = CompressionJob.model_validate(_readable(raw))
        except ValidationError as error:
            self._refuse(raw, error)
            return None
        observed = observe(self.cluster, job)
        decision = decide(job, observed, self.clock(), self.settings)
        raw, job = self._write_status(raw, job, decision.status)
        try:
            events = [*decision.events, *self._act(job, decision)]
        except RefusedError as refused:
            decision = decide(job, replace(observed, refusal=(refused.kind, str(refused))), self.clock(), self.settings)
            raw, job = self._write_status(raw, job, decision.status)
            events = list(decision.events)
        for event in events:
            self.recorder.record(raw, event.type, event.reason, event.message)
        return decision.requeue_after

    def _get(self, namespace: str, name: str) -> Object | None:
        """The job, unless it is gone or going: then its children go by themselves."""
        try:
            raw = self.cluster.get(JOBS, name, namespace)
        except NotFoundError:
            return None
        return None if "deletionTimestamp" in raw["metadata"] else raw

    def _act(self, job: CompressionJob, decision: Decision) -> list[Event]:
        actions = Actions(self.cluster, self.metrics, self.settings, job)
        return [event for action in decision.actions for event in actions.run(action)]

    def _write_status(self, raw: Object, job: CompressionJob, status: Status) -> tuple[Object, CompressionJob]:
        """The job as it is afterwards. Written only where it differs, and only over what was read."""
        change = _difference(job.status, status)
        if change:
            raw = self._patch_status(raw, change)
            job = CompressionJob.model_validate(_readable(raw))
        self.metrics.seen(job)
        if is_finished(status) and change and "conditions" in change:
            self.metrics.finished(job)
        return raw, job

    def _patch_status(self, raw: Object, change: Object) -> Object:
        meta = raw["metadata"]
        self.metrics.wrote("CompressionJobStatus")
        return self.cluster.patch(
            JOBS,
            meta["name"],
            {"metadata": {"resourceVersion": meta["resourceVersion"]}, "status": change},
            meta["namespace"],
            subresource="status",
            field_manager=FIELD_MANAGER,
        )

    def _refuse(self, raw: Object, error: ValidationError) -> None:
        """A job that the schema let pass and the models do not."""
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        try:
            status = Status.model_validate(raw.get("status") or {})
        except ValidationError:
            status = Status()
        if is_finished(status):
            return
        message = f"`{field}`: {first['msg'].removeprefix('Value error, ')}; create a corrected job"
        generation = int(raw["metadata"].get("generation", 0))
        now = self.clock().replace(microsecond=0)
        failed = finished_status(status, generation, ConditionType.FAILED, REASON_INVALID_SPEC, message, now)
        written = self._patch_status(raw, _difference(status, failed))
        self.recorder.record(written, "Warning", REASON_INVALID_SPEC, message)


def _readable(raw: Object) -> Object:
    """What the models know of a job."""
    return {key: raw[key] for key in ("apiVersion", "kind", "metadata", "spec", "status") if key in raw}


def _difference(old: Status, new: Status) -> Object:
    """What a merge patch must say so that `old` becomes `new`, in our own fields."""
    before, after = _own_part(old), _own_part(new)
    changed: Object = {key: value for key, value in after.items() if before.get(key) != value}
    return changed | {key: None for key in before if key not in after}


def _own_part(status: Status) -> Object:
    """Our fields as JSON; those without a value are left out."""
    wire = status.model_dump(mode="json", by_alias=True, exclude_none=True, include=set(_OWN_FIELDS))
    return {key: value for key, value in wire.items() if value not in ("", [])}
