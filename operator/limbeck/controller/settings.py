"""What whoever installs the operator decides: about all jobs, and about the operator's own process.

Each setting is an environment variable too, such as LIMBECK_OPERATOR_IMAGE; lists are JSON.
Left out: what the Kubernetes client reads for itself (in-cluster account, KUBECONFIG).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from limbeck.controller.names import ENV_PREFIX

Seconds = Annotated[float, Field(ge=0, le=86_400)]
Port = Annotated[int, Field(ge=0, le=65_535)]

_CONFIG: Final = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True, extra="ignore")
_SPOT_TAINTS: Final = (
    ("cloud.google.com/gke-spot", "true"),
    ("kubernetes.azure.com/scalesetpriority", "spot"),
    ("eks.amazonaws.com/capacityType", "SPOT"),
    ("karpenter.sh/capacity-type", "spot"),
)


def _spot_tolerations() -> tuple[dict[str, Any], ...]:
    return tuple(
        {"key": key, "operator": "Equal", "value": value, "effect": "NoSchedule"} for key, value in _SPOT_TAINTS
    )


class Settings(BaseSettings):
    """About all jobs. Defaults fit the chart's; `image` has none."""

    model_config = _CONFIG

    image: str = Field(min_length=1, description="Runtime image of jobs that name none.")
    ray_version: str = Field("2.60.0", description="The Ray in it: KubeRay decides by it how to probe.")
    image_pull_policy: str = Field("IfNotPresent", pattern="^(Always|IfNotPresent|Never)$")
    run_as_user: int = Field(1000, ge=1, description="Numeric: `runAsNonRoot` can be checked only against a number.")
    server_url: str = Field(
        "", description="limbeck's server, https://HOST:PORT; empty: runs report nothing, and are stopped by a signal."
    )
    server_ca_pem: str = Field("", description="Its certificate authority in PEM; empty: the system's.")
    kuberay_namespace: str = Field("kuberay-system", description="Who may reach a job's pods beside each other.")
    limbeck_namespace: str = Field("limbeck-system", description="The same, and where the lease is.")
    metrics_port: Port = Field(9464, description="Port of the driver's metrics in the head pod.")
    spot_tolerations: tuple[Mapping[str, Any], ...] = Field(
        default_factory=_spot_tolerations,
        description="For nodes that may go at any time, where a pool says `spot: true`.",
    )
    retry_base_seconds: Seconds = Field(10, description="Wait after a first failure; each further one doubles it.")
    retry_cap_seconds: Seconds = Field(360, description="Longest such wait.")
    preemption_budget: int = Field(20, ge=0, description="Attempts that may end by preemption, beside `backoffLimit`.")
    suspend_grace_seconds: Seconds = Field(
        120, description="How long a run that was asked for a checkpoint may take before a signal stops it."
    )
    probe_seconds: Seconds = Field(
        30, gt=0, description="How soon to look again for what nobody tells us: KubeRay, a Secret, a quota."
    )
    teacher_idle_seconds: int = Field(60, ge=1, description="Teacher pods without work are given back after this time.")


class ProcessSettings(BaseSettings):
    """About the operator's own process."""

    model_config = _CONFIG

    namespaces: tuple[str, ...] = Field((), description='Namespaces to look at, as JSON: ["a", "b"]; empty: all.')
    workers: int = Field(4, ge=1, le=64, description="Jobs that are looked at side by side.")
    lease_name: str = Field("limbeck-operator", min_length=1, description="Lease that the acting replica holds.")
    host: str = Field("0.0.0.0", description="Address of the endpoint with metrics and probes.")
    port: Port = Field(8080, description="Its port; 0 takes a free one.")
    server_ca_file: Path | None = Field(None, description="File with `server_ca_pem`.")
    log_format: str = Field("Json", pattern="^(Json|Text)$", description="Json for machines, Text for people.")
