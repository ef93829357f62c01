"""The RayJob of one attempt: a head for the driver, a group of teacher pods, a group of student pods. Pure.

One RayJob is one try (`backoffLimit: 0`): the retries are ours, for only we know whether another one makes sense.
SidecarMode, because the others submit the driver again on a new head, or die with a pod of their own.
Left out: `spec.suspend`, which belongs to Kueue.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from limbeck import names
from limbeck.api.v1alpha1.job import CompressionJob, Spec
from limbeck.controller.children import labels, metadata
from limbeck.controller.names import (
    KEY_CA,
    KEY_JOB,
    LABEL_KUEUE_PRIORITY,
    LABEL_KUEUE_QUEUE,
    PORT_METRICS,
    STUDENT_RESOURCE,
    TEACHER_RESOURCE,
    children_name,
    ray_job_name,
)
from limbeck.controller.pods import PodNeeds, container_security, pod_template
from limbeck.controller.settings import Settings

Object = dict[str, Any]

_JOB_FOLDER: Final = "/etc/limbeck/job"
_TOKEN_FOLDER: Final = "/var/run/secrets/limbeck.dev/server"
_API_TOKEN_FOLDER: Final = "/var/run/secrets/kubernetes.io/serviceaccount"
_JOB_VOLUME: Final = "limbeck-job"
_TOKEN_VOLUME: Final = "limbeck-server-token"
_API_TOKEN_VOLUME: Final = "limbeck-autoscaler-token"
_TOKEN_SECONDS: Final = 3600
# A failed submitter hides how the driver ended: KubeRay looks at it first, every three seconds, and then asks no more.
# Its shell, which the entrypoint goes through as it is, waits until KubeRay has read the end of the run.
_SECONDS_TO_BE_READ: Final = 10
# Ports that KubeRay looks for by name; `metrics` is Ray's own.
_RAY_PORTS: Final = (("gcs-server", 6379), ("dashboard", 8265), ("client", 10001), ("metrics", 8080))


def desired_rayjob(job: CompressionJob, attempt: int, settings: Settings) -> Object:
    """The RayJob `<name>-<attempt>`."""
    meta = metadata(job, ray_job_name(job.metadata.name, attempt), "run", attempt)
    passed_on = (LABEL_KUEUE_QUEUE, LABEL_KUEUE_PRIORITY)
    meta["labels"] |= {key: job.metadata.labels[key] for key in passed_on if key in job.metadata.labels}
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": meta,
        "spec": {
            "submissionMode": "SidecarMode",
            "backoffLimit": 0,
            "shutdownAfterJobFinishes": True,
            "entrypoint": f"python -m limbeck_runtime.driver --job {_JOB_FOLDER}/{KEY_JOB} "
            f"--attempt {attempt} --metrics-port {settings.metrics_port} --metrics-host 0.0.0.0"
            f" || (sleep {_SECONDS_TO_BE_READ}; exit 1)",
            "rayClusterSpec": _cluster(job, attempt, settings),
        },
    }


def secrets_of(spec: Spec) -> list[str]:
    """Secrets with credentials, which become environment variables of all pods."""
    places = [place for place in (spec.output, spec.store) if place is not None]
    return sorted({place.credentials_secret_ref.name for place in places if place.credentials_secret_ref is not None})


def _cluster(job: CompressionJob, attempt: int, settings: Settings) -> Object:
    spec = job.spec
    teacher = spec.cluster.teacher
    scales = spec.teacher is not None and teacher.min_replicas < teacher.max_replicas
    cluster: Object = {
        "rayVersion": settings.ray_version,
        "authOptions": {"mode": "token"},
        "enableInTreeAutoscaling": scales,
        "headGroupSpec": {
            # No work on the head but the driver's own.
            "rayStartParams": {"num-cpus": "0", "num-gpus": "0", "disable-usage-stats": "true"},
            "template": pod_template(spec.cluster.head.template, _head_needs(job, attempt, scales, settings), settings),
        },
        "workerGroupSpecs": _workers(job, attempt, scales, settings),
    }
    if scales:
        cluster["autoscalerOptions"] = {
            "version": "v2",
            "idleTimeoutSeconds": settings.teacher_idle_seconds,
            "securityContext": container_security(),
            # It alone talks to the API server.
            "volumeMounts": [{"name": _API_TOKEN_VOLUME, "mountPath": _API_TOKEN_FOLDER, "readOnly": True}],
        }
    return cluster


def _head_needs(job: CompressionJob, attempt: int, scales: bool, settings: Settings) -> PodNeeds:
    volumes: list[Object] = [_job_volume(job, settings)]
    mounts: list[Object] = [{"name": _JOB_VOLUME, "mountPath": _JOB_FOLDER, "readOnly": True}]
    if settings.server_url:
        token = {"audience": names.PROGRESS_AUDIENCE, "expirationSeconds": _TOKEN_SECONDS, "path": "token"}
        volumes.append({"name": _TOKEN_VOLUME, "projected": {"sources": [{"serviceAccountToken": token}]}})
        mounts.append({"name": _TOKEN_VOLUME, "mountPath": _TOKEN_FOLDER, "readOnly": True})
    if scales:
        volumes.append(_api_token_volume())
    ports = [*_RAY_PORTS, (PORT_METRICS, settings.metrics_port)]
    return PodNeeds(
        container="ray-head",
        image=job.spec.cluster.image or settings.image,
        labels=labels(job, "head", attempt),
        annotations={
            "prometheus.io/scrape": "true",
            "prometheus.io/port": str(settings.metrics_port),
            "prometheus.io/path": "/metrics",
        },
        requests={"cpu": "500m", "memory": "2Gi"},
        env=_progress_env(job, settings),
        secrets=secrets_of(job.spec),
        ports=[{"name": name, "containerPort": number} for name, number in ports],
        volumes=volumes,
        mounts=mounts,
        # The head is the attempt: when its container ends, the attempt has.
        restart_policy="Never",
    )


def _progress_env(job: CompressionJob, settings: Settings) -> list[Object]:
    if not settings.server_url:
        return []
    place = f"namespaces/{job.metadata.namespace}/jobs/{job.metadata.name}/progress"
    env = {
        names.ENV_PROGRESS_URL: f"{settings.server_url.rstrip('/')}/api/v1/{place}",
        names.ENV_PROGRESS_TOKEN_FILE: f"{_TOKEN_FOLDER}/token",
    }
    if settings.server_ca_pem:
        env[names.ENV_PROGRESS_CA_FILE] = f"{_JOB_FOLDER}/{KEY_CA}"
    return [{"name": name, "value": value} for name, value in env.items()]


def _job_volume(job: CompressionJob, settings: Settings) -> Object:
    keys = [KEY_JOB, KEY_CA] if settings.server_ca_pem else [KEY_JOB]
    items = [{"key": key, "path": key} for key in keys]
    return {"name": _JOB_VOLUME, "configMap": {"name": children_name(job.metadata.name), "items": items}}


def _api_token_volume() -> Object:
    """What the kubelet would mount into every container of the pod, for the one that needs it."""
    field = {"apiVersion": "v1", "fieldPath": "metadata.namespace"}
    sources = [
        {"serviceAccountToken": {"expirationSeconds": _TOKEN_SECONDS, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": field}]}},
    ]
    return {"name": _API_TOKEN_VOLUME, "projected": {"sources": sources}}


def _workers(job: CompressionJob, attempt: int, scales: bool, settings: Settings) -> list[Object]:
    spec, pools = job.spec, job.spec.cluster
    groups = []
    if spec.teacher is not None:
        spot = settings.spot_tolerations if pools.teacher.spot else ()
        needs = _worker_needs(job, "teacher", attempt, scales, spot, settings)
        replicas = pools.teacher.min_replicas, pools.teacher.max_replicas
        groups.append(_group("teacher", TEACHER_RESOURCE, replicas, pools.teacher.template, needs, settings))
    needs = _worker_needs(job, "student", attempt, scales, (), settings)
    replicas = pools.student.replicas, pools.student.replicas
    groups.append(_group("student", STUDENT_RESOURCE, replicas, pools.student.template, needs, settings))
    return groups


def _worker_needs(
    job: CompressionJob,
    pool: str,
    attempt: int,
    scales: bool,
    tolerations: tuple[Mapping[str, Any], ...],
    settings: Settings,
) -> PodNeeds:
    return PodNeeds(
        container="ray-worker",
        image=job.spec.cluster.image or settings.image,
        labels=labels(job, pool, attempt),
        requests={"cpu": "1", "memory": "2Gi"},
        secrets=secrets_of(job.spec),
        tolerations=tolerations,
        # The autoscaler wants it so; without it a pod whose Ray died starts again in its place.
        restart_policy="Never" if scales else None,
    )


def _group(
    name: str,
    resource: str,
    replicas: tuple[int, int],
    template: Mapping[str, Any],
    needs: PodNeeds,
    settings: Settings,
) -> Object:
    fewest, most = replicas
    return {
        "groupName": name,
        "replicas": fewest,
        "minReplicas": fewest,
        "maxReplicas": most,
        "rayStartParams": {
            # KubeRay puts it into a shell command as it is: JSON in quotes.
            "resources": json.dumps(json.dumps({resource: 1})),
            "disable-usage-stats": "true",
        },
        "template": pod_template(template, needs, settings),
    }
