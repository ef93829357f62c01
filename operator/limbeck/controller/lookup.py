"""Kubernetes as the controller looks at it: jobs, RayJobs and pods from caches, everything else and all writes direct.

Left out: filling the caches (`operator.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from limbeck import names
from limbeck.kube.errors import NotFoundError
from limbeck.kube.informer import Informer
from limbeck.kube.transport import Resource, Transport

Object = dict[str, Any]

INDEX_JOB: Final = "job"


def job_label(item: Object) -> Iterable[str]:
    """An index: by the name of the job whose child it says it is."""
    label = item["metadata"].get("labels", {}).get(names.LABEL_JOB)
    return (label,) if label else ()


class Lookup:
    """A `limbeck.controller.cluster.Cluster` over `informers`, each of which has the index INDEX_JOB."""

    def __init__(self, transport: Transport, informers: Mapping[Resource, Informer]) -> None:
        self._transport = transport
        self._informers = informers

    def get(self, resource: Resource, name: str, namespace: str | None = None) -> Object:
        """What no cache holds is asked of the API server: it may have been made a moment ago."""
        informer = self._informers.get(resource)
        known = informer.get(namespace or "", name) if informer is not None else None
        return known if known is not None else self._transport.get(resource, name, namespace)

    def list(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        label_selector: str | None = None,
        continue_: str | None = None,
    ) -> Object:
        """All children of one job in one page. Raises NotFoundError where the kind is not served."""
        informer = self._informers[resource]
        label, _, job = (label_selector or "").partition("=")
        if label != names.LABEL_JOB or not namespace or continue_ is not None:
            raise ValueError(f"the caches list by {names.LABEL_JOB}=NAME in a namespace, got {label_selector!r}")
        if not informer.is_served:
            raise NotFoundError(404, "NotFound", f"the API server does not serve {resource}")
        return {"metadata": {}, "items": informer.by_index(INDEX_JOB, namespace, job)}

    def create(self, resource: Resource, body: Object, namespace: str | None = None) -> Object:
        return self._transport.create(resource, body, namespace)

    def patch(
        self,
        resource: Resource,
        name: str,
        body: Object,
        namespace: str | None = None,
        *,
        subresource: str | None = None,
        field_manager: str | None = None,
    ) -> Object:
        return self._transport.patch(
            resource, name, body, namespace, subresource=subresource, field_manager=field_manager
        )

    def delete(
        self,
        resource: Resource,
        name: str,
        namespace: str | None = None,
        *,
        propagation: str = "Background",
        uid: str | None = None,
    ) -> None:
        self._transport.delete(resource, name, namespace, propagation=propagation, uid=uid)
