"""What a job owns beside its RayJobs: a ConfigMap with the resolved job, and a NetworkPolicy. Pure.

Left out: the Ray auth token's Secret, which KubeRay makes itself (`authOptions`); Roles, for pods have no API rights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from limbeck import names
from limbeck.api.plan import Plan
from limbeck.api.v1alpha1.job import CompressionJob
from limbeck.controller.ledger import Ledger
from limbeck.controller.names import KEY_CA, KEY_JOB, KEY_LEDGER, PORT_METRICS, children_name
from limbeck.controller.settings import Settings

Object = dict[str, Any]

_NAMESPACE_LABEL = "kubernetes.io/metadata.name"


def uid_of(job: CompressionJob) -> str:
    """The UID that the API server gave the job."""
    return str((job.metadata.model_extra or {})["uid"])


def labels(job: CompressionJob, component: str, attempt: int | None = None) -> dict[str, str]:
    """Labels of a child, or of the pods of an attempt."""
    found = {
        "app.kubernetes.io/name": "limbeck",
        "app.kubernetes.io/component": component,
        "app.kubernetes.io/part-of": "limbeck",
        "app.kubernetes.io/managed-by": "limbeck-operator",
        names.LABEL_JOB: job.metadata.name,
    }
    return found if attempt is None else {**found, names.LABEL_ATTEMPT: str(attempt)}


def metadata(job: CompressionJob, name: str, component: str, attempt: int | None = None) -> Object:
    """Metadata of a child: when the job goes, the garbage collector removes it."""
    return {
        "name": name,
        "namespace": job.metadata.namespace,
        "labels": labels(job, component, attempt),
        "ownerReferences": [
            {
                "apiVersion": names.API_VERSION,
                "kind": names.KIND,
                "name": job.metadata.name,
                "uid": uid_of(job),
                "controller": True,
            }
        ],
    }


def is_owned(child: Mapping[str, Any], uid: str) -> bool:
    """Whether the child is of the job with this UID; names are used again, UIDs are not."""
    owners = child["metadata"].get("ownerReferences") or []
    return any(owner.get("uid") == uid and owner.get("controller") for owner in owners)


def config_map(job: CompressionJob, plan: Plan, ledger: Ledger, settings: Settings) -> Object:
    """The job as the driver reads it, nothing left to derive, and how earlier attempts ended."""
    data = {KEY_JOB: json.dumps(_resolved(job, plan), sort_keys=True), KEY_LEDGER: ledger.to_json()}
    if settings.server_ca_pem:
        data[KEY_CA] = settings.server_ca_pem
    name = children_name(job.metadata.name)
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata(job, name, "config"), "data": data}


def _resolved(job: CompressionJob, plan: Plan) -> Object:
    """Without the pod templates: the runtime has no use for them, and their environment may be confidential."""
    wire = job.model_copy(update={"spec": plan.spec}).to_wire()
    cluster = plan.spec.cluster
    wire["spec"]["cluster"] = {
        "teacher": {"minReplicas": cluster.teacher.min_replicas, "maxReplicas": cluster.teacher.max_replicas},
        "student": {"replicas": cluster.student.replicas},
    }
    wire["metadata"] = {"name": job.metadata.name, "namespace": job.metadata.namespace, "uid": uid_of(job)}
    wire.pop("status", None)
    return wire


def network_policy(job: CompressionJob, settings: Settings) -> Object:
    """Lets in the job's own pods, KubeRay's operator and limbeck's; the metrics port is open to all of the cluster."""
    own_pods = {"podSelector": {"matchLabels": {names.LABEL_JOB: job.metadata.name}}}
    operators = [
        {"namespaceSelector": {"matchLabels": {_NAMESPACE_LABEL: namespace}}}
        for namespace in sorted({settings.kuberay_namespace, settings.limbeck_namespace})
    ]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(job, children_name(job.metadata.name), "network"),
        "spec": {
            "podSelector": own_pods["podSelector"],
            "policyTypes": ["Ingress"],
            "ingress": [
                {"from": [own_pods, *operators]},
                {"from": [{"namespaceSelector": {}}], "ports": [{"protocol": "TCP", "port": PORT_METRICS}]},
            ],
        },
    }
