"""What whoever installs the operator decides about all jobs. Left out: how that is read (the process's main)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


def _spot_tolerations() -> tuple[Mapping[str, Any], ...]:
    return tuple(
        {"key": key, "operator": "Equal", "value": value, "effect": "NoSchedule"}
        for key, value in (
            ("cloud.google.com/gke-spot", "true"),
            ("kubernetes.azure.com/scalesetpriority", "spot"),
            ("eks.amazonaws.com/capacityType", "SPOT"),
            ("karpenter.sh/capacity-type", "spot"),
        )
    )


@dataclass(frozen=True)
class Settings:
    """Defaults fit the chart's; `image` has none."""

    # Runtime image of jobs that name none, and the Ray in it: KubeRay decides by it how to probe.
    image: str
    ray_version: str = "2.60.0"
    image_pull_policy: str = "IfNotPresent"
    # Numeric, for `runAsNonRoot` can be checked only against a number.
    run_as_user: int = 1000
    # Address of limbeck's server, https://HOST:PORT; empty: runs report nothing, and are stopped by a signal.
    server_url: str = ""
    # Certificate authority of the server in PEM; empty: the system's.
    server_ca_pem: str = ""
    # Who may reach the job's pods beside each other.
    kuberay_namespace: str = "kuberay-system"
    limbeck_namespace: str = "limbeck-system"
    metrics_port: int = 9464
    # Taints of nodes that may go at any time, tolerated where a pool says `spot: true`.
    spot_tolerations: tuple[Mapping[str, Any], ...] = field(default_factory=_spot_tolerations)
    # Wait after the first failed attempt; each further failure doubles it.
    retry_base_seconds: float = 10.0
    retry_cap_seconds: float = 360.0
    # Attempts that may end by preemption or eviction, beside those of `backoffLimit`.
    preemption_budget: int = 20
    # How long a run that was asked for a checkpoint may take before it is stopped by a signal.
    suspend_grace_seconds: float = 120.0
    # How soon to look again for what nobody tells us: KubeRay, a Secret, a quota.
    probe_seconds: float = 30.0
    # Teacher pods without work are given back after this time.
    teacher_idle_seconds: int = 60
