"""The kinds of objects that the command line asks for. Imports the Kubernetes client: only for use inside verbs."""

from __future__ import annotations

from typing import Final

from limbeck import names
from limbeck.kube.transport import Resource

JOBS: Final = Resource(names.GROUP, names.VERSION, names.PLURAL)
RAY_JOBS: Final = Resource("ray.io", "v1", "rayjobs")
PODS: Final = Resource("", "v1", "pods")
# The older API of events; those of events.k8s.io are shown there as well, and can be asked for by UID.
EVENTS: Final = Resource("", "v1", "events")
CONFIG_MAPS: Final = Resource("", "v1", "configmaps")
SECRETS: Final = Resource("", "v1", "secrets")
DEPLOYMENTS: Final = Resource("apps", "v1", "deployments")
LEASES: Final = Resource("coordination.k8s.io", "v1", "leases")
CRDS: Final = Resource("apiextensions.k8s.io", "v1", "customresourcedefinitions", False)
ACCESS_REVIEWS: Final = Resource("authorization.k8s.io", "v1", "selfsubjectaccessreviews", False)
