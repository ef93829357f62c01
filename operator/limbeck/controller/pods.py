"""Pod templates: what the user gave, with what every pod of a job must have, may have, or has by default.

Ours wins for labels, for environment variables and volumes of the same name, and for the API token, which no pod gets.
The user's wins for the image, resources, probes and security contexts: the namespace's pod security judges those.
Left out: what KubeRay adds (Ray's command, its own probes where there are none, the submitter, the auth token).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from limbeck.controller.settings import Settings

Object = dict[str, Any]


@dataclass(frozen=True)
class PodNeeds:
    """What a pool's pods need beside the user's template."""

    container: str
    image: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str] = field(default_factory=dict)
    requests: Mapping[str, str] = field(default_factory=dict)
    env: Sequence[Object] = ()
    secrets: Sequence[str] = ()
    ports: Sequence[Object] = ()
    volumes: Sequence[Object] = ()
    mounts: Sequence[Object] = ()
    tolerations: Sequence[Mapping[str, Any]] = ()
    restart_policy: str | None = None


def pod_template(given: Mapping[str, Any], needs: PodNeeds, settings: Settings) -> Object:
    """The pod template of one pool."""
    template: Object = copy.deepcopy(dict(given))
    metadata = template.setdefault("metadata", {})
    metadata["labels"] = {**metadata.get("labels", {}), **needs.labels}
    if needs.annotations:
        metadata["annotations"] = {**metadata.get("annotations", {}), **needs.annotations}
    spec = template.setdefault("spec", {})
    spec["automountServiceAccountToken"] = False
    spec["enableServiceLinks"] = False
    spec["securityContext"] = {**_pod_security(settings), **spec.get("securityContext", {})}
    if needs.restart_policy is not None:
        spec["restartPolicy"] = needs.restart_policy
    if needs.volumes:
        spec["volumes"] = _by_name(spec.get("volumes", []), needs.volumes)
    if needs.tolerations:
        present = spec.get("tolerations", [])
        spec["tolerations"] = [*present, *(dict(each) for each in needs.tolerations if dict(each) not in present)]
    containers = spec.get("containers") or [{}]
    # Ray runs in the first container, KubeRay says.
    spec["containers"] = [_ray_container(containers[0], needs, settings), *map(_secured, containers[1:])]
    if spec.get("initContainers"):
        spec["initContainers"] = [_secured(container) for container in spec["initContainers"]]
    return template


def _ray_container(given: Mapping[str, Any], needs: PodNeeds, settings: Settings) -> Object:
    container = _secured(given)
    container.setdefault("name", needs.container)
    # `spec.cluster.image` is the user's too; a template that names another knows why.
    container.setdefault("image", needs.image)
    container.setdefault("imagePullPolicy", settings.image_pull_policy)
    container.setdefault("resources", {"requests": dict(needs.requests)})
    # KubeRay's own probe waits ten seconds before it looks first.
    container.setdefault("readinessProbe", _readiness())
    if needs.env:
        container["env"] = _by_name(container.get("env", []), needs.env)
    if needs.secrets:
        sources = [{"secretRef": {"name": name}} for name in needs.secrets]
        present = container.get("envFrom", [])
        container["envFrom"] = [*present, *(source for source in sources if source not in present)]
    if needs.ports:
        container["ports"] = _by_name(container.get("ports", []), needs.ports)
    if needs.mounts:
        container["volumeMounts"] = _by_name(container.get("volumeMounts", []), needs.mounts)
    return container


def _secured(given: Mapping[str, Any]) -> Object:
    container = dict(given)
    container["securityContext"] = {**container_security(), **container.get("securityContext", {})}
    return container


def container_security() -> Object:
    """What the restricted profile asks of a container."""
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def _pod_security(settings: Settings) -> Object:
    user = settings.run_as_user
    return {
        "runAsNonRoot": True,
        "runAsUser": user,
        "runAsGroup": user,
        "fsGroup": user,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _readiness() -> Object:
    return {
        "httpGet": {"path": "/api/healthz", "port": 52365},
        "initialDelaySeconds": 1,
        "periodSeconds": 1,
        "timeoutSeconds": 2,
        "failureThreshold": 120,
    }


def _by_name(given: Sequence[Mapping[str, Any]], ours: Sequence[Mapping[str, Any]]) -> list[Object]:
    """Both lists; where a name is in both, ours."""
    taken = {item["name"] for item in ours}
    return [*(dict(item) for item in given if item.get("name") not in taken), *(dict(item) for item in ours)]
