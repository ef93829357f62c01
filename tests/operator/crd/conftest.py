"""The real CRD in a real API server, and raw requests to it: dry runs, tables, OpenAPI."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import urllib3

from limbeck import names

if TYPE_CHECKING:
    from controlplane import ControlPlane

Object = dict[str, Any]
CRD_PATH = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{names.PLURAL}.{names.GROUP}"


class Answer(NamedTuple):
    status: int
    body: Object

    @property
    def message(self) -> str:
        return str(self.body.get("message", ""))


class Api:
    """One API server, as its administrator."""

    def __init__(self, plane: ControlPlane) -> None:
        configuration = plane.configuration()
        self._address = plane.address
        self._token = configuration.api_key["BearerToken"]
        self._pool = urllib3.PoolManager(ca_certs=configuration.ssl_ca_cert, retries=False, timeout=10.0)

    def ask(
        self,
        method: str,
        path: str,
        body: Object | None = None,
        *,
        content_type: str = "application/json",
        accept: str = "application/json",
        **query: str,
    ) -> Answer:
        headers = {"Authorization": self._token, "Accept": accept, "Content-Type": content_type}
        content = None if body is None else json.dumps(body)
        if method in ("GET", "DELETE"):
            answer = self._pool.request(method, self._address + path, fields=query, headers=headers)
        else:
            url = f"{self._address}{path}?{'&'.join(f'{key}={value}' for key, value in query.items())}"
            answer = self._pool.request(method, url, body=content, headers=headers)
        return Answer(answer.status, json.loads(answer.data))

    def apply_crd(self, crd: Object) -> Answer:
        """Server-side, as `kubectl apply --server-side` does."""
        return self.ask(
            "PATCH", CRD_PATH, crd, content_type="application/apply-patch+yaml", fieldManager="test", force="true"
        )

    def wait_until_served(self) -> Object:
        """The CRD, once the API server has taken it up."""
        deadline = time.monotonic() + 30
        while True:
            crd = self.ask("GET", CRD_PATH).body
            held = {each["type"] for each in crd.get("status", {}).get("conditions") or [] if each["status"] == "True"}
            if "Established" in held and self.ask("GET", f"/apis/{names.API_VERSION}/{names.PLURAL}").status == 200:
                return crd
            assert time.monotonic() < deadline, f"the CRD is not served: {crd}"
            time.sleep(0.02)


@pytest.fixture
def new_api() -> Callable[[ControlPlane], Api]:
    return Api


@pytest.fixture(scope="session")
def api(control_plane: ControlPlane) -> Api:
    """The shared API server, which knows CompressionJobs as the models have them now."""
    from limbeck.api.crd import custom_resource_definition

    api = Api(control_plane)
    answer = api.apply_crd(custom_resource_definition())
    assert answer.status in (200, 201), answer.message
    api.wait_until_served()
    return api


@pytest.fixture
def jobs_path(namespace: str) -> str:
    return f"/apis/{names.API_VERSION}/namespaces/{namespace}/{names.PLURAL}"


@pytest.fixture
def try_to_create(api: Api) -> Callable[[Object], Answer]:
    """What the API server says to a job, which it then forgets; unknown fields are refused, as kubectl asks for."""
    path = f"/apis/{names.API_VERSION}/namespaces/default/{names.PLURAL}"
    return lambda job: api.ask("POST", path, job, dryRun="All", fieldValidation="Strict")
