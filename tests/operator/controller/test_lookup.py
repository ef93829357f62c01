"""The controller's view of the cluster, where its caches lag behind what it did itself."""

from __future__ import annotations

from typing import Any

import pytest

from limbeck.controller.lookup import Lookup
from limbeck.controller.names import CONFIG_MAPS, RAY_JOBS
from limbeck.kube.errors import NotFoundError

Object = dict[str, Any]
SELECTOR = "limbeck.dev/job=emoji"


class Cached:
    """An informer whose cache never changes."""

    is_served = True

    def __init__(self, *items: Object) -> None:
        self._items = items

    def get(self, namespace: str, name: str) -> Object | None:
        return next((copy_of(item) for item in self._items if item["metadata"]["name"] == name), None)

    def by_index(self, index: str, namespace: str, value: str) -> list[Object]:
        return [copy_of(item) for item in self._items]


class Server:
    """An API server that has nothing but what it is asked to delete."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def get(self, resource: Any, name: str, namespace: str | None = None) -> Object:
        self.asked.append(f"get {name}")
        raise NotFoundError(404, "NotFound", name)

    def delete(self, resource: Any, name: str, namespace: str | None = None, **_: Any) -> None:
        self.asked.append(f"delete {name}")


def copy_of(item: Object) -> Object:
    return {"metadata": dict(item["metadata"])}


def ray_job(name: str, uid: str) -> Object:
    return {"metadata": {"name": name, "namespace": "team", "uid": uid}}


@pytest.fixture
def server() -> Server:
    return Server()


def test_what_was_deleted_here_is_going_even_where_the_cache_has_not_heard_of_it(server: Server) -> None:
    lookup = Lookup(server, {RAY_JOBS: Cached(ray_job("emoji-1", "a"), ray_job("emoji-2", "b"))})
    lookup.delete(RAY_JOBS, "emoji-1", "team", uid="a")
    listed = lookup.list(RAY_JOBS, "team", label_selector=SELECTOR)["items"]
    assert ["deletionTimestamp" in item["metadata"] for item in listed] == [True, False]
    assert "deletionTimestamp" in lookup.get(RAY_JOBS, "emoji-1", "team")["metadata"]
    assert "deletionTimestamp" not in lookup.get(RAY_JOBS, "emoji-2", "team")["metadata"]


def test_what_no_cache_holds_is_asked_of_the_api_server(server: Server) -> None:
    lookup = Lookup(server, {RAY_JOBS: Cached()})
    for resource, name in ((RAY_JOBS, "emoji-1"), (CONFIG_MAPS, "emoji-limbeck")):
        with pytest.raises(NotFoundError):
            lookup.get(resource, name, "team")
    assert server.asked == ["get emoji-1", "get emoji-limbeck"]


def test_a_list_by_anything_but_a_job_is_a_mistake(server: Server) -> None:
    with pytest.raises(ValueError, match=r"the caches list by limbeck\.dev/job=NAME"):
        Lookup(server, {RAY_JOBS: Cached()}).list(RAY_JOBS, "team", label_selector="app=x")
