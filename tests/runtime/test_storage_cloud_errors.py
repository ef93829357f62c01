"""A cloud that fails: what passes is waited out, what does not is said with the place and the cause."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from limbeck_runtime.storage import RetryPolicy, Storage, StorageError

pytestmark = pytest.mark.s3


def test_a_server_that_stops_halfway_is_named_with_the_object(own_s3_server) -> None:
    uri = own_s3_server.uri()
    storage = own_s3_server.open(uri)
    storage.create("before", b"1")
    own_s3_server.stop()

    for act in (
        lambda: storage.get("object"),
        lambda: storage.create("object", b"2"),
        lambda: storage.head("object"),
        lambda: storage.delete("object"),
        lambda: storage.get_range("object", 0, 1),
    ):
        with pytest.raises(StorageError) as caught:
            act()
        assert f"{uri}/object" in str(caught.value)
    with pytest.raises(StorageError, match="cannot list"):
        storage.list()

    own_s3_server.start()
    assert storage.get("before") == b"1"
    storage.create("object", b"3")
    assert storage.get("object") == b"3"


def test_a_missing_bucket_is_told_from_a_missing_object(s3_server) -> None:
    storage = s3_server.open("s3://no-such-bucket/prefix")

    with pytest.raises(StorageError, match="no such bucket"):
        storage.create("object", b"1")


def test_wrong_credentials_are_told_and_not_shown(s3_server) -> None:
    options = s3_server.options | {"secret_access_key": "a-wrong-secret"}
    storage = Storage.open(s3_server.uri(), options=options)

    with pytest.raises(StorageError) as caught:
        storage.get("object")
    assert "403" in str(caught.value)
    assert "a-wrong-secret" not in str(caught.value)


class _Busy(BaseHTTPRequestHandler):
    """Answers 503 as often as it is told, then takes any PUT and gives any GET."""

    protocol_version = "HTTP/1.1"

    def _answer(self, body: bytes) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        server = self.server
        assert isinstance(server, _BusyServer)
        server.requests += 1
        self.send_response(503 if server.requests <= server.refusals else 200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"1"')
        self.send_header("Last-Modified", "Mon, 01 Jan 2024 00:00:00 GMT")
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self._answer(b"content")

    def do_PUT(self) -> None:
        self._answer(b"")

    def log_message(self, *arguments: object) -> None:
        pass


class _BusyServer(ThreadingHTTPServer):
    requests = 0
    refusals = 2


@pytest.fixture
def busy_server() -> Iterator[_BusyServer]:
    server = _BusyServer(("127.0.0.1", 0), _Busy)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def _open(server: _BusyServer, max_retries: int) -> Storage:
    options = {
        "endpoint": f"http://127.0.0.1:{server.server_port}",
        "region": "us-east-1",
        "access_key_id": "a",
        "secret_access_key": "b",
    }
    return Storage.open("s3://bucket/prefix", options=options, retry=RetryPolicy(max_retries, timeout_seconds=10))


def test_a_busy_store_is_asked_again(busy_server: _BusyServer) -> None:
    storage = _open(busy_server, max_retries=3)

    assert storage.get("object") == b"content"
    assert busy_server.requests == 3
    busy_server.requests = 0
    storage.create("object", b"1")
    assert busy_server.requests == 3


def test_a_store_that_stays_busy_is_an_error_in_the_end(busy_server: _BusyServer) -> None:
    storage = _open(busy_server, max_retries=1)

    with pytest.raises(StorageError, match=r"s3://bucket/prefix/object.*503"):
        storage.create("object", b"1")
