"""How to reach the API server: a kubeconfig file, or the service account of the pod that we run in.

Left out on purpose: everything that the official client's loaders already do (contexts, exec plugins, token refresh).
"""

from __future__ import annotations

import os
from pathlib import Path

from kubernetes import config
from kubernetes.client.api_client import ApiClient
from kubernetes.client.configuration import Configuration

_IN_CLUSTER = "KUBERNETES_SERVICE_HOST"


class NoClusterError(ValueError):
    """Nothing says where the API server is."""


def load_client(kubeconfig: str | None = None, context: str | None = None) -> ApiClient:
    """A client by `kubeconfig`, else KUBECONFIG, else the pod's service account, else ~/.kube/config.

    Raises NoClusterError where none of them will do, with what to set.
    """
    configuration = Configuration()
    named = kubeconfig or os.environ.get("KUBECONFIG")
    try:
        if named is None and context is None and os.environ.get(_IN_CLUSTER):
            config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        else:
            file = named or str(Path.home() / ".kube" / "config")
            config.load_kube_config(  # type: ignore[no-untyped-call]
                config_file=file, context=context, client_configuration=configuration
            )
    except config.ConfigException as error:
        where = named or f"no KUBECONFIG, no pod's service account, no {Path('~/.kube/config')}"
        raise NoClusterError(f"no cluster to talk to ({where}): {error}; set KUBECONFIG to a kubeconfig file") from None
    return client_for(configuration)


def client_for(configuration: Configuration, user_agent: str = "limbeck") -> ApiClient:
    """A client that reports each failure at once: who asks decides about another try, and waits outside the request."""
    configuration.retries = False
    configuration.keep_alive = True
    client = ApiClient(configuration)
    client.user_agent = user_agent
    return client
