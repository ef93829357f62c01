from __future__ import annotations

from collections.abc import Callable, Iterator
from queue import SimpleQueue

import pytest

from limbeck.kube.backoff import Backoff
from limbeck.kube.cache import Change
from limbeck.kube.informer import Informer
from limbeck.kube.reflector import Patience

BY_COLOUR = {"colour": lambda item: [item["colour"]] if "colour" in item else []}


@pytest.fixture
def inform(server, widgets) -> Iterator[Callable[..., Informer]]:
    running: list[Informer] = []

    def start(on_change: Callable[[Change], None] = lambda _: None, **more: object) -> Informer:
        patience = Patience(backoff=Backoff(base_seconds=0.001, cap_seconds=0.02))
        informer = Informer(server.transport(), widgets, on_change, indexes=BY_COLOUR, patience=patience, **more)
        informer.start()
        running.append(informer)
        return informer

    yield start
    for informer in running:
        informer.stop()
        assert not informer.is_alive


def test_it_holds_and_tells_what_there_is(server, serve, inform) -> None:
    told: SimpleQueue[str] = SimpleQueue()
    server.lists.append(serve.page(5, serve.item("a", 1), serve.item("b", 2)))
    informer = inform(lambda change: told.put(change.key.name))
    assert [told.get(timeout=10), told.get(timeout=10)] == ["a", "b"]
    server.wait_for("watch", 1)
    assert informer.has_synced
    assert informer.is_served
    assert informer.is_alive
    assert informer.get("shop", "a")["metadata"]["resourceVersion"] == "1"
    assert informer.get("shop", "c") is None
    assert len(informer) == 2


def test_with_no_namespace_named_it_asks_for_all_at_once(server, serve, inform) -> None:
    server.lists.append(serve.page(5))
    inform()
    (request,) = server.wait_for("list", 1)
    assert request.path == "/apis/example.dev/v1/widgets"


def test_each_namespace_that_is_named_has_its_own_list_and_watch(server, serve, inform) -> None:
    server.lists.append(serve.page(5))
    inform(namespaces=["shop", "mill", "shop"])
    paths = {request.path for request in server.wait_for("watch", 2)}
    assert paths == {f"/apis/example.dev/v1/namespaces/{name}/widgets" for name in ("shop", "mill")}


def test_a_namespace_that_is_not_looked_at_holds_nothing(server, serve, inform) -> None:
    server.lists.append(serve.page(5, serve.item("a", 1)))
    informer = inform(namespaces=["shop"])
    server.wait_for("watch", 1)
    assert informer.get("mill", "a") is None
    assert informer.by_index("colour", "mill", "red") == []


def test_an_index_answers_for_one_namespace(server, serve, inform) -> None:
    elsewhere = serve.item("a", 1, colour="red")
    elsewhere["metadata"]["namespace"] = "mill"
    here = [serve.item("b", 2, colour="red"), serve.item("c", 3, colour="blue")]
    server.lists.append(serve.page(5, elsewhere, *here))
    informer = inform()
    server.wait_for("watch", 1)
    assert [item["metadata"]["name"] for item in informer.by_index("colour", "shop", "red")] == ["b"]


def test_a_kind_that_appears_later_is_served_from_then_on(server, serve, inform, eventually) -> None:
    server.lists.extend([*[serve.status(404, "NotFound")] * 3, serve.page(5, serve.item("a", 1))])
    informer = inform()
    server.wait_for("list", 2)
    eventually(lambda: not informer.is_served or informer.has_synced)
    server.wait_for("watch", 1)
    eventually(lambda: informer.is_served and informer.has_synced)
    assert informer.problems == []


def test_a_kind_that_may_not_be_read_is_served_and_its_problem_named(server, serve, inform, eventually) -> None:
    server.lists.append(serve.status(403, "Forbidden"))
    informer = inform()
    eventually(lambda: bool(informer.problems))
    assert informer.is_served
    assert not informer.has_synced
    assert "told Forbidden" in str(informer.problems[0])
