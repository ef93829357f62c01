"""The cluster that a verb talks to: which one, which namespace, and the jobs in it.

Left out: how to authenticate, which `limbeck.kube.connection` and the official client know.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from limbeck.cli.exits import UNREACHABLE
from limbeck.cli.failures import CommandError
from limbeck.cli.kinds import JOBS
from limbeck.cli.options import Access
from limbeck.kube.connection import NoClusterError, load_client
from limbeck.kube.errors import NotFoundError
from limbeck.kube.transport import Object, Resource, Transport

# Who the API server says has set a field.
FIELD_MANAGER: Final = "limbeck-cli"
_POD_NAMESPACE: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


@dataclass(frozen=True)
class Cluster:
    """One API server and the namespace at hand."""

    transport: Transport
    namespace: str
    all_namespaces: bool = False
    namespace_is_given: bool = False

    @property
    def scope(self) -> str | None:
        """The namespace to list in; None is all of them."""
        return None if self.all_namespaces else self.namespace

    def job(self, name: str) -> Object:
        """The job of that name; over all namespaces only if there is just one."""
        if not self.all_namespaces:
            try:
                return self.transport.get(JOBS, name, self.namespace)
            except NotFoundError as error:
                if error.reason != "NotFound":
                    raise
                hint = f"`limbeck get -n {self.namespace}` lists those that are, -A looks in all namespaces"
                message = f"there is no CompressionJob {name} in namespace {self.namespace}; {hint}"
                raise CommandError(message) from error
        found = list(self.list_all(JOBS, field_selector=f"metadata.name={name}"))
        if not found:
            raise CommandError(f"there is no CompressionJob {name} in any namespace; `limbeck get -A` lists all")
        if len(found) > 1:
            places = ", ".join(each["metadata"]["namespace"] for each in found)
            raise CommandError(f"there are {len(found)} CompressionJobs {name}, in namespaces {places}; choose by -n")
        return found[0]

    def list_all(
        self, resource: Resource, *, label_selector: str | None = None, field_selector: str | None = None
    ) -> Iterator[Object]:
        """All objects in scope, page by page; each says what it is, which lists leave out."""
        token: str | None = None
        while True:
            page = self.transport.list(
                resource,
                self.scope if resource.namespaced else None,
                label_selector=label_selector,
                field_selector=field_selector,
                continue_=token,
            )
            kind = {"apiVersion": page["apiVersion"], "kind": page["kind"].removesuffix("List")}
            yield from ({**kind, **item} for item in page["items"])
            token = page["metadata"].get("continue")
            if not token:
                return


def connect(access: Access) -> Cluster:
    """The cluster that the options name. Nothing is asked of it yet."""
    try:
        client = load_client(access.kubeconfig, access.context)
        namespace = access.namespace or _default_namespace(access)
    except NoClusterError as error:
        raise CommandError(str(error), UNREACHABLE) from error
    except Exception as error:
        # The official loader lets through whatever a broken file makes it stumble over.
        named = access.kubeconfig or os.environ.get("KUBECONFIG") or "~/.kube/config"
        message = (
            f"the kubeconfig file {named} cannot be used: {type(error).__name__}: {error}; mend it, or name another"
        )
        raise CommandError(message, UNREACHABLE) from error
    return Cluster(Transport(client), namespace, access.all_namespaces, access.namespace is not None)


def _default_namespace(access: Access) -> str:
    """That of the context, else of the pod that we run in, else `default`."""
    from kubernetes import config

    file = access.kubeconfig or os.environ.get("KUBECONFIG")
    if file is None and access.context is None and _POD_NAMESPACE.is_file():
        return _POD_NAMESPACE.read_text(encoding="utf-8").strip()
    contexts, active = config.list_kube_config_contexts(file)  # type: ignore[no-untyped-call]
    if access.context is not None:
        active = next(each for each in contexts if each["name"] == access.context)
    named: Mapping[str, Any] = active.get("context") or {}
    return str(named.get("namespace") or "default")
