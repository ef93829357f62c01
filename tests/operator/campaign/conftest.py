"""A real API server that knows KubeRay's kinds, KubeRay as a mimic, and the operator's own code with its rights."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from limbeck.api.crd import custom_resource_definition
from limbeck.controller.names import CONFIG_MAPS, JOBS, KEY_LEDGER, NETWORK_POLICIES, PODS, RAY_JOBS
from limbeck.controller.operator import Operator
from limbeck.controller.settings import ProcessSettings, Settings
from limbeck.kube.backoff import Backoff
from limbeck.kube.errors import NotFoundError
from limbeck.kube.reflector import Patience
from limbeck.kube.transport import Resource, Transport

if TYPE_CHECKING:
    from controlplane import ControlPlane
    from faulty_client import Faults, FaultyClient
    from mimic import Mimic

Object = dict[str, Any]
NAMESPACES = Resource("", "v1", "namespaces", False)
EVENTS = Resource("events.k8s.io", "v1", "events")
# What the real reflectors wait in minutes, in fractions of a second.
QUICK = Patience(relist=0.5, backoff=Backoff(base_seconds=0.02, cap_seconds=0.2))


@pytest.fixture(scope="session")
def new_plane(
    control_plane_binaries: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[], AbstractContextManager[ControlPlane]]:
    """API servers that know KubeRay's kinds, and the operator's rights."""

    @contextmanager
    def start() -> Iterator[ControlPlane]:
        from controlplane import ControlPlane
        from crds import install_crd
        from kuberay import crds
        from operator_account import bind_user, make_role

        plane = ControlPlane(tmp_path_factory.mktemp("kuberay-plane"), control_plane_binaries)
        try:
            plane.start()
            transport = Transport(plane.client())
            for crd in (custom_resource_definition(), *crds()):
                install_crd(transport, crd)
            make_role(transport)
            bind_user(transport)
            yield plane
        finally:
            plane.stop()

    return start


@pytest.fixture(scope="session")
def plane(new_plane: Callable[[], AbstractContextManager[ControlPlane]]) -> Iterator[ControlPlane]:
    """An API server of our own: to others the absence of KubeRay matters."""
    with new_plane() as plane:
        yield plane


@pytest.fixture
def rights() -> tuple[Callable[[Transport], None], Callable[[Transport], None]]:
    """To take the operator's rights, and to give them back."""
    from operator_account import bind_user, unbind_user

    return unbind_user, bind_user


@dataclass
class Running:
    """One process of the operator, as far as threads can be one."""

    client: FaultyClient
    operator: Operator

    def end(self) -> None:
        self.operator.stop_watching()
        self.operator.wind_down()


@dataclass
class World:
    """One job in a namespace of its own, its operator, and what plays all others."""

    plane: ControlPlane
    transport: Transport
    namespace: str
    mimic: Mimic
    settings: Settings
    wanted: Object
    name: str = "emoji"
    running: list[Running] = field(default_factory=list)
    # Kinds that the operator is told are not served.
    unserved: set[str] = field(default_factory=set)
    patience: Patience | None = QUICK

    def create_job(self) -> None:
        self.transport.create(JOBS, self.wanted, self.namespace)

    def start(
        self, faults: Faults | None = None, *, old_lists_of: Running | None = None, must_be_ready: bool = True
    ) -> Running:
        from faulty_client import Faults, FaultyClient
        from operator_account import ROLE

        client = FaultyClient(self.plane.client(ROLE), faults or Faults(), self.unserved)
        if old_lists_of is not None:
            client.serve_old_lists_of(old_lists_of.client)
        process = ProcessSettings(namespaces=(self.namespace,), workers=1)
        operator = Operator(
            Transport(client), self.settings, process, f"operator-{len(self.running)}", patience=self.patience
        )
        self.running.append(Running(client, operator))
        operator.watch()
        self.wait(lambda: operator.is_ready or not must_be_ready)
        operator.act()
        return self.running[-1]

    def wait(self, happened: Callable[[], bool], seconds: float = 30.0) -> None:
        """Looks again and again; an operator that has crashed is followed by a new one, which does not."""
        deadline = time.monotonic() + seconds
        while not happened():
            self.replace_the_dead()
            assert time.monotonic() < deadline, f"it never happened: {self.snapshot()}"
            time.sleep(0.01)

    def replace_the_dead(self) -> None:
        if self.running and self.running[-1].client.crashed.is_set():
            self.running[-1].end()
            self.start()

    def stop(self) -> None:
        for running in self.running:
            running.end()

    def job(self) -> Object:
        return self.transport.get(JOBS, self.name, self.namespace)

    def status(self) -> Object:
        return self.job().get("status", {})

    def condition(self, kind: str) -> Object:
        return next((each for each in self.status().get("conditions", []) if each["type"] == kind), {})

    def says(self, kind: str, truth: str, reason: str = "") -> bool:
        found = self.condition(kind)
        return found.get("status") == truth and reason in ("", found.get("reason"))

    def phase(self) -> str:
        return str(self.status().get("phase", ""))

    def end_attempt(self, attempt: int, ending: Object) -> None:
        """Of a run that goes on until somebody ends it."""
        self.mimic.end(self.transport.get(RAY_JOBS, f"{self.name}-{attempt}", self.namespace), ending)

    def state_of_attempt(self, attempt: int) -> str:
        ray_jobs = {each["metadata"]["name"]: each for each in self.all_of(RAY_JOBS)}
        return str(ray_jobs.get(f"{self.name}-{attempt}", {}).get("status", {}).get("jobStatus", ""))

    def change_spec(self, **changes: Any) -> None:
        self.transport.patch(JOBS, self.name, {"spec": changes}, self.namespace)

    def all_of(self, resource: Resource) -> list[Object]:
        try:
            return list(self.transport.list(resource, self.namespace)["items"])
        except NotFoundError:
            return []

    def is_over(self) -> bool:
        """Finished, and nothing left that costs anything."""
        from mimic import RAY_CLUSTERS

        try:
            if not (self.says("Complete", "True") or self.says("Failed", "True")):
                return False
        except NotFoundError:
            pass
        return not any(self.all_of(kind) for kind in (RAY_JOBS, RAY_CLUSTERS, PODS))

    def is_gone(self) -> bool:
        return self.is_over() and not any(self.all_of(kind) for kind in (JOBS, CONFIG_MAPS, NETWORK_POLICIES))

    def snapshot(self) -> Object:
        """All that there is, without what differs from life to life: times, UIDs, versions."""
        return {
            "jobs": [_told(each.get("status", {})) for each in self.all_of(JOBS)],
            "rayJobs": sorted(each["metadata"]["name"] for each in self.all_of(RAY_JOBS)),
            "pods": sorted(each["metadata"]["name"] for each in self.all_of(PODS)),
            "configMaps": [(each["metadata"]["name"], _ledger(each)) for each in self.all_of(CONFIG_MAPS)],
            "networkPolicies": [each["metadata"]["name"] for each in self.all_of(NETWORK_POLICIES)],
        }

    def event_reasons(self) -> list[str]:
        return sorted(each["reason"] for each in self.all_of(EVENTS))


def _told(status: Object) -> Object:
    left_out = ("startTime", "completionTime", "conditions", "headPodUid")
    conditions = [{key: each[key] for key in ("type", "status", "reason", "message")} for each in status["conditions"]]
    kept = {key: value for key, value in status.items() if key not in left_out}
    return {**kept, "conditions": sorted(conditions, key=lambda each: each["type"])}


def _ledger(config_map: Object) -> list[Object]:
    entries = json.loads(config_map.get("data", {}).get(KEY_LEDGER, "[]"))
    return [{key: each[key] for key in ("attempt", "ending", "message")} for each in entries]


@pytest.fixture
def new_world(plane: ControlPlane, build_job: Callable[..., Object]) -> Iterator[Callable[..., World]]:
    """`new_world(endings, settings, **changes of the job)`; the operator is still to be started.

    With `wait` the job is still to be created too.
    """
    from mimic import Mimic

    transport = Transport(plane.client())
    worlds: list[World] = []

    def build(
        endings: Sequence[Object], settings: Object | None = None, *, wait: bool = False, **changes: Any
    ) -> World:
        namespace = f"life-{uuid.uuid4().hex[:8]}"
        transport.create(NAMESPACES, {"metadata": {"name": namespace}})
        mimic = Mimic(transport, lambda _job: endings, namespaces=[namespace])
        mimic.start()
        quick = {"retry_base_seconds": 0.05, "probe_seconds": 0.2, "suspend_grace_seconds": 0.3}
        values = {"image": "registry.example/limbeck:1", "limbeck_namespace": namespace, **quick, **(settings or {})}
        world = World(plane, transport, namespace, mimic, Settings(**values), build_job(**changes))
        worlds.append(world)
        if not wait:
            world.create_job()
        return world

    yield build
    for world in worlds:
        world.stop()
        world.mimic.stop()


@pytest.fixture
def account(plane: ControlPlane, tmp_path: Path) -> Callable[[str, str], Path]:
    """`account(namespace, name)`: the kubeconfig of an account with the operator's rights."""
    from operator_account import new_account

    return lambda namespace, name: new_account(plane, namespace, name, tmp_path)
