"""Brings CustomResourceDefinitions into an API server, and takes them out."""

from __future__ import annotations

import time
from typing import Any

from limbeck.kube.apply import apply
from limbeck.kube.errors import NotFoundError
from limbeck.kube.transport import Resource, Transport

CRDS = Resource("apiextensions.k8s.io", "v1", "customresourcedefinitions", False)
# The API server looks only every five seconds whether all objects of a kind are gone.
_SECONDS = 180.0


def install_crd(transport: Transport, crd: dict[str, Any]) -> None:
    """Server-side, for KubeRay's are too large for the annotation of a client-side apply; returns when it is served."""
    body = {key: value for key, value in crd.items() if key != "status"}
    apply(transport, CRDS, body, manager="limbeck-test", force=True)
    version = next(each["name"] for each in crd["spec"]["versions"] if each["storage"])
    resource = Resource(crd["spec"]["group"], version, crd["spec"]["names"]["plural"])
    deadline = time.monotonic() + _SECONDS
    while not _is_served(transport, resource):
        assert time.monotonic() < deadline, f"{resource} is not served"
        time.sleep(0.02)


def remove_crd(transport: Transport, name: str) -> None:
    """With all objects of its kind; returns when it is gone."""
    transport.delete(CRDS, name)
    deadline = time.monotonic() + _SECONDS
    while True:
        try:
            transport.get(CRDS, name)
        except NotFoundError:
            return
        assert time.monotonic() < deadline, f"{name} does not go"
        time.sleep(0.02)


def _is_served(transport: Transport, resource: Resource) -> bool:
    try:
        transport.list(resource, limit=1)
    except NotFoundError:
        return False
    return True
