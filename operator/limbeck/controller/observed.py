"""What there is of a job in the cluster, and what it says. Pure: reads plain objects.

A RayJob has neither conditions nor an observed generation; its `jobStatus`, `jobDeploymentStatus`, `reason` and
`message` count together. How the driver ended stands in the message: Ray puts the exit code and the end of the log
there, whose last line is the driver's outcome.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from limbeck import names
from limbeck.controller.ledger import Ledger
from limbeck.controller.names import (
    LABEL_RAY_NODE_TYPE,
    REASON_CONTAINER_CONFIG,
    REASON_IMAGE,
    REASON_PODS_REFUSED,
    REASON_UNSCHEDULABLE,
)

Object = Mapping[str, Any]

_EXIT_CODE: Final = re.compile(r"failed with exit code (-?\d+)")
_MAX_MESSAGE: Final = 1024
# Reasons that the kubelet and the node life-cycle give to pods that they end for the node's sake.
_EVICTIONS: Final = frozenset({"Evicted", "Preempting", "NodeLost", "NodeShutdown", "NodeAffinity", "Terminated"})
_IMAGE_TROUBLES: Final = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"})
_CONFIG_TROUBLES: Final = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})


class Refusal(StrEnum):
    """Why a child could not be made."""

    KUBERAY_ABSENT = "KubeRayAbsent"
    NAME_TAKEN = "NameTaken"
    FORBIDDEN = "Forbidden"
    INVALID = "Invalid"


@dataclass(frozen=True)
class Observed:
    """Children of one job, all matched by owner or label; nothing of an earlier job of the same name."""

    ray_jobs: Sequence[Object] = ()
    pods: Sequence[Object] = ()
    ledger: Ledger = field(default_factory=Ledger)
    # Secrets that the job names and that are not there.
    missing_secrets: Sequence[str] = ()
    kuberay_served: bool = True
    # What happened when a child was to be made just now, and its message.
    refusal: tuple[Refusal, str] | None = None

    def ray_job(self, attempt: int) -> Object | None:
        """The RayJob of an attempt."""
        return next((found for found in self.ray_jobs if attempt_of(found) == attempt), None)

    def pods_of(self, attempt: int) -> list[Object]:
        """The pods of an attempt."""
        return [pod for pod in self.pods if attempt_of(pod) == attempt]

    def head_pod(self, attempt: int) -> Object | None:
        """The head of an attempt."""
        return next((pod for pod in self.pods_of(attempt) if _is_head(pod)), None)


def attempt_of(child: Object) -> int:
    """The attempt that a child's label names; 0 for none."""
    text = str((child["metadata"].get("labels") or {}).get(names.LABEL_ATTEMPT, ""))
    return int(text) if text.isascii() and text.isdigit() else 0


class RunEnding(StrEnum):
    """How a RayJob came out."""

    SUCCEEDED = "Succeeded"
    GATE_FAILED = "GateFailed"
    USER_CODE_ERROR = "UserCodeError"
    INVALID_SPEC = "InvalidSpec"
    INTERRUPTED = "Interrupted"
    PREEMPTED = "Preempted"
    FAILED = "Failed"


_BY_EXIT_CODE: Final = {
    names.EXIT_OK: RunEnding.SUCCEEDED,
    names.EXIT_GATE_FAILED: RunEnding.GATE_FAILED,
    names.EXIT_USER_CODE_ERROR: RunEnding.USER_CODE_ERROR,
    names.EXIT_INVALID_SPEC: RunEnding.INVALID_SPEC,
    names.EXIT_INTERRUPTED: RunEnding.INTERRUPTED,
}


@dataclass(frozen=True)
class Verdict:
    """How an attempt ended."""

    ending: RunEnding
    message: str


def verdict(ray_job: Object, pods: Iterable[Object]) -> Verdict | None:
    """How the attempt ended, None while it goes on. A head that the cluster takes away ends it at once."""
    status = ray_job.get("status") or {}
    deployment, state = status.get("jobDeploymentStatus", ""), status.get("jobStatus", "")
    message = str(status.get("message") or "")
    if state == "SUCCEEDED" and deployment != "Failed":
        return Verdict(RunEnding.SUCCEEDED, "the job is complete")
    if deployment == "ValidationFailed":
        return Verdict(RunEnding.INVALID_SPEC, f"KubeRay refuses the RayJob: {message}; change the pod templates")
    disrupted = [pod for pod in pods if _disruption(pod)]
    if state in ("FAILED", "STOPPED") or deployment in ("Failed", "Complete"):
        said = _outcome(message)
        if said is not None and said.ending not in (RunEnding.FAILED, RunEnding.INTERRUPTED):
            return said
        if disrupted:
            return _preempted(disrupted[0])
        if said is not None:
            return said
        reason = str(status.get("reason") or state or deployment)
        return Verdict(RunEnding.FAILED, _short(f"{reason}: {message or 'the run ended without a word'}"))
    heads = [pod for pod in disrupted if _is_head(pod)]
    return _preempted(heads[0]) if heads else None


def _outcome(message: str) -> Verdict | None:
    """What the driver said last, or else its exit code."""
    for line in reversed(message.splitlines()):
        _, found, text = line.partition(f"{names.OUTCOME_PREFIX} ")
        if not found:
            continue
        try:
            said = json.loads(text)
            code, words = int(said["exit_code"]), str(said["message"])
            reason = str(said.get("reason") or "Error")
        except (ValueError, KeyError, TypeError):
            continue
        ending = _BY_EXIT_CODE.get(code, RunEnding.FAILED)
        return Verdict(ending, _short(words if ending is not RunEnding.FAILED else f"{reason}: {words}"))
    code_found = _EXIT_CODE.search(message)
    if code_found is None:
        return None
    ending = _BY_EXIT_CODE.get(int(code_found.group(1)), RunEnding.FAILED)
    return Verdict(ending, _short(message))


def is_queued(ray_job: Object) -> bool:
    """Whether Kueue, which owns `spec.suspend`, holds it back."""
    deployment = (ray_job.get("status") or {}).get("jobDeploymentStatus", "")
    return bool((ray_job.get("spec") or {}).get("suspend")) or deployment in ("Suspending", "Suspended")


def is_running(ray_job: Object) -> bool:
    """Whether the driver is at work."""
    return bool((ray_job.get("status") or {}).get("jobStatus") == "RUNNING")


def started(ray_job: Object) -> datetime | None:
    """Since when the attempt takes time; None while it is queued."""
    if is_queued(ray_job):
        return None
    text = (ray_job.get("status") or {}).get("startTime") or ray_job["metadata"].get("creationTimestamp")
    return datetime.fromisoformat(text) if text else None


def may_run(pod: Object) -> bool:
    """Whether a process of the pod may still be at work."""
    return (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed")


def trouble(ray_job: Object, pods: Iterable[Object]) -> tuple[str, str] | None:
    """Reason and message of what keeps a pod from being made or from starting, the first that is found, by name."""
    cluster = (ray_job.get("status") or {}).get("rayClusterStatus") or {}
    for condition in cluster.get("conditions") or []:
        if condition.get("type") == "ReplicaFailure" and condition.get("status") == "True":
            return REASON_PODS_REFUSED, _short(_refusal_of_pods(str(condition.get("message") or "")))
    for pod in sorted(pods, key=lambda pod: str(pod["metadata"]["name"])):
        found = _trouble_of(pod)
        if found is not None:
            return found
    return None


def _refusal_of_pods(said: str) -> str:
    """Without the pod's name, which is another one at each try."""
    why = said.partition(" is forbidden: ")[2] or said
    if "PodSecurity" in why:
        advice = "label its namespace pod-security.kubernetes.io/enforce=baseline: KubeRay's submitter needs that"
    elif "quota" in why:
        advice = "raise the namespace's quota, or ask for less in the pod templates"
    else:
        advice = "correct the pod templates in a new job"
    return f"KubeRay cannot make the job's pods: {why}; {advice}"


def _trouble_of(pod: Object) -> tuple[str, str] | None:
    name, status = pod["metadata"]["name"], pod.get("status") or {}
    for container in [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]:
        waiting = (container.get("state") or {}).get("waiting") or {}
        said = str(waiting.get("message") or waiting.get("reason") or "")
        if waiting.get("reason") in _IMAGE_TROUBLES:
            image = container.get("image", "")
            advice = "correct `spec.cluster.image` or the registry's credentials in a new job"
            # The kubelet's words change with each try (back-off times); the first would be written again and again.
            return REASON_IMAGE, _short(f"pod {name} cannot get image {image!r}; {advice}")
        if waiting.get("reason") in _CONFIG_TROUBLES:
            return REASON_CONTAINER_CONFIG, _short(
                f"pod {name} cannot start a container: {said}; create what it misses"
            )
    for condition in status.get("conditions") or []:
        if condition.get("type") == "PodScheduled" and condition.get("reason") == "Unschedulable":
            advice = "ask for less in the pod template, or add nodes"
            return REASON_UNSCHEDULABLE, _short(
                f"no node can hold pod {name}: {condition.get('message', '')}; {advice}"
            )
    return None


def _disruption(pod: Object) -> str:
    """Why the cluster takes the pod away; empty if it does not."""
    status = pod.get("status") or {}
    for condition in status.get("conditions") or []:
        if condition.get("type") == "DisruptionTarget" and condition.get("status") == "True":
            return str(condition.get("reason") or "DisruptionTarget")
    reason = str(status.get("reason") or "")
    return reason if status.get("phase") == "Failed" and reason in _EVICTIONS else ""


def _preempted(pod: Object) -> Verdict:
    return Verdict(RunEnding.PREEMPTED, f"the cluster took pod {pod['metadata']['name']} away: {_disruption(pod)}")


def _is_head(pod: Object) -> bool:
    return bool((pod["metadata"].get("labels") or {}).get(LABEL_RAY_NODE_TYPE) == "head")


def _short(text: str) -> str:
    """The end says more than the beginning, but the beginning says what it is."""
    half = _MAX_MESSAGE // 2
    return text if len(text) <= _MAX_MESSAGE else f"{text[: half - 3]} ... {text[-half + 3 :]}"
