"""Transport, reflector and workers against a real API server, whose ways the small one only plays."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue

import pytest

from limbeck.kube.backoff import Backoff
from limbeck.kube.cache import Cache, Key
from limbeck.kube.errors import ConflictError, ForbiddenError, GoneError, InvalidError, NotFoundError, UnreachableError
from limbeck.kube.queue import KeyedQueue
from limbeck.kube.reflector import Patience, Reflector
from limbeck.kube.transport import Resource, Transport
from limbeck.kube.workers import Workers

pytestmark = pytest.mark.controlplane

CONFIG_MAPS = Resource("", "v1", "configmaps")
NAMESPACES = Resource("", "v1", "namespaces", False)
CLUSTER_ROLES = Resource("rbac.authorization.k8s.io", "v1", "clusterroles", False)
CLUSTER_ROLE_BINDINGS = Resource("rbac.authorization.k8s.io", "v1", "clusterrolebindings", False)
CRDS = Resource("apiextensions.k8s.io", "v1", "customresourcedefinitions", False)
PATIENT = Patience(backoff=Backoff(base_seconds=0.02, cap_seconds=0.2))


@pytest.fixture
def transport(control_plane) -> Transport:
    return Transport(control_plane.client())


@pytest.fixture
def reflect() -> Iterator[Callable[..., Reflector]]:
    running: list[Reflector] = []

    def start(transport: Transport, resource: Resource, namespace: str, **more: object) -> Reflector:
        reflector = Reflector(transport, resource, Cache(), namespace=namespace, patience=PATIENT, **more)
        reflector.start()
        running.append(reflector)
        return reflector

    yield start
    assert all(reflector.stop() for reflector in running)


def names(reflector: Reflector) -> set[str]:
    return {key.name for key in reflector.cache.all_keys()}


def test_errors_are_what_the_real_server_says(transport, namespace) -> None:
    with pytest.raises(NotFoundError, match='configmaps "none" not found'):
        transport.get(CONFIG_MAPS, "none", namespace)
    with pytest.raises(NotFoundError, match="404 page not found"):
        transport.list(Resource("nowhere.dev", "v1", "things"), namespace)
    with pytest.raises(InvalidError, match="a lowercase RFC 1123 subdomain"):
        transport.create(CONFIG_MAPS, {"metadata": {"name": "No Name"}}, namespace)
    made = transport.create(CONFIG_MAPS, {"metadata": {"name": "a"}}, namespace)
    transport.patch(CONFIG_MAPS, "a", {"data": {"x": "1"}}, namespace)
    old = {"metadata": {"resourceVersion": made["metadata"]["resourceVersion"]}, "data": {"x": "2"}}
    with pytest.raises(ConflictError, match="has been modified"):
        transport.patch(CONFIG_MAPS, "a", old, namespace)


def test_the_server_ends_a_watch_when_it_was_told_to(transport, namespace) -> None:
    version = transport.list(CONFIG_MAPS, namespace)["metadata"]["resourceVersion"]
    transport.create(CONFIG_MAPS, {"metadata": {"name": "a"}}, namespace)
    with transport.watch(CONFIG_MAPS, namespace, resource_version=version, timeout_seconds=1) as stream:
        assert [event["object"]["metadata"]["name"] for event in stream] == ["a"]


def test_a_reflector_reads_all_pages_and_follows(transport, namespace, reflect, eventually) -> None:
    for number in range(7):
        transport.create(CONFIG_MAPS, {"metadata": {"name": f"old-{number}"}}, namespace)
    reflector = reflect(transport, CONFIG_MAPS, namespace, page_size=3)
    assert reflector.synced.wait(10)
    assert len(reflector.cache) == 7
    transport.create(CONFIG_MAPS, {"metadata": {"name": "new"}}, namespace)
    transport.delete(CONFIG_MAPS, "old-0", namespace)
    eventually(lambda: names(reflector) == {"new", *(f"old-{number}" for number in range(1, 7))})
    assert reflector.num_lists == 1


def test_a_restart_of_the_server_that_forgot_all_history_loses_no_change(
    control_plane_binaries, tmp_path: Path, reflect, eventually
) -> None:
    from controlplane import ControlPlane

    plane = ControlPlane(tmp_path / "plane", control_plane_binaries)
    try:
        plane.start()
        transport = Transport(plane.client())
        reflector = reflect(transport, CONFIG_MAPS, "default")
        assert reflector.synced.wait(10)
        for number in range(3):
            transport.create(CONFIG_MAPS, {"metadata": {"name": f"before-{number}"}}, "default")
        token = transport.list(CONFIG_MAPS, "default", limit=1)["metadata"]["continue"]
        transport.delete(CONFIG_MAPS, "before-0", "default")
        eventually(lambda: "before-0" not in names(reflector))
        plane.compact()
        plane.stop_api_server()
        eventually(lambda: isinstance(reflector.problem, UnreachableError))
        plane.start_api_server()
        with pytest.raises(GoneError, match="410 Expired"):
            transport.list(CONFIG_MAPS, "default", limit=1, continue_=token)
        transport.create(CONFIG_MAPS, {"metadata": {"name": "after"}}, "default")
        eventually(lambda: "after" in names(reflector))
        eventually(lambda: reflector.problem is None)
        assert names(reflector) >= {"before-1", "before-2", "after"}
    finally:
        plane.stop()


def grant(transport: Transport, name: str, user: str, verbs: list[str]) -> None:
    role = {"metadata": {"name": name}, "rules": [{"apiGroups": [""], "resources": ["configmaps"], "verbs": verbs}]}
    transport.create(CLUSTER_ROLES, role)
    binding = {
        "metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
    }
    transport.create(CLUSTER_ROLE_BINDINGS, binding)


def test_rights_that_are_removed_and_given_back_cost_no_restart_and_no_object(
    control_plane, transport, namespace, reflect, eventually
) -> None:
    user = role = f"operator-{uuid.uuid4().hex[:8]}"
    theirs = Transport(control_plane.client(user))
    grant(transport, role, user, ["get", "list", "watch"])
    transport.create(CONFIG_MAPS, {"metadata": {"name": "kept"}}, namespace)
    # An open watch outlives its rights: short ones meet their loss.
    short = Patience(watch=1.0, steady=0.1, backoff=PATIENT.backoff)
    reflector = Reflector(theirs, CONFIG_MAPS, Cache(), namespace=namespace, patience=short)
    reflector.start()
    try:
        assert reflector.synced.wait(10)
        transport.delete(CLUSTER_ROLE_BINDINGS, role)
        transport.delete(CLUSTER_ROLES, role)
        eventually(lambda: isinstance(reflector.problem, ForbiddenError))
        transport.create(CONFIG_MAPS, {"metadata": {"name": "missed"}}, namespace)
        assert "kept" in names(reflector)
        grant(transport, role, user, ["get", "list", "watch"])
        eventually(lambda: names(reflector) == {"kept", "missed"})
        assert reflector.problem is None
    finally:
        assert reflector.stop()


def test_a_kind_that_is_served_only_later_is_followed_from_then_on(transport, namespace, reflect, eventually) -> None:
    group = f"g{uuid.uuid4().hex[:8]}.dev"
    kind = Resource(group, "v1", "widgets")
    reflector = reflect(transport, kind, namespace)
    eventually(lambda: isinstance(reflector.problem, NotFoundError))
    assert not reflector.synced.is_set()
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    definition = {
        "metadata": {"name": f"widgets.{group}"},
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {"plural": "widgets", "singular": "widget", "kind": "Widget"},
            "versions": [{"name": "v1", "served": True, "storage": True, "schema": schema}],
        },
    }
    transport.create(CRDS, definition)
    assert reflector.synced.wait(10)
    transport.create(kind, {"apiVersion": f"{group}/v1", "kind": "Widget", "metadata": {"name": "a"}}, namespace)
    eventually(lambda: names(reflector) == {"a"})
    eventually(lambda: reflector.problem is None)


def test_a_small_controller_made_of_these_parts_writes_what_it_should_and_then_nothing(
    control_plane, transport, namespace, eventually
) -> None:
    """Doubles `n` of each ConfigMap into `twice`, and stops writing when all are right."""
    queue: KeyedQueue[Key] = KeyedQueue(Backoff(base_seconds=0.01, cap_seconds=0.1))
    idle: SimpleQueue[Key] = SimpleQueue()
    reflector = Reflector(
        transport, CONFIG_MAPS, Cache(), lambda change: queue.add(change.key), namespace=namespace, patience=PATIENT
    )

    def reconcile(key: Key) -> None:
        found = reflector.cache.get(*key)
        if found is None:
            return
        wanted = str(2 * int(found["data"]["n"]))
        if found["data"].get("twice") == wanted:
            idle.put(key)
            return
        version = {"resourceVersion": found["metadata"]["resourceVersion"]}
        transport.patch(CONFIG_MAPS, key.name, {"metadata": version, "data": {"twice": wanted}}, key.namespace)

    workers = Workers(queue, reconcile, num_workers=3)
    reflector.start()
    workers.start()
    try:
        for number in range(20):
            transport.create(CONFIG_MAPS, {"metadata": {"name": f"c-{number}"}, "data": {"n": str(number)}}, namespace)
        assert {idle.get(timeout=10).name for _ in range(20)} == {f"c-{number}" for number in range(20)}
    finally:
        assert workers.stop()
        assert reflector.stop()
    audit = control_plane.audit_log.read_text().splitlines()
    patches = [line for line in audit if f'"namespace":"{namespace}"' in line and '"verb":"patch"' in line]
    assert len([line for line in patches if '"code":200' in line]) == 20
