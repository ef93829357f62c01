"""Names that the controller gives to what it makes, and the reasons in its conditions and events."""

from __future__ import annotations

from typing import Final

from limbeck import names
from limbeck.kube.transport import Resource

FIELD_MANAGER: Final = "limbeck-operator"
# Who our events say that they are from.
EVENT_SOURCE: Final = "limbeck.dev/operator"
# Settings of the process are environment variables that begin so.
ENV_PREFIX: Final = "LIMBECK_OPERATOR_"

# Kinds that the controller reads and writes.
JOBS: Final = Resource(names.GROUP, names.VERSION, names.PLURAL)
RAY_JOBS: Final = Resource("ray.io", "v1", "rayjobs")
CONFIG_MAPS: Final = Resource("", "v1", "configmaps")
NETWORK_POLICIES: Final = Resource("networking.k8s.io", "v1", "networkpolicies")
PODS: Final = Resource("", "v1", "pods")
SECRETS: Final = Resource("", "v1", "secrets")

# Labels of others that we read or pass on.
LABEL_RAY_NODE_TYPE: Final = "ray.io/node-type"
LABEL_KUEUE_QUEUE: Final = "kueue.x-k8s.io/queue-name"
LABEL_KUEUE_PRIORITY: Final = "kueue.x-k8s.io/priority-class"

# Custom Ray resources that pin work to a pool; the runtime asks for them under the same names.
TEACHER_RESOURCE: Final = "limbeck_teacher"
STUDENT_RESOURCE: Final = "limbeck_student"

# Keys of the job's ConfigMap.
KEY_JOB: Final = "job.json"
KEY_CA: Final = "ca.crt"
KEY_LEDGER: Final = "attempts.json"

# The port on which the driver serves its metrics; at most 15 characters.
PORT_METRICS: Final = "limbeck-metrics"

# Reasons of Reconciling=True: there is no RayJob yet.
REASON_CREATING: Final = "CreatingRayJob"
REASON_RETRYING: Final = "WaitingToRetry"
REASON_PODS_LEAVING: Final = "WaitingForPods"
REASON_KUBERAY_ABSENT: Final = "KubeRayAbsent"
REASON_SECRET_MISSING: Final = "SecretNotFound"
REASON_NAME_TAKEN: Final = "NameTaken"
REASON_REFUSED: Final = "CreationRefused"
# Reasons of Reconciling=False.
REASON_CREATED: Final = "RayJobCreated"
REASON_IMAGE: Final = "ImagePullFailed"
REASON_CONTAINER_CONFIG: Final = "ContainerConfigInvalid"
REASON_PODS_REFUSED: Final = "PodsRefused"
REASON_UNSCHEDULABLE: Final = "Unschedulable"
REASON_SUSPENDED: Final = "Suspended"
REASON_FINISHED: Final = "Finished"
# Reasons of Suspended.
REASON_BY_USER: Final = "SuspendedByUser"
REASON_BY_KUEUE: Final = "QueuedByKueue"
REASON_CHECKPOINTING: Final = "WaitingForCheckpoint"
REASON_RESUMED: Final = "Resumed"
# Reasons of Complete and Failed.
REASON_COMPLETE: Final = "Completed"
REASON_INVALID_SPEC: Final = "InvalidSpec"
REASON_BACKOFF: Final = "BackoffLimitExceeded"
REASON_PREEMPTIONS: Final = "PreemptionBudgetExceeded"
REASON_DEADLINE: Final = "DeadlineExceeded"
REASON_GATE: Final = "GateFailed"
REASON_USER_CODE: Final = "UserCodeError"

# Reasons of events that are no reason of a condition.
EVENT_RAY_JOB_CREATED: Final = "RayJobCreated"
EVENT_ATTEMPT_FAILED: Final = "AttemptFailed"
EVENT_ATTEMPT_PREEMPTED: Final = "AttemptPreempted"
EVENT_GATE_PASSED: Final = "GatePassed"

# Metrics. Only those of live jobs name a job.
METRIC_RECONCILES: Final = "limbeck_operator_reconciles_total"
METRIC_RECONCILE_SECONDS: Final = "limbeck_operator_reconcile_seconds"
METRIC_WRITES: Final = "limbeck_operator_writes_total"
METRIC_ATTEMPTS_ENDED: Final = "limbeck_operator_attempts_ended_total"
METRIC_JOBS_FINISHED: Final = "limbeck_operator_jobs_finished_total"
METRIC_JOBS: Final = "limbeck_jobs"
METRIC_JOB_PHASE: Final = "limbeck_job_phase"
METRIC_JOB_ATTEMPT: Final = "limbeck_job_attempt"
METRIC_JOB_PROGRESS: Final = "limbeck_job_progress_ratio"


def children_name(job: str) -> str:
    """Name of the job's ConfigMap and NetworkPolicy."""
    return f"{job}-limbeck"


def ray_job_name(job: str, attempt: int) -> str:
    """Name of an attempt's RayJob."""
    return f"{job}-{attempt}"
