"""Kubernetes as the controller looks at it: jobs, RayJobs and pods from caches, everything else and all writes direct.

Left out: filling the caches (`operator.py`).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from limbeck import names
from limbeck.kube.errors import NotFoundError
from limbeck.kube.informer import Informer
from limbeck.kube.transport import Resource, Transport

Object = dict[str, Any]

INDEX_JOB: Final = "job"
# How many deletions are remembered; a cache is never so far behind.
_MOST_DELETED: Final = 4096


def job_label(item: Object) -> Iterable[str]:
    """An index: by the name of the job whose child it says it is."""
    label = item["metadata"].get("labels", {}).get(names.LABEL_JOB)
    return (label,) if label else ()


class Lookup:
    """A `limbeck.controller.cluster.Cluster` over `informers`, each of which has the index INDEX_JOB."""

    def __init__(self, transport: Transport, informers: Mapping[Resource, Informer]) -> None:
        self._transport = transport
        self._informers = informers
        # UIDs of what was deleted here: it is going, even where a cache has not heard of it.
        self._deleted: OrderedDict[str, None] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, resource: Resource, name: str, namespace: str | None = None) -> Object:
        """What no cache holds is asked of the API server: it may have been made a moment ago."""
        informer = self._informers.get(resource)
        known = informer.get(namespace or "", name) if informer is not None else None
        return self._as_it_is(known) if known is not None else self._transport.get(resource, name, namespace)

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
        items = [self._as_it_is(item) for item in informer.by_index(INDEX_JOB, namespace, job)]
        return {"metadata": {}, "items": items}

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
        if uid is not None:
            with self._lock:
                self._deleted[uid] = None
                if len(self._deleted) > _MOST_DELETED:
                    self._deleted.popitem(last=False)

    def _as_it_is(self, item: Object) -> Object:
        with self._lock:
            deleted = item["metadata"]["uid"] in self._deleted
        if deleted:
            item["metadata"].setdefault("deletionTimestamp", _now())
        return item


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
