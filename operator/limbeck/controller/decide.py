"""What is to become of a job: from what it says, what there is, and the time, to a status and to things to do. Pure.

The status is written before anything is done, and each thing to do may be done twice: so a crash between any two
writes is made good by deciding again. In particular an attempt is claimed in the status before its RayJob is made,
and closed in the ledger before its RayJob is removed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final

from limbeck.api.plan import Plan
from limbeck.api.status import ConditionType, Phase
from limbeck.api.v1alpha1.job import CompressionJob
from limbeck.controller import names
from limbeck.controller.conditions import Truth, find, holds, is_finished, with_condition
from limbeck.controller.decision import Create, Decision, DeleteJob, DeleteRayJob, Event, Record
from limbeck.controller.finish import finished_status
from limbeck.controller.ledger import Ending, Entry
from limbeck.controller.names import ray_job_name
from limbeck.controller.observed import (
    Object,
    Observed,
    Refusal,
    RunEnding,
    Verdict,
    is_queued,
    is_running,
    may_run,
    started,
    trouble,
    verdict,
)
from limbeck.controller.planning import resolve
from limbeck.controller.settings import Settings

_FINAL_FAILURES: Final = {
    RunEnding.GATE_FAILED: names.REASON_GATE,
    RunEnding.USER_CODE_ERROR: names.REASON_USER_CODE,
    RunEnding.INVALID_SPEC: names.REASON_INVALID_SPEC,
}
_REFUSALS: Final = {
    Refusal.KUBERAY_ABSENT: names.REASON_KUBERAY_ABSENT,
    Refusal.NAME_TAKEN: names.REASON_NAME_TAKEN,
    Refusal.FORBIDDEN: names.REASON_REFUSED,
}
_KUBERAY_ADVICE: Final = "the cluster serves no RayJob; install KubeRay 1.6 or later"


def decide(job: CompressionJob, observed: Observed, now: datetime, settings: Settings) -> Decision:
    """The next status of a job, and what to do after it has been written."""
    case = _Case(job, observed, now.replace(microsecond=0), settings)
    if is_finished(job.status):
        return case.after_the_end()
    if observed.refusal is not None and observed.refusal[0] is Refusal.INVALID:
        return case.failed(names.REASON_INVALID_SPEC, f"{observed.refusal[1]}; change the pod templates in a new job")
    attempt = job.status.attempt
    if attempt == 0 or observed.ledger.of(attempt) is not None:
        return case.between_attempts()
    if not observed.kuberay_served:
        return case.blocked(names.REASON_KUBERAY_ABSENT, _KUBERAY_ADVICE)
    ray_job = observed.ray_job(attempt)
    return case.without_ray_job() if ray_job is None else case.with_ray_job(ray_job)


@dataclass(frozen=True)
class _Case:
    """One job at one time; each method is one situation that it can be in."""

    job: CompressionJob
    observed: Observed
    now: datetime
    settings: Settings

    @property
    def generation(self) -> int:
        return int((self.job.metadata.model_extra or {}).get("generation", 0))

    def after_the_end(self) -> Decision:
        """Terminal states are final: what is left to do is to clean up, and to go when the time has come."""
        status = self.job.status.model_copy(update={"observed_generation": self.generation})
        leftovers = _deletions(self.observed.ray_jobs)
        lives = self.job.spec.ttl_seconds_after_finished
        if lives is None or status.completion_time is None:
            return Decision(status, leftovers)
        left = _seconds(status.completion_time + timedelta(seconds=lives) - self.now)
        if left > 0:
            return Decision(status, leftovers, requeue_after=left)
        return Decision(status, [*leftovers, DeleteJob()])

    def between_attempts(self) -> Decision:
        """No attempt is open: the first is to come, or one has ended and another may follow."""
        attempt, ledger, spec = self.job.status.attempt, self.observed.ledger, self.job.spec
        plan = None
        if attempt == 0:
            try:
                plan = resolve(spec)
            except ValueError as error:
                return self.failed(names.REASON_INVALID_SPEC, f"{error}; create a corrected job")
        last = ledger.of(attempt)
        failures, preemptions = ledger.count(Ending.FAILED, attempt), ledger.count(Ending.PREEMPTED, attempt)
        if last is not None and last.ending is Ending.FAILED and failures > spec.backoff_limit:
            message = f"{failures} attempts failed, `spec.backoffLimit` allows {spec.backoff_limit}: {last.message}"
            return self.failed(names.REASON_BACKOFF, message)
        if preemptions > self.settings.preemption_budget:
            message = f"{preemptions} attempts were preempted; use nodes that stay"
            return self.failed(names.REASON_PREEMPTIONS, message)
        if self._seconds_left(None) <= 0:
            return self._too_late()
        leftovers = self.observed.ray_jobs
        alive = [pod["metadata"]["name"] for pod in self.observed.pods if may_run(pod)]
        if leftovers or alive:
            return self._leaving(_deletions(leftovers), alive)
        if spec.suspend:
            return self._suspended()
        blocked = self._obstacle()
        if blocked is not None:
            return blocked
        if last is not None:
            wait = self._retry_seconds(last, failures)
            if wait > 0:
                message = (
                    f"attempt {attempt} {last.ending.value.lower()}: {last.message}; attempt {attempt + 1} follows"
                )
                return self._reconciling(names.REASON_RETRYING, message, requeue_after=wait)
        return self._claim(attempt + 1, plan)

    def without_ray_job(self) -> Decision:
        """The attempt is claimed. Its RayJob has not been made yet, or has been seen and is gone."""
        status, attempt = self.job.status, self.job.status.attempt
        name = ray_job_name(self.job.metadata.name, attempt)
        if self.job.spec.suspend:
            return self._close(Ending.SUSPENDED, "suspended", None)
        if status.ray_job == name:
            return self._close(Ending.FAILED, f"RayJob {name} was deleted by somebody else", None)
        blocked = self._obstacle()
        if blocked is not None:
            return blocked
        return self._reconciling(names.REASON_CREATING, f"makes RayJob {name}", actions=[Create(attempt)])

    def with_ray_job(self, ray_job: Object) -> Decision:
        """The attempt runs, waits to run, or has just ended."""
        attempt, spec = self.job.status.attempt, self.job.spec
        found = verdict(ray_job, self.observed.pods_of(attempt))
        if found is not None:
            return self._having_seen(ray_job)._ended(found, ray_job)
        left = self._seconds_left(ray_job)
        if left <= 0:
            return self._having_seen(ray_job)._too_late()
        if spec.suspend:
            return self._checkpointing(ray_job)
        if is_queued(ray_job):
            message = f"Kueue holds RayJob {ray_job['metadata']['name']} back; see its Workload for the reason"
            return self._decision(
                [
                    (ConditionType.SUSPENDED, "True", names.REASON_BY_KUEUE, message),
                    (ConditionType.RECONCILING, "False", names.REASON_CREATED, "the RayJob is queued"),
                ],
                phase=Phase.SUSPENDED,
                ray_job=ray_job["metadata"]["name"],
            )
        return self._running(ray_job, left)

    def failed(self, reason: str, message: str) -> Decision:
        """The job has failed for good; what it leaves is removed in the next round."""
        status = finished_status(self.job.status, self.generation, ConditionType.FAILED, reason, message, self.now)
        return Decision(status, events=[Event("Warning", reason, message)], requeue_after=0.0)

    def blocked(self, reason: str, message: str) -> Decision:
        """Nobody will tell us when this is over: look again."""
        events = [] if self._reason_is(reason) else [Event("Warning", reason, message)]
        return self._reconciling(reason, message, events=events, requeue_after=self.settings.probe_seconds)

    def _claim(self, attempt: int, plan: Plan | None) -> Decision:
        name = ray_job_name(self.job.metadata.name, attempt)
        status = self.job.status
        resumed = [Event("Normal", names.REASON_RESUMED, f"attempt {attempt} goes on from the last checkpoint")]
        changes: dict[str, Any] = {"attempt": attempt, "ray_job": "", "ray_cluster": "", "head_pod_uid": ""}
        changes["start_time"] = status.start_time or self.now
        if plan is not None:
            changes["plan"] = list(plan.entries)
        return self._reconciling(
            names.REASON_CREATING,
            f"makes RayJob {name}",
            actions=[Create(attempt)],
            events=resumed if holds(status, ConditionType.SUSPENDED) and attempt > 1 else [],
            **changes,
        )

    def _having_seen(self, ray_job: Object) -> _Case:
        """Nobody may have looked while it ran: what it was called belongs into the status all the same."""
        status = self.job.status
        cluster = (ray_job.get("status") or {}).get("rayClusterName") or status.ray_cluster
        seen = status.model_copy(update={"ray_job": ray_job["metadata"]["name"], "ray_cluster": cluster})
        return replace(self, job=self.job.model_copy(update={"status": seen}))

    def _ended(self, found: Verdict, ray_job: Object) -> Decision:
        """A verdict that is final goes to the status, any other to the ledger."""
        if found.ending is RunEnding.SUCCEEDED:
            status = finished_status(
                self.job.status, self.generation, ConditionType.COMPLETE, names.REASON_COMPLETE, found.message, self.now
            )
            events = [Event("Normal", names.REASON_COMPLETE, found.message)]
            if self.job.spec.target is not None:
                events.insert(0, Event("Normal", names.EVENT_GATE_PASSED, "the result reaches `spec.target`"))
            return Decision(status, events=events, requeue_after=0.0)
        if found.ending in _FINAL_FAILURES:
            return self.failed(_FINAL_FAILURES[found.ending], found.message)
        if self.job.spec.suspend:
            return self._close(Ending.SUSPENDED, "suspended", ray_job)
        # Stopped by a signal that nobody of us sent: a drained node, mostly.
        preempted = found.ending in (RunEnding.PREEMPTED, RunEnding.INTERRUPTED)
        return self._close(Ending.PREEMPTED if preempted else Ending.FAILED, found.message, ray_job)

    def _close(self, ending: Ending, message: str, ray_job: Object | None) -> Decision:
        """The attempt is over; the next round sees it in the ledger and goes on from there."""
        attempt = self.job.status.attempt
        since = None if ray_job is None else started(ray_job)
        seconds = 0.0 if since is None else max(0.0, _seconds(self.now - since))
        reasons = {
            Ending.FAILED: names.EVENT_ATTEMPT_FAILED,
            Ending.PREEMPTED: names.EVENT_ATTEMPT_PREEMPTED,
        }
        events = [Event("Warning", reasons[ending], f"attempt {attempt}: {message}")] if ending in reasons else []
        record = Record(Entry(attempt, ending, self.now, seconds, message))
        return Decision(self.job.status, [record], events, requeue_after=0.0)

    def _leaving(self, actions: Sequence[DeleteRayJob], pods: Sequence[str]) -> Decision:
        """Two attempts never run at the same time, whatever the fence would make of it."""
        what = f"pods of attempt {self.job.status.attempt} are still there: {', '.join(sorted(pods)[:3])}"
        message = what if pods else f"the RayJob of attempt {self.job.status.attempt} is still there"
        if self.job.spec.suspend:
            conditions: list[_Setting] = [(ConditionType.SUSPENDED, "Unknown", names.REASON_CHECKPOINTING, message)]
            conditions += self._settled(ConditionType.RECONCILING, names.REASON_SUSPENDED, "the job is to be suspended")
            return self._decision(conditions, actions=actions)
        # Which pods those are changes all the time, and is not worth a write each time.
        waiting = f"waits until attempt {self.job.status.attempt} has left the cluster"
        return self._reconciling(names.REASON_PODS_LEAVING, waiting, actions=actions)

    def _suspended(self) -> Decision:
        conditions: list[_Setting] = [
            (ConditionType.SUSPENDED, "True", names.REASON_BY_USER, "set `spec.suspend` to false to go on")
        ]
        conditions += self._settled(ConditionType.RECONCILING, names.REASON_SUSPENDED, "the job is suspended")
        fresh = not holds(self.job.status, ConditionType.SUSPENDED)
        events = [Event("Normal", names.REASON_BY_USER, "all pods are given back")] if fresh else []
        return self._decision(conditions, events=events, phase=Phase.SUSPENDED)

    def _checkpointing(self, ray_job: Object) -> Decision:
        """The server asks the driver for a checkpoint; one that does not answer in time is stopped by a signal."""
        asked = find(self.job.status, ConditionType.SUSPENDED)
        since = asked.last_transition_time if asked is not None and asked.status == "Unknown" else self.now
        can_ask = bool(self.settings.server_url) and is_running(ray_job)
        grace = self.settings.suspend_grace_seconds if can_ask else 0.0
        left = grace - _seconds(self.now - since)
        if left <= 0:
            return self._close(Ending.SUSPENDED, "suspended", ray_job)
        message = "the run writes a checkpoint before it stops"
        return self._decision(
            [(ConditionType.SUSPENDED, "Unknown", names.REASON_CHECKPOINTING, message)], requeue_after=left
        )

    def _running(self, ray_job: Object, seconds_left: float) -> Decision:
        attempt, name = self.job.status.attempt, ray_job["metadata"]["name"]
        pods = self.observed.pods_of(attempt)
        found = trouble(ray_job, pods)
        reason, message = found or (names.REASON_CREATED, f"RayJob {name} exists")
        events = [Event("Warning", reason, message)] if found is not None and not self._reason_is(reason) else []
        changes: dict[str, Any] = {"ray_job": name, "phase": Phase.PENDING}
        if is_running(ray_job):
            head = self.observed.head_pod(attempt)
            changes["phase"] = Phase.RUNNING
            changes["ray_cluster"] = (ray_job.get("status") or {}).get("rayClusterName", "")
            if head is not None:
                changes["head_pod_uid"] = head["metadata"]["uid"]
        conditions: list[_Setting] = [(ConditionType.RECONCILING, "False", reason, message)]
        conditions += self._settled(ConditionType.SUSPENDED, names.REASON_RESUMED, "the job runs")
        wait = None if seconds_left == float("inf") else seconds_left
        return self._decision(conditions, events=events, requeue_after=wait, **changes)

    def _obstacle(self) -> Decision | None:
        """What keeps a RayJob from being made."""
        if self.observed.refusal is not None:
            kind, message = self.observed.refusal
            return self.blocked(_REFUSALS[kind], _KUBERAY_ADVICE if kind is Refusal.KUBERAY_ABSENT else message)
        if not self.observed.kuberay_served:
            return self.blocked(names.REASON_KUBERAY_ABSENT, _KUBERAY_ADVICE)
        if self.observed.missing_secrets:
            listed = ", ".join(self.observed.missing_secrets)
            namespace = self.job.metadata.namespace
            return self.blocked(
                names.REASON_SECRET_MISSING,
                f"`credentialsSecretRef` must name Secrets of namespace {namespace}, which lacks {listed}; create it",
            )
        return None

    def _retry_seconds(self, last: Entry, failures: int) -> float:
        """How long until the next attempt may begin."""
        if last.ending is Ending.SUSPENDED:
            return 0.0
        doublings = min(max(failures - 1, 0), 30) if last.ending is Ending.FAILED else 0
        wait = min(self.settings.retry_base_seconds * 2.0**doublings, self.settings.retry_cap_seconds)
        return wait - _seconds(self.now - last.ended)

    def _seconds_left(self, ray_job: Object | None) -> float:
        """Until the deadline, which counts the time of all attempts, not that between them."""
        limit = self.job.spec.active_deadline_seconds
        if limit is None:
            return float("inf")
        since = None if ray_job is None else started(ray_job)
        running = 0.0 if since is None else max(0.0, _seconds(self.now - since))
        return limit - self.observed.ledger.seconds - running

    def _too_late(self) -> Decision:
        limit = self.job.spec.active_deadline_seconds
        message = (
            f"all attempts together took longer than `spec.activeDeadlineSeconds`, {limit}; create a job with more"
        )
        return self.failed(names.REASON_DEADLINE, message)

    def _reason_is(self, reason: str) -> bool:
        condition = find(self.job.status, ConditionType.RECONCILING)
        return condition is not None and condition.reason == reason

    def _settled(self, kind: ConditionType, reason: str, message: str) -> list[_Setting]:
        """Set a condition to False, where it is not so already."""
        known = find(self.job.status, kind)
        return [] if known is None or known.status == "False" else [(kind, "False", reason, message)]

    def _reconciling(
        self,
        reason: str,
        message: str,
        *,
        actions: Sequence[Create | DeleteRayJob] = (),
        events: Sequence[Event] = (),
        requeue_after: float | None = None,
        **changes: Any,
    ) -> Decision:
        """There is no RayJob, and there is to be one."""
        conditions: list[_Setting] = [(ConditionType.RECONCILING, "True", reason, message)]
        conditions += self._settled(ConditionType.SUSPENDED, names.REASON_RESUMED, "the job is to go on")
        changes = {"phase": Phase.PENDING, **changes}
        return self._decision(conditions, actions=actions, events=events, requeue_after=requeue_after, **changes)

    def _decision(
        self,
        settings: Sequence[_Setting],
        *,
        actions: Sequence[Create | DeleteRayJob] = (),
        events: Sequence[Event] = (),
        requeue_after: float | None = None,
        **changes: Any,
    ) -> Decision:
        conditions = list(self.job.status.conditions)
        for setting in settings:
            conditions = with_condition(conditions, *setting, generation=self.generation, now=self.now)
        update = {"observed_generation": self.generation, "conditions": conditions, **changes}
        return Decision(self.job.status.model_copy(update=update), actions, events, requeue_after)


_Setting = tuple[ConditionType, Truth, str, str]


def _deletions(ray_jobs: Sequence[Object]) -> list[DeleteRayJob]:
    """One for each that nobody has deleted yet."""
    found = [each["metadata"] for each in ray_jobs]
    return [DeleteRayJob(meta["name"], meta["uid"]) for meta in found if "deletionTimestamp" not in meta]


def _seconds(time: timedelta) -> float:
    return time.total_seconds()
