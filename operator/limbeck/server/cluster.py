"""What the server asks of Kubernetes: token reviews, pods, jobs and their status, Events of jobs.

Left out: how (`limbeck.kube.transport`).
"""

from __future__ import annotations

from typing import Any, Final, Protocol

from limbeck import names
from limbeck.kube.transport import Resource

TOKEN_REVIEWS: Final = Resource("authentication.k8s.io", "v1", "tokenreviews", namespaced=False)
PODS: Final = Resource("", "v1", "pods")
JOBS: Final = Resource(names.GROUP, names.VERSION, names.PLURAL)


class Cluster(Protocol):
    """The calls of `limbeck.kube.transport.Transport` that the server needs. All raise KubeError."""

    def get(self, resource: Resource, name: str, namespace: str | None = None) -> dict[str, Any]:
        """One object."""

    def create(self, resource: Resource, body: dict[str, Any], namespace: str | None = None) -> dict[str, Any]:
        """Create an object, which is a token review (the answer is the review) or an Event."""

    def patch(
        self,
        resource: Resource,
        name: str,
        body: dict[str, Any],
        namespace: str | None = None,
        *,
        subresource: str | None = None,
        content_type: str = ...,
        field_manager: str | None = None,
        force: bool = False,
    ) -> dict[str, Any]:
        """Change an object or its status."""
