"""A small HTTP server that misbehaves as told, a clock that is moved by hand, and objects to serve."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, NamedTuple
from urllib.parse import parse_qsl, urlsplit

import pytest
from kubernetes.client.configuration import Configuration

from limbeck.kube.connection import client_for
from limbeck.kube.transport import Object, Resource, Transport

WIDGETS = Resource("example.dev", "v1", "widgets")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class Request(NamedTuple):
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any
    at: float


class Answer(NamedTuple):
    """A whole answer; with `events`, a stream of lines that ends as `end` says."""

    status: int = 200
    body: object = None
    headers: tuple[tuple[str, str], ...] = ()
    events: tuple[object, ...] | None = None
    end: Literal["close", "cut", "silence"] = "close"


class FaultyServer:
    """Serves `lists`, `watches` and `writes` in turn; the last list is served again and again.

    When no watch is left it keeps silent, when no write is left it answers with what was sent.
    """

    def __init__(self) -> None:
        self.lists: deque[Answer] = deque()
        self.watches: deque[Answer] = deque()
        self.writes: deque[Answer] = deque()
        self.requests: list[Request] = []
        self._arrived = threading.Condition()
        self._closing = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(self))
        self._server.daemon_threads = True
        self._server.block_on_close = False
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def transport(self) -> Transport:
        return Transport(client_for(Configuration(host=f"http://127.0.0.1:{self._server.server_port}")))

    def close(self) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()

    def seen(self, kind: Literal["list", "watch", "write"]) -> list[Request]:
        with self._arrived:
            return [request for request in self.requests if _kind_of(request) == kind]

    def wait_for(self, kind: Literal["list", "watch", "write"], number: int) -> list[Request]:
        """Until so many requests of the kind have come."""
        with self._arrived:
            come = self._arrived.wait_for(lambda: len(self.seen(kind)) >= number, 10)
        assert come, f"{len(self.seen(kind))} {kind} requests came, not {number}"
        return self.seen(kind)

    def answer(self, request: Request) -> Answer:
        with self._arrived:
            self.requests.append(request)
            self._arrived.notify_all()
            match _kind_of(request):
                case "list":
                    return self.lists.popleft() if len(self.lists) > 1 else self.lists[0]
                case "watch":
                    return self.watches.popleft() if self.watches else Answer(events=(), end="silence")
                case _:
                    return self.writes.popleft() if self.writes else Answer(body=request.body)

    def send(self, handler: BaseHTTPRequestHandler, answer: Answer) -> None:
        handler.send_response(answer.status)
        for name, value in answer.headers:
            handler.send_header(name, value)
        if answer.events is None:
            content = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
            handler.send_header("Content-Length", str(len(content)))
            handler.end_headers()
            if answer.end == "silence":
                self._closing.wait()
            handler.wfile.write(content)
            return
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for event in answer.events:
            line = json.dumps(event).encode() + b"\n"
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
        if answer.end == "close":
            handler.wfile.write(b"0\r\n\r\n")
        elif answer.end == "cut":
            handler.wfile.write(b"40\r\n{half an event")
            handler.close_connection = True
        else:
            handler.wfile.flush()
            self._closing.wait()
            handler.close_connection = True


def _kind_of(request: Request) -> Literal["list", "watch", "write"]:
    if request.method != "GET":
        return "write"
    return "watch" if request.query.get("watch") else "list"


def _handler_of(server: FaultyServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def answer(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            url = urlsplit(self.path)
            body = json.loads(content) if content else None
            arrived = time.monotonic()
            request = Request(
                self.command, url.path, dict(parse_qsl(url.query)), dict(self.headers.items()), body, arrived
            )
            server.send(self, server.answer(request))

        do_GET = do_POST = do_PATCH = do_DELETE = answer  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            """Silent."""

    return Handler


class Serve:
    """Builders of what an API server says."""

    @staticmethod
    def item(name: str, version: int, *, uid: str = "", **fields: object) -> Object:
        metadata = {
            "name": name,
            "namespace": "shop",
            "uid": uid or f"uid-of-{name}",
            "resourceVersion": str(version),
        }
        return {"apiVersion": "example.dev/v1", "kind": "Widget", "metadata": metadata, **fields}

    @staticmethod
    def page(version: int, *items: Object, token: str = "") -> Answer:
        metadata = {"resourceVersion": str(version), "continue": token}
        bare = [{name: value for name, value in item.items() if name not in ("apiVersion", "kind")} for item in items]
        body = {"apiVersion": "example.dev/v1", "kind": "WidgetList", "metadata": metadata, "items": bare}
        return Answer(body=body)

    @staticmethod
    def events(*events: tuple[str, Object], end: Literal["close", "cut", "silence"] = "silence") -> Answer:
        return Answer(events=tuple({"type": kind, "object": item} for kind, item in events), end=end)

    @staticmethod
    def bookmark(version: int) -> tuple[str, Object]:
        return "BOOKMARK", {"kind": "Widget", "metadata": {"resourceVersion": str(version)}}

    @staticmethod
    def status(code: int, reason: str, *, retry_after: float | None = None, **more: object) -> Answer:
        body = {"kind": "Status", "apiVersion": "v1", "code": code, "reason": reason, "message": f"told {reason}"}
        headers = (("Retry-After", str(retry_after)),) if retry_after is not None else ()
        return Answer(code, body | more, headers)

    @staticmethod
    def expired() -> tuple[str, Object]:
        return "ERROR", {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}

    @staticmethod
    def silence() -> Answer:
        return Answer(body={}, end="silence")

    @staticmethod
    def raw(status: int, content: bytes) -> Answer:
        return Answer(status, content)


@pytest.fixture
def serve() -> type[Serve]:
    return Serve


@pytest.fixture
def widgets() -> Resource:
    return WIDGETS


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    faulty = FaultyServer()
    yield faulty
    faulty.close()


@pytest.fixture
def eventually() -> Callable[[Callable[[], bool]], None]:
    """For what another thread does and nobody tells: looks again and again, for at most ten seconds."""

    def wait(happened: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 10
        while not happened():
            assert time.monotonic() < deadline, "it never happened"
            threading.Event().wait(0.005)

    return wait
