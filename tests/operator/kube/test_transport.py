from __future__ import annotations

import socket
import threading
from queue import SimpleQueue

import pytest
from kubernetes.client.configuration import Configuration

from limbeck.kube.connection import client_for
from limbeck.kube.errors import (
    AlreadyExistsError,
    ConflictError,
    ForbiddenError,
    GoneError,
    InvalidError,
    KubeError,
    NotFoundError,
    ServerError,
    TooManyRequestsError,
    UnauthorizedError,
    UnreachableError,
)
from limbeck.kube.transport import APPLY, JSON_PATCH, MERGE, Resource, Transport


@pytest.mark.parametrize(
    ("code", "reason", "error"),
    [
        (400, "BadRequest", KubeError),
        (401, "Unauthorized", UnauthorizedError),
        (403, "Forbidden", ForbiddenError),
        (404, "NotFound", NotFoundError),
        (409, "AlreadyExists", AlreadyExistsError),
        (409, "Conflict", ConflictError),
        (410, "Expired", GoneError),
        (422, "Invalid", InvalidError),
        (429, "TooManyRequests", TooManyRequestsError),
        (500, "InternalError", ServerError),
        (504, "Timeout", ServerError),
    ],
)
def test_each_refusal_is_an_error_of_its_own(server, serve, widgets, code, reason, error) -> None:
    server.lists.append(serve.status(code, reason))
    with pytest.raises(KubeError, match=f"GET .*/namespaces/shop/widgets/a: {code} {reason}: told {reason}") as raised:
        server.transport().get(widgets, "a", "shop")
    assert type(raised.value) is error
    assert (raised.value.status, raised.value.reason) == (code, reason)


def test_retry_after_is_taken_from_the_header_and_else_from_the_body(server, serve, widgets) -> None:
    server.lists.extend(
        [
            serve.status(429, "TooManyRequests", retry_after=7),
            serve.status(500, "ServerTimeout", details={"retryAfterSeconds": 3}),
            serve.status(500, "InternalError"),
        ]
    )
    seconds = []
    for _ in range(3):
        with pytest.raises(KubeError) as raised:
            server.transport().list(widgets)
        seconds.append(raised.value.retry_after)
    assert seconds == [7, 3, None]


def test_no_request_is_tried_twice_behind_the_callers_back(server, serve, widgets) -> None:
    server.lists.append(serve.status(429, "TooManyRequests", retry_after=0))
    with pytest.raises(TooManyRequestsError):
        server.transport().list(widgets)
    assert len(server.requests) == 1


def test_a_proxy_that_answers_in_its_own_words_is_quoted(server, serve, widgets) -> None:
    server.lists.append(serve.raw(502, b"<html>bad gateway</html>"))
    with pytest.raises(ServerError, match="502 Unknown: <html>bad gateway</html>"):
        server.transport().list(widgets)


def test_what_is_no_api_server_is_named(server, serve, widgets) -> None:
    server.lists.append(serve.raw(200, b"welcome to nginx"))
    with pytest.raises(UnreachableError, match="no API server: b'welcome to nginx'"):
        server.transport().list(widgets)


def test_an_answer_that_does_not_come_in_time_is_unreachable(server, serve, widgets) -> None:
    server.lists.append(serve.silence())
    with pytest.raises(UnreachableError, match="no word within the time allowed"):
        server.transport().within(0.1).list(widgets)


def test_a_refused_connection_is_unreachable(widgets) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but nobody listens
        transport = Transport(client_for(Configuration(host=f"http://127.0.0.1:{taken.getsockname()[1]}")))
        with pytest.raises(UnreachableError, match="refused"):
            transport.list(widgets)


def test_a_list_says_what_it_wants_and_leaves_out_what_it_does_not(server, serve, widgets) -> None:
    server.lists.append(serve.page(1))
    server.transport().list(widgets, "shop", label_selector="a=b,c!=d", limit=2, continue_="x/y+z=")
    server.transport().list(widgets, limit=None, resource_version="0")
    first, second = server.requests
    assert first.path == "/apis/example.dev/v1/namespaces/shop/widgets"
    assert first.query == {"labelSelector": "a=b,c!=d", "limit": "2", "continue": "x/y+z="}
    assert (second.path, second.query) == ("/apis/example.dev/v1/widgets", {"resourceVersion": "0"})


def test_a_merge_patch_of_a_subresource_names_its_manager(server, widgets) -> None:
    server.transport().patch(widgets, "a", {"status": {"x": None}}, "shop", subresource="status", field_manager="me")
    (request,) = server.requests
    assert (request.method, request.path) == ("PATCH", "/apis/example.dev/v1/namespaces/shop/widgets/a/status")
    assert request.query == {"fieldManager": "me"}
    assert request.headers["Content-Type"] == MERGE
    assert request.body == {"status": {"x": None}}


def test_an_apply_needs_a_manager_and_forces_only_when_told(server, widgets) -> None:
    with pytest.raises(ValueError, match="needs a field manager"):
        server.transport().patch(widgets, "a", {}, "shop", content_type=APPLY)
    server.transport().patch(widgets, "a", {"a": 1}, "shop", content_type=APPLY, field_manager="me", force=True)
    (request,) = server.requests
    assert request.query == {"fieldManager": "me", "force": "true"}
    assert request.headers["Content-Type"] == APPLY


def test_a_json_patch_is_a_list_of_operations(server, serve, widgets) -> None:
    server.writes.append(serve.raw(200, b"{}"))
    operations = [{"op": "remove", "path": "/metadata/finalizers/0"}]
    server.transport().patch(widgets, "a", operations, "shop", content_type=JSON_PATCH)
    (request,) = server.requests
    assert (request.headers["Content-Type"], request.body) == (JSON_PATCH, operations)


def test_a_deletion_is_of_this_object_and_of_no_later_one_of_that_name(server, widgets) -> None:
    server.transport().delete(widgets, "a", "shop", uid="u-1", propagation="Foreground")
    (request,) = server.requests
    assert request.method == "DELETE"
    assert request.body["preconditions"] == {"uid": "u-1"}
    assert request.body["propagationPolicy"] == "Foreground"


@pytest.mark.parametrize(
    ("resource", "where", "path"),
    [
        (Resource("", "v1", "pods"), ("shop", "a", "log"), "/api/v1/namespaces/shop/pods/a/log"),
        (Resource("", "v1", "namespaces", False), (None, "shop", None), "/api/v1/namespaces/shop"),
        (Resource("apps", "v1", "deployments"), (None, None, None), "/apis/apps/v1/deployments"),
        (
            Resource("apps", "v1", "deployments"),
            ("a/../b", None, None),
            "/apis/apps/v1/namespaces/a%2F..%2Fb/deployments",
        ),
    ],
)
def test_paths_are_those_of_the_api(resource, where, path) -> None:
    assert resource.path(*where) == path


def test_a_name_without_its_namespace_is_refused_before_it_is_asked_for() -> None:
    with pytest.raises(ValueError, match="lies in a namespace; say which"):
        Resource("", "v1", "pods").path(None, "a")
    with pytest.raises(ValueError, match="is not namespaced, got namespace 'shop'"):
        Resource("", "v1", "nodes", False).path("shop", "a")


def test_a_watch_tells_events_as_they_come_and_asks_for_bookmarks(server, serve, widgets) -> None:
    server.watches.append(serve.events(("ADDED", serve.item("a", 2)), serve.bookmark(3), end="close"))
    with server.transport().watch(widgets, "shop", resource_version="1", timeout_seconds=30) as stream:
        assert [event["type"] for event in stream] == ["ADDED", "BOOKMARK"]
    (request,) = server.requests
    expected = {"watch": "true", "allowWatchBookmarks": "true", "resourceVersion": "1", "timeoutSeconds": "30"}
    assert request.query == expected


def test_an_event_is_told_before_the_next_one_is_sent(server, serve, widgets) -> None:
    server.watches.append(serve.events(("ADDED", serve.item("a", 2)), end="silence"))
    with server.transport().watch(widgets, resource_version="1", timeout_seconds=30) as stream:
        assert next(iter(stream))["type"] == "ADDED"


def test_a_watch_that_is_refused_raises_what_it_was_told(server, serve, widgets) -> None:
    server.watches.append(serve.status(410, "Expired"))
    with pytest.raises(GoneError, match=r"watch widgets\.example\.dev: 410 Expired"):
        server.transport().watch(widgets, resource_version="1", timeout_seconds=30)


@pytest.mark.parametrize(
    ("end", "message"), [("cut", "IncompleteRead|Connection broken"), ("silence", "no word within")]
)
def test_a_watch_that_breaks_off_says_so_after_its_events(server, serve, widgets, end, message) -> None:
    server.watches.append(serve.events(("ADDED", serve.item("a", 2)), end=end))
    with server.transport().watch(widgets, resource_version="1", timeout_seconds=30, silence_seconds=0.2) as stream:
        events = iter(stream)
        assert next(events)["type"] == "ADDED"
        with pytest.raises(UnreachableError, match=message):
            next(events)


def test_an_error_event_is_raised_as_what_it_is(server, serve, widgets) -> None:
    server.watches.append(serve.events(serve.expired()))
    with (
        server.transport().watch(widgets, resource_version="1", timeout_seconds=30) as stream,
        pytest.raises(GoneError, match="too old resource version"),
    ):
        list(stream)


def test_a_silent_watch_is_ended_from_another_thread_without_an_error(server, widgets) -> None:
    ended: SimpleQueue[object] = SimpleQueue()
    stream = server.transport().watch(widgets, resource_version="1", timeout_seconds=30)

    def read() -> None:
        try:
            with stream:
                ended.put(list(stream))
        except Exception as error:
            ended.put(error)

    reader = threading.Thread(target=read)
    reader.start()
    stream.close()
    assert ended.get(timeout=5) == []
    reader.join(5)
    stream.close()  # once more does no harm


def test_fields_are_selected_in_lists_and_watches(server, serve, widgets) -> None:
    server.lists.append(serve.page(1))
    server.watches.append(serve.events(end="close"))
    server.transport().list(widgets, "shop", field_selector="metadata.name=a")
    with server.transport().watch(
        widgets, "shop", resource_version="1", timeout_seconds=30, field_selector="metadata.name=a"
    ) as stream:
        assert list(stream) == []
    assert [request.query["fieldSelector"] for request in server.requests] == ["metadata.name=a"] * 2


def test_a_dry_run_says_that_it_is_one(server, widgets) -> None:
    server.transport().patch(widgets, "a", {}, "shop", dry_run=True)
    server.transport().patch(widgets, "a", {}, "shop")
    assert [request.query.get("dryRun") for request in server.requests] == ["All", None]


def test_a_log_comes_line_by_line_and_may_lack_its_last_end(server, serve) -> None:
    server.lists.append(serve.raw(200, b"one\n\ntwo \xc3\xa9\nlast"))
    with server.transport().logs("p", "shop", container="ray-head", follow=True, tail_lines=5) as stream:
        assert list(stream) == [b"one", b"", b"two \xc3\xa9", b"last"]
    (request,) = server.requests
    assert request.path == "/api/v1/namespaces/shop/pods/p/log"
    assert request.query == {"container": "ray-head", "follow": "true", "tailLines": "5"}


def test_a_log_that_is_refused_raises_what_it_was_told(server, serve) -> None:
    server.lists.append(serve.status(400, "BadRequest"))
    with pytest.raises(KubeError, match="GET /api/v1/namespaces/shop/pods/p/log: 400 BadRequest: told BadRequest"):
        server.transport().logs("p", "shop")


def test_a_log_that_is_cut_off_says_so_after_its_lines(server, serve) -> None:
    server.lists.append(serve.events(("said", {}), end="cut"))
    with server.transport().logs("p", "shop", follow=True) as stream:
        lines = iter(stream)
        assert b"said" in next(lines)
        with pytest.raises(UnreachableError, match=r"IncompleteRead|Connection broken"):
            list(lines)


def test_only_a_log_that_is_not_followed_must_come_in_time(server, serve) -> None:
    server.lists.append(serve.events(("said", {}), end="silence"))
    with server.transport().within(0.1).logs("p", "shop") as stream, pytest.raises(UnreachableError, match="no word"):
        list(stream)
    with server.transport().within(0.1).logs("p", "shop", follow=True) as stream:
        ended: SimpleQueue[object] = SimpleQueue()

        def read() -> None:
            ended.put(len(list(stream)))

        reader = threading.Thread(target=read)
        reader.start()
        reader.join(0.5)
        assert reader.is_alive(), "a log may say nothing for as long as it likes"
        stream.close()
        assert ended.get(timeout=5) == 1
        reader.join(5)


def test_the_version_is_the_servers_own(server, serve) -> None:
    server.lists.append(serve.raw(200, b'{"gitVersion": "v1.34.4"}'))
    assert server.transport().version() == "v1.34.4"
    assert server.requests[0].path == "/version"
