"""Writing: server-side apply under one manager's name, and children that are created once and belong to one owner."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from limbeck.kube.errors import AlreadyExistsError, ConflictError
from limbeck.kube.transport import APPLY, Object, Resource, Transport


class NotOursError(ConflictError):
    """The name of a child is taken by an object that another owner controls, or nobody."""


def apply(
    transport: Transport,
    resource: Resource,
    body: Object,
    *,
    manager: str,
    subresource: str | None = None,
    force: bool = False,
) -> Object:
    """Makes `manager` the owner of exactly the fields in `body`; those it owned and left out are removed.

    Fields that are None are left out, at any depth: sending null is ownership too. `metadata.resourceVersion` in the
    body makes it a compare-and-swap. Without `force`, a field that another manager owns is a ConflictError.
    """
    for name in ("apiVersion", "kind", "metadata"):
        if name not in body:
            raise ValueError(f"apply of {resource}: {name} must be set, got {sorted(body)}; add it")
    metadata = body["metadata"]
    return transport.patch(
        resource,
        metadata["name"],
        _without_none(body),
        metadata.get("namespace"),
        subresource=subresource,
        content_type=APPLY,
        field_manager=manager,
        force=force,
    )


def owner_reference(owner: Mapping[str, Any]) -> Object:
    """What a child carries in `metadata.ownerReferences` to be controlled by `owner`, and to go when it goes."""
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def controller_uid(item: Mapping[str, Any]) -> str | None:
    """The UID of the owner that controls the object."""
    for owner in item["metadata"].get("ownerReferences", []):
        if owner.get("controller"):
            uid: str = owner["uid"]
            return uid
    return None


def create_owned(transport: Transport, resource: Resource, body: Object, owner: Mapping[str, Any]) -> Object:
    """Creates a child of `owner`, or returns the one that an earlier try created.

    Raises NotOursError where the name belongs to somebody else. The child returned may be on its way out
    (`metadata.deletionTimestamp`); whether to wait for that is the caller's to say.
    """
    metadata = {**body["metadata"], "ownerReferences": [owner_reference(owner)]}
    namespace = metadata.get("namespace")
    try:
        return transport.create(resource, {**body, "metadata": metadata}, namespace)
    except AlreadyExistsError as taken:
        found = transport.get(resource, metadata["name"], namespace)
        wanted, actual = owner["metadata"]["uid"], controller_uid(found)
        if actual != wanted:
            message = f"{resource} {metadata['name']!r} exists and is controlled by {actual or 'nobody'}, not {wanted}"
            raise NotOursError(taken.status, taken.reason, f"{message}; delete it or choose another name") from None
        return found


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_none(inner) for name, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_without_none(inner) for inner in value]
    return value
