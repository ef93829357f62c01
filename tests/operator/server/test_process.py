"""The server as a process of its own, before a Kubernetes API over HTTP: killed, stopped, and posted to by a run."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from limbeck.kube.errors import KubeError
from limbeck.kube.events import EVENTS
from limbeck.server.cluster import JOBS, PODS, TOKEN_REVIEWS
from limbeck_runtime.telemetry.events import EventLog
from limbeck_runtime.telemetry.poster import post_progress
from limbeck_runtime.telemetry.progress import ProgressLog, ProgressRecord

pytestmark = pytest.mark.slow

WARNING = ("warning", {"message": "the disk is slow"})
JOB = "/api/v1/namespaces/vision/jobs/emoji"
_OBJECT = re.compile(r"/(?:apis?/.+|api/v1)/namespaces/([^/]+)/(pods|compressionjobs)/([^/]+)(?:/(status))?")


def kubernetes_over_http(cluster: Any) -> ThreadingHTTPServer:
    """The double of `conftest.py` as an API server speaks."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(lambda path, _: cluster.get(*self._named(path)))

        def do_POST(self) -> None:
            def create(path: str, body: Any) -> Any:
                if path == EVENTS.path("vision"):
                    return cluster.create(EVENTS, body, "vision")
                assert path == TOKEN_REVIEWS.path()
                return cluster.create(TOKEN_REVIEWS, body)

            self._answer(create)

        def do_PATCH(self) -> None:
            query = parse_qs(urlsplit(self.path).query)

            def patch(path: str, body: Any) -> Any:
                resource, name, namespace = self._named(path)
                return cluster.patch(
                    resource,
                    name,
                    body,
                    namespace,
                    subresource=_OBJECT.fullmatch(path).group(4),  # type: ignore[union-attr]
                    content_type=self.headers["Content-Type"],
                    field_manager=query["fieldManager"][0],
                    force=query["force"] == ["true"],
                )

            self._answer(patch)

        def _named(self, path: str) -> tuple[Any, str, str]:
            found = _OBJECT.fullmatch(path)
            assert found is not None, path
            return {"pods": PODS, "compressionjobs": JOBS}[found.group(2)], found.group(3), found.group(1)

        def _answer(self, call: Callable[[str, Any], Any]) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            try:
                code, answer = 200, call(urlsplit(self.path).path, body)
            except KubeError as error:
                answer = {"kind": "Status", "code": error.status, "reason": error.reason, "message": error.message}
                code = error.status
            content = json.dumps(answer).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    return server


class Process:
    """`python -m limbeck.server`, ready to serve."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "limbeck.server"],
            env=environment,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        assert self.process.stderr is not None
        said = []
        for line in self.process.stderr:
            said.append(line)
            if "running on" in line:
                break
        else:
            raise AssertionError("".join(said))
        # Nobody else reads on, so a full pipe must not stop the server.
        threading.Thread(target=self.process.stderr.read, daemon=True).start()

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait(20)


@pytest.fixture
def environment(cluster: Any, tmp_path: Path) -> Iterator[dict[str, str]]:
    api = kubernetes_over_http(cluster)
    thread = threading.Thread(target=api.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    kubeconfig = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        "clusters": [{"name": "test", "cluster": {"server": f"http://127.0.0.1:{api.server_address[1]}"}}],
        "users": [{"name": "test", "user": {}}],
    }
    (tmp_path / "kubeconfig").write_text(json.dumps(kubeconfig))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    yield os.environ | {
        "KUBECONFIG": str(tmp_path / "kubeconfig"),
        "LIMBECK_SERVER_HOST": "127.0.0.1",
        "LIMBECK_SERVER_PORT": str(port),
        "LIMBECK_SERVER_DATABASE_URL": f"sqlite:///{tmp_path / 'server.sqlite'}",
        "LIMBECK_SERVER_STREAM_POLL_SECONDS": "3600",
    }
    api.shutdown()
    thread.join()
    api.server_close()


@pytest.fixture
def start(environment: dict[str, str]) -> Iterator[Callable[..., tuple[Process, httpx.Client]]]:
    """`start(**environment)`: the process, and a client of it."""
    with ExitStack() as stack:

        def begin(**changes: str) -> tuple[Process, httpx.Client]:
            process = Process(environment | changes)
            stack.callback(process.process.stderr.close)
            stack.callback(process.process.wait)
            stack.callback(process.process.kill)
            url = f"http://127.0.0.1:{environment['LIMBECK_SERVER_PORT']}"
            return process, stack.enter_context(httpx.Client(base_url=url, timeout=20, trust_env=False))

        yield begin


def post(client: httpx.Client, token: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = client.post(f"{JOB}/progress", json=body, headers={"Authorization": f"Bearer {token}"})
    assert answer.status_code == 200, answer.text
    reply: dict[str, Any] = answer.json()
    return reply


def test_a_server_that_is_killed_and_started_again_keeps_its_history(start: Any, cluster: Any, build_post: Any) -> None:
    cluster.add_job("emoji")
    token = cluster.add_pod("emoji")
    process, client = start()
    first = build_post(1, WARNING, records=[("distil", 1)])
    assert post(client, token, first) == {"wanted": "Run", "duplicate": False}
    before = client.get(f"{JOB}/history").json()
    process.end(signal.SIGKILL)

    _, client = start()
    assert client.get(f"{JOB}/history").json() == before
    assert post(client, token, first)["duplicate"] is True
    assert post(client, token, build_post(2, WARNING))["duplicate"] is False
    assert len(client.get(f"{JOB}/history").json()["items"]) == 3
    assert cluster.written.wait(20)


def test_a_server_that_is_killed_and_started_again_repeats_no_event(start: Any, cluster: Any, build_post: Any) -> None:
    cluster.add_job("emoji")
    token = cluster.add_pod("emoji")
    finished = {"seconds": 1.0, "metrics": {}}
    process, client = start()
    post(client, token, build_post(1, ("step_finished", {"step": "distil", **finished})))
    assert cluster.announced(1) == ["StepCompleted"]
    process.end(signal.SIGKILL)

    _, client = start()
    steps = [("step_finished", {"step": name, **finished}) for name in ("distil", "int8")]
    post(client, token, build_post(2, *steps))
    cluster.announced(2)
    assert [event["note"] for event in cluster.events] == ["step distil is complete", "step int8 is complete"]


def test_a_server_that_is_to_stop_does_so_though_clients_follow(start: Any, cluster: Any, build_post: Any) -> None:
    cluster.add_job("emoji")
    process, client = start()
    post(client, cluster.add_pod("emoji"), build_post(1, WARNING))
    with client.stream("GET", f"{JOB}/stream") as stream:
        lines = stream.iter_lines()
        assert next(lines)
        assert process.end(signal.SIGTERM) in (0, -signal.SIGTERM)
        with suppress(httpx.RemoteProtocolError):  # a stream has no end of its own
            assert "event: progress" not in list(lines)


def test_a_server_without_a_cluster_says_what_to_set(environment: dict[str, str], tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "limbeck.server"],
        env=environment | {"KUBECONFIG": str(tmp_path / "none"), "LIMBECK_SERVER_PORT": "0"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "KUBECONFIG" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_run_goes_on_while_the_server_is_dead_and_all_it_told_is_there_once(
    start: Any, cluster: Any, environment: dict[str, str], tmp_path: Path
) -> None:
    cluster.add_job("emoji")
    (tmp_path / "token").write_text(cluster.add_pod("emoji"))
    events, progress, stop = EventLog(None), ProgressLog(tmp_path / "progress.jsonl"), threading.Event()
    told = {
        "LIMBECK_PROGRESS_URL": f"http://127.0.0.1:{environment['LIMBECK_SERVER_PORT']}{JOB}/progress",
        "LIMBECK_PROGRESS_TOKEN_FILE": str(tmp_path / "token"),
    }
    warned = threading.Event()

    def hear(event: Any) -> None:
        if event.event == "warning":
            warned.set()

    process, _ = start()
    with events.heard_by(hear), post_progress(told, events, progress, stop, epoch=1, attempt=1):
        events.emit("run_started", job="emoji", steps=["distil"], epoch=1, attempt=1)
        progress.write(ProgressRecord("distil", 1, 0.1, 1.0, {}))
        process.end(signal.SIGKILL)
        progress.write(ProgressRecord("distil", 2, 0.2, 0.9, {}))
        assert warned.wait(30)
        _, client = start()
        progress.write(ProgressRecord("distil", 3, 0.3, 0.8, {}))
        events.emit("run_finished", state="Complete")
    progress.close()
    items = client.get(f"{JOB}/history").json()["items"]
    assert [item["body"]["update"] for item in items if item["kind"] == "record"] == [1, 2, 3]
    assert [item["kind"] for item in items if item["kind"] != "record"] == ["run_started", "warning", "run_finished"]
    assert client.get(JOB).json()["ended"] == "Complete"
    assert not stop.is_set()
