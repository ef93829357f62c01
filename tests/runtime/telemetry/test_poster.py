from __future__ import annotations

import datetime
import ipaddress
import json
import queue
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from limbeck_runtime.telemetry.events import EventLog
from limbeck_runtime.telemetry.poster import ProgressPoster, Target, post_progress
from limbeck_runtime.telemetry.progress import ProgressLog, ProgressRecord

RUN = (200, {"wanted": "Run"})
CHECKPOINT = (200, {"wanted": "Checkpoint"})
Answer = tuple[int, Any]


class Receiver:
    """A server that gives the answers of a script, then `RUN`, and keeps what was posted."""

    def __init__(self, script: list[Answer], port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        self.script = script
        self.posts: queue.Queue[tuple[dict[str, Any], str]] = queue.Queue()
        self.connections: list[socket.socket] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                receiver.connections.append(self.connection)

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                code, answer = receiver.script.pop(0) if receiver.script else RUN
                content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                receiver.posts.put((body, self.headers["Authorization"]))
                self.send_response(code)
                if code in (302, 307):
                    self.send_header("Location", "http://127.0.0.1:1/elsewhere")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True
        if tls is not None:
            self.server.socket = tls.wrap_socket(self.server.socket, server_side=True)
        self.scheme = "https" if tls else "http"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()

    @property
    def port(self) -> int:
        return int(self.server.server_address[1])

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}/api/v1/namespaces/vision/jobs/emoji/progress"

    def next(self) -> dict[str, Any]:
        return self.posts.get(timeout=20)[0]

    def next_with(self, wanted: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        while not wanted(post := self.next()):
            pass
        return post

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()
        for connection in self.connections:
            with suppress(OSError):  # the client has closed it
                connection.shutdown(socket.SHUT_RDWR)


class Run:
    """The driver's side: event log, training history, and what the poster asked or told."""

    def __init__(self, folder: Path) -> None:
        self.events = EventLog(None)
        self.progress = ProgressLog(folder / "progress.jsonl")
        self.token_file = folder / "token"
        self.token_file.write_text("first-token\n")
        self.stop = threading.Event()
        self.warnings: queue.Queue[str] = queue.Queue()

    def poster(self, url: str, ca_file: Path | None = None, **options: Any) -> ProgressPoster:
        return ProgressPoster(
            Target(url, self.token_file, ca_file),
            self.progress,
            epoch=2,
            attempt=3,
            ask_to_stop=self.stop.set,
            warn=self.warnings.put,
            **{"interval_seconds": 0.02, "close_seconds": 5.0, **options},
        )

    def record(self, update: int) -> None:
        self.progress.write(ProgressRecord("distil", update, 0.1, 1.0, {}))


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    made = Run(tmp_path)
    yield made
    made.progress.close()


@pytest.fixture
def receive() -> Iterator[Callable[..., Receiver]]:
    with ExitStack() as stack:

        def start(*script: Answer, **options: Any) -> Receiver:
            receiver = Receiver(list(script), **options)
            stack.callback(receiver.close)
            return receiver

        yield start


@pytest.fixture
def posting(run: Run) -> Iterator[Callable[..., ProgressPoster]]:
    """`posting(url)`: a poster that hears the run's events, started, and closed at the end."""
    with ExitStack() as stack:

        def start(url: str, ca_file: Path | None = None, **options: Any) -> ProgressPoster:
            poster = run.poster(url, ca_file, **options)
            stack.enter_context(run.events.heard_by(poster.backlog.add))
            poster.start()
            stack.callback(poster.close)
            return poster

        yield start


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def test_events_and_records_are_posted_with_token_epoch_and_attempt(run: Run, receive: Any, posting: Any) -> None:
    receiver = receive()
    run.record(1)
    posting(receiver.url)
    body, authorization = receiver.posts.get(timeout=20)
    assert authorization == "Bearer first-token"
    assert (body["epoch"], body["attempt"], body["sequence"], body["events"]) == (2, 3, 1, [])
    assert [record["update"] for record in body["records"]] == [1]
    run.events.emit("warning", message="a")
    assert receiver.next_with(lambda post: post["events"])["events"][0]["message"] == "a"


def test_a_run_that_has_nothing_to_tell_still_asks_what_is_wanted(run: Run, receive: Any, posting: Any) -> None:
    receiver = receive(RUN, RUN, CHECKPOINT)
    posting(receiver.url)
    assert run.stop.wait(20)
    assert [receiver.next()["sequence"] for _ in range(3)] == [1, 2, 3]


def test_the_token_is_read_anew_for_each_post(run: Run, receive: Any, posting: Any) -> None:
    receiver = receive()
    posting(receiver.url)
    receiver.next()
    run.token_file.write_text("second-token")
    while receiver.posts.get(timeout=20)[1] != "Bearer second-token":
        pass


@pytest.mark.parametrize(
    "fault",
    [(500, b"oops"), (503, {}), (429, {}), (401, {}), (403, {}), (404, {}), (307, {}), (200, b"<html>"), (200, {})],
)
def test_a_post_that_was_not_taken_is_sent_again_as_it_was(run: Run, receive: Any, posting: Any, fault: Answer) -> None:
    receiver = receive(fault, fault)
    run.record(1)
    posting(receiver.url)
    first = receiver.next()
    run.record(2)
    assert [receiver.next(), receiver.next()] == [first, first]
    assert [record["update"] for record in receiver.next_with(lambda post: post["records"])["records"]] == [2]
    assert not run.stop.is_set()


@pytest.mark.parametrize("code", [400, 413, 422])
def test_a_post_that_will_never_be_taken_is_dropped_counted_and_told_once(
    run: Run, receive: Any, posting: Any, code: int
) -> None:
    receiver = receive((code, {}), (code, {}), (code, {}))
    run.record(1)
    posting(receiver.url)
    receiver.next()
    run.record(2)
    assert receiver.next_with(lambda post: post["dropped"] == 1)["sequence"] > 1
    receiver.next_with(lambda post: post["sequence"] >= 5)
    assert f"{code}" in run.warnings.get(timeout=20)
    assert run.warnings.empty()


def test_a_run_that_a_newer_one_replaced_posts_no_more(run: Run, receive: Any, posting: Any) -> None:
    receiver = receive((409, {"reason": "StaleRun"}))
    poster = posting(receiver.url)
    receiver.next()
    assert "StaleRun" in run.warnings.get(timeout=20)
    run.record(1)
    poster.close()
    assert receiver.posts.empty()
    assert not run.stop.is_set()


def test_a_run_goes_on_while_no_server_is_there_and_tells_all_when_it_is(run: Run, receive: Any, posting: Any) -> None:
    port = free_port()
    posting(f"http://127.0.0.1:{port}/progress")
    run.record(1)
    assert "the run goes on" in run.warnings.get(timeout=20)
    run.record(2)
    run.events.emit("warning", message="a")
    receiver = receive(port=port)
    updates, messages = [], []
    while len(updates) < 2 or not messages:
        post = receiver.next()
        updates += [record["update"] for record in post["records"]]
        messages += [event["message"] for event in post["events"]]
    assert (updates, messages) == ([1, 2], ["a"])
    assert run.warnings.empty()


def test_a_server_that_goes_away_and_comes_back_is_posted_to_again(run: Run, receive: Any, posting: Any) -> None:
    first = Receiver([])
    port = first.port
    posting(first.url)
    run.record(1)
    first.next_with(lambda post: post["records"])
    first.close()
    run.record(2)
    run.warnings.get(timeout=20)
    again = receive(port=port)
    assert again.next_with(lambda post: post["records"])["records"][0]["update"] == 2


def test_a_token_file_that_is_not_there_yet_is_waited_for(run: Run, receive: Any, posting: Any) -> None:
    run.token_file.unlink()
    receiver = receive()
    posting(receiver.url)
    assert "FileNotFoundError" in run.warnings.get(timeout=20)
    run.token_file.write_text("late-token")
    assert receiver.posts.get(timeout=20)[1] == "Bearer late-token"


def test_the_last_words_of_a_run_are_posted_before_it_ends(run: Run, receive: Any, posting: Any) -> None:
    receiver = receive((503, {}))
    poster = posting(receiver.url, interval_seconds=0.1)
    receiver.next()
    run.record(7)
    run.events.emit("run_finished", state="Complete")
    poster.close()
    posts = [receiver.posts.get_nowait()[0] for _ in range(receiver.posts.qsize())]
    assert [event["event"] for post in posts for event in post["events"]] == ["run_finished"]
    assert [record["update"] for post in posts for record in post["records"]] == [7]


def test_a_server_that_fails_all_the_time_gets_one_more_chance_when_the_run_ends(run: Run, receive: Any) -> None:
    receiver = receive(*[(503, {})] * 1000)
    poster = run.poster(receiver.url, interval_seconds=0.001, close_seconds=3600)
    poster.start()
    for _ in range(5):
        receiver.next()
    poster.close()
    assert receiver.posts.qsize() < 10


def test_a_server_that_never_answers_does_not_keep_a_run_from_ending(run: Run, posting: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/progress"
        poster = posting(url, close_seconds=0.2)
        connection, _ = silent.accept()
        with connection:
            run.events.emit("warning", message="a")
            poster.close()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that is its own authority, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "limbeck-server")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    (folder / "tls.crt").write_bytes(made.public_bytes(encoding))
    private = serialization.PrivateFormat.PKCS8
    (folder / "tls.key").write_bytes(key.private_bytes(encoding, private, serialization.NoEncryption()))
    return folder / "tls.crt", folder / "tls.key"


def test_over_https_the_server_must_have_a_certificate_of_the_given_authority(
    run: Run, receive: Any, posting: Any, certificate: tuple[Path, Path]
) -> None:
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(*certificate)
    receiver = receive(tls=tls)
    stranger = run.poster(receiver.url, close_seconds=0.1)
    stranger.start()
    assert "CERTIFICATE_VERIFY_FAILED" in run.warnings.get(timeout=20)
    stranger.close()
    assert receiver.posts.empty()
    run.record(1)
    posting(receiver.url, certificate[0])
    assert receiver.next()["sequence"] == 1


BASE = {"LIMBECK_PROGRESS_URL": "https://server/progress", "LIMBECK_PROGRESS_TOKEN_FILE": "/token"}


def test_the_target_is_what_the_operator_has_set() -> None:
    assert Target.from_environment({}) is None
    assert Target.from_environment(BASE) == Target("https://server/progress", Path("/token"))
    ca_file = {"LIMBECK_PROGRESS_CA_FILE": "/ca"}
    assert Target.from_environment(BASE | ca_file) == Target("https://server/progress", Path("/token"), Path("/ca"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"LIMBECK_PROGRESS_URL": "http://server/progress"}, "must begin with https://"),
        ({"LIMBECK_PROGRESS_URL": "server:8443"}, "must begin with https://"),
        ({"LIMBECK_PROGRESS_TOKEN_FILE": ""}, "LIMBECK_PROGRESS_TOKEN_FILE"),
    ],
)
def test_a_target_that_cannot_be_used_is_a_warning_and_the_run_goes_on(
    run: Run, change: dict[str, str], message: str
) -> None:
    heard: list[Any] = []
    with (
        run.events.heard_by(heard.append),
        post_progress(BASE | change, run.events, run.progress, run.stop, epoch=1, attempt=1),
    ):
        run.record(1)
    assert [message in event.message for event in heard] == [True]
    assert run.progress.drain() != b""


def test_posting_begins_and_ends_with_its_context(run: Run, receive: Any) -> None:
    receiver = receive()
    environment = {
        "LIMBECK_PROGRESS_URL": receiver.url,
        "LIMBECK_PROGRESS_TOKEN_FILE": str(run.token_file),
    }
    before = threading.active_count()
    with post_progress(environment, run.events, run.progress, run.stop, epoch=4, attempt=1):
        run.events.emit("warning", message="a")
    post = receiver.next_with(lambda post: post["events"])
    assert (post["epoch"], post["events"][0]["message"]) == (4, "a")
    assert "progress-poster" not in {thread.name for thread in threading.enumerate()}
    assert threading.active_count() <= before + 1  # the receiver's
