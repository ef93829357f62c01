"""Jobs in all their states, the command in this process, and an API server over HTTP that answers as told."""

from __future__ import annotations

import contextlib
import copy
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

import pytest
from typer.testing import CliRunner, Result

from limbeck.cli.main import app

Object = dict[str, Any]
NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)

_CONDITIONS = {
    "Pending": ("Reconciling", "True", "SecretNotFound", "Secret s3 is not in namespace vision; create it"),
    "Running": ("Reconciling", "False", "RayJobCreated", "RayJob emoji-1 exists"),
    "Suspended": ("Suspended", "True", "SuspendedByUser", "set `spec.suspend` to false to go on"),
    "Complete": ("Complete", "True", "Completed", "the result reaches the target"),
    "Failed": ("Failed", "True", "GateFailed", "recovery is 81.2 of 97 percent; train longer"),
}
_STEPS: list[Object] = [
    {
        "name": "distil",
        "state": "Complete",
        "startTime": "2026-11-24T11:00:00Z",
        "completionTime": "2026-11-24T11:20:00Z",
        "progressPercent": 100,
        "message": "recall@10 0.604",
    },
    {
        "name": "int8",
        "state": "Running",
        "startTime": "2026-11-24T11:20:00Z",
        "progressPercent": 40,
        "message": "calibrate: 4 of 10 batches",
    },
]
_PROGRESS: Object = {
    "percent": 70,
    "step": "int8",
    "samplesPerSecond": 512.5,
    "etaSeconds": 340,
    "teacher": {"replicas": 4, "shardsDone": 12, "shardsTotal": 128},
    "lastUpdateTime": "2026-11-24T11:59:58Z",
}
RESULT: Object = {
    "sizeRatio": 8.1,
    "recoveryPercent": 98.2,
    "metrics": [{"name": "recall@10", "teacher": 0.612, "student": 0.601}],
    "reportUri": "s3://results/emoji/report/report.html",
    "modelUri": "s3://results/emoji/model",
}


def status_in(phase: str) -> Object:
    """What operator and server write about a job in a phase."""
    kind, truth, reason, message = _CONDITIONS[phase]
    condition = {
        "type": kind,
        "status": truth,
        "reason": reason,
        "message": message,
        "observedGeneration": 1,
        "lastTransitionTime": "2026-11-24T11:30:00Z",
    }
    status: Object = {"observedGeneration": 1, "phase": phase, "conditions": [condition]}
    if phase == "Pending":
        return status
    steps, progress = copy.deepcopy(_STEPS), copy.deepcopy(_PROGRESS)
    status |= {"attempt": 1, "startTime": "2026-11-24T10:59:00Z", "rayJob": "emoji-1", "steps": steps}
    status |= {"rayCluster": "emoji-1-x7k2p", "progress": progress}
    if phase in ("Complete", "Failed"):
        steps[1] |= {"state": "Complete", "completionTime": "2026-11-24T11:30:00Z", "progressPercent": 100}
        steps[1]["message"] = "recall@10 0.601"
        progress |= {"percent": 100, "etaSeconds": 0}
        status |= {"completionTime": "2026-11-24T11:31:00Z", "result": RESULT}
    return status


@pytest.fixture
def build_status() -> Callable[[str], Object]:
    return status_in


@pytest.fixture
def build_stored(build_job: Callable[..., Object]) -> Callable[..., Object]:
    """`build_stored("Running", **changes)`: a job as an API server gives it; phase None: no status yet."""

    def build(phase: str | None = "Running", name: str = "emoji", version: int = 7, **changes: Any) -> Object:
        job: Object = build_job(**changes)
        job["metadata"] |= {
            "name": name,
            "namespace": "vision",
            "uid": f"uid-of-{name}",
            "generation": 1,
            "resourceVersion": str(version),
            "creationTimestamp": "2026-11-24T10:58:00Z",
        }
        job["status"] = {"observedGeneration": -1} if phase is None else status_in(phase)
        return job

    return build


@pytest.fixture
def limbeck() -> Callable[..., Result]:
    """`limbeck("get", kubeconfig=path)`: the command in this process, its output apart from its errors."""

    def run(*arguments: str, kubeconfig: Path | str = "", given: str | None = None, **env: str) -> Result:
        if kubeconfig:
            env["KUBECONFIG"] = str(kubeconfig)
        result = CliRunner().invoke(app, list(arguments), input=given, env=env or None)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return run


class Request(NamedTuple):
    method: str
    path: str
    query: dict[str, str]
    body: Any


@dataclass
class Answer:
    """`events` None: one JSON body; else a stream of lines, which ends, is cut, or stays silent."""

    status: int = 200
    body: Any = None
    events: list[Any] | None = None
    end: str = "close"


@dataclass
class FakeApi:
    """Answers each path from its queue, the last answer again and again; a path without one is a 404."""

    folder: Path
    answers: dict[str, list[Answer]] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._closing = threading.Event()
        self._is_watched = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.kubeconfig = kubeconfig_for(self.folder, self.url)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()

    def tell(self, path: str, *answers: Answer) -> None:
        self.answers.setdefault(path, []).extend(answers)

    def status(self, path: str, code: int, reason: str) -> None:
        self.tell(path, Answer(code, {"kind": "Status", "code": code, "reason": reason, "message": f"told {reason}"}))

    def job(self, job: Object, *later: tuple[str, Object], end: str = "silence") -> None:
        """One job to get, list, and watch."""
        base = f"/apis/limbeck.dev/v1alpha1/namespaces/{job['metadata']['namespace']}/compressionjobs"
        self.tell(f"{base}/{job['metadata']['name']}", Answer(body=job))
        version = job["metadata"]["resourceVersion"]
        page = {"apiVersion": "limbeck.dev/v1alpha1", "kind": "CompressionJobList", "items": [job]}
        self.tell(base, Answer(body={**page, "metadata": {"resourceVersion": version}}))
        self.watch(base, *later, end=end)
        events = {"apiVersion": "v1", "kind": "EventList", "metadata": {"resourceVersion": version}, "items": []}
        self.tell(f"/api/v1/namespaces/{job['metadata']['namespace']}/events", Answer(body=events))

    def watch(self, base: str, *later: tuple[str, Object], end: str = "silence") -> None:
        self.tell(f"watch {base}", Answer(events=[{"type": kind, "object": item} for kind, item in later], end=end))

    def wait_for_watch(self) -> None:
        """Until somebody watches, and has been told all that there is to tell."""
        assert self._is_watched.wait(60), "nobody watches"

    def answer(self, request: Request) -> Answer:
        self.requests.append(request)
        queue = self.answers.get(("watch " if request.query.get("watch") else "") + request.path)
        if not queue:
            return Answer(404, {"kind": "Status", "code": 404, "reason": "NotFound", "message": "not found"})
        return queue.pop(0) if len(queue) > 1 else queue[0]

    def send(self, handler: BaseHTTPRequestHandler, answer: Answer) -> None:
        handler.send_response(answer.status)
        if answer.events is None:
            content = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
            handler.send_header("Content-Length", str(len(content)))
            handler.end_headers()
            handler.wfile.write(content)
            return
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for event in answer.events:
            line = event if isinstance(event, bytes) else json.dumps(event).encode() + b"\n"
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
        handler.wfile.flush()
        if answer.end == "silence":
            self._is_watched.set()
            self._closing.wait()
        handler.wfile.write(b"40\r\n{half" if answer.end == "cut" else b"0\r\n\r\n")
        handler.close_connection = True


def _handler(api: FakeApi) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def answer(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            url = urlsplit(self.path)
            request = Request(
                self.command, url.path, dict(parse_qsl(url.query)), json.loads(content) if content else None
            )
            with contextlib.suppress(OSError):  # who asked has gone
                api.send(self, api.answer(request))

        do_GET = do_POST = do_PATCH = do_DELETE = answer  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            """Silent."""

    return Handler


def kubeconfig_for(folder: Path, url: str, namespace: str = "vision") -> Path:
    path = folder / "kubeconfig.json"
    context = {"name": "test", "context": {"cluster": "test", "user": "test", "namespace": namespace}}
    path.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "test",
                "contexts": [context],
                "clusters": [{"name": "test", "cluster": {"server": url}}],
                "users": [{"name": "test", "user": {"token": "t"}}],
            }
        )
    )
    return path


@pytest.fixture
def api(tmp_path: Path) -> Iterator[FakeApi]:
    fake = FakeApi(tmp_path)
    yield fake
    fake.close()


@pytest.fixture
def cluster(api: FakeApi) -> Any:
    """The double, as verbs see it."""
    from limbeck.cli.cluster import connect
    from limbeck.cli.options import Access

    return connect(Access(kubeconfig=str(api.kubeconfig)))


@pytest.fixture
def answer() -> type[Answer]:
    return Answer


@pytest.fixture
def now() -> datetime:
    return NOW
