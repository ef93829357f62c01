"""A strict Kubernetes in memory, the real server under a real uvicorn, and builders of posts."""

from __future__ import annotations

import copy
import itertools
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from limbeck.api.posts import ProgressPost
from limbeck.kube.errors import ConflictError, KubeError, NotFoundError
from limbeck.kube.events import EVENTS
from limbeck.kube.transport import APPLY, Resource
from limbeck.server.app import create_app
from limbeck.server.cluster import JOBS, PODS, TOKEN_REVIEWS
from limbeck.server.history import History, JobKey
from limbeck.server.settings import Settings

START = 1_795_500_000.0
AUDIENCE = "limbeck.dev/server"
BIRTH = "2026-11-24T06:00:00Z"


class Clock:
    """Seconds that pass only when a test says so."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class FakeCluster:
    """Token reviews, pods and jobs. It refuses, by an assertion, whatever the server has no right to do."""

    def __init__(self) -> None:
        self.tokens: dict[str, dict[str, Any]] = {}
        self.pods: dict[tuple[str, str], dict[str, Any]] = {}
        self.jobs: dict[tuple[str, str], dict[str, Any]] = {}
        self.calls: list[tuple[str, str]] = []
        self.applied: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []
        self._lock = threading.Lock()
        self._announced = threading.Condition()
        self._faults: dict[str, list[KubeError]] = {}
        self._uids = (f"uid-{number}" for number in itertools.count(1))
        # Set whenever a status has been written.
        self.written = threading.Event()
        # Set whenever a call was answered by an error that a test had ordered.
        self.refused = threading.Event()

    def add_job(self, name: str, namespace: str = "vision", *, attempt: int = 1, **spec: Any) -> str:
        """A job; returns its UID. One of the same name is replaced, as after deletion and creation."""
        uid = next(self._uids)
        metadata = {
            "name": name, "namespace": namespace, "uid": uid, "creationTimestamp": BIRTH,
            "resourceVersion": f"of-{uid}-0",
        }  # fmt: skip
        self.jobs[namespace, name] = {"metadata": metadata, "spec": spec, "status": {"attempt": attempt}}
        return uid

    def add_pod(self, job: str, namespace: str = "vision", *, attempt: int = 1, **metadata: Any) -> str:
        """The head pod of an attempt, and its token."""
        uid = next(self._uids)
        name = f"{job}-{attempt}-x7k2p-head"
        owner = {
            "apiVersion": "ray.io/v1", "kind": "RayCluster", "name": f"{job}-{attempt}-x7k2p",
            "uid": next(self._uids), "controller": True,
        }  # fmt: skip
        labels = {"limbeck.dev/job": job, "limbeck.dev/attempt": str(attempt)}
        described = {
            "name": name, "namespace": namespace, "uid": uid, "creationTimestamp": BIRTH, "labels": labels,
            "ownerReferences": [owner],
        }  # fmt: skip
        self.pods[namespace, name] = {"metadata": described | metadata}
        token = f"token-of-{uid}"
        self.tokens[token] = {
            "authenticated": True,
            "audiences": [AUDIENCE],
            "user": {
                "username": f"system:serviceaccount:{namespace}:runtime",
                "extra": {
                    "authentication.kubernetes.io/pod-name": [name],
                    "authentication.kubernetes.io/pod-uid": [uid],
                },
            },
        }
        return token

    def fail(self, verb: str, *errors: KubeError) -> None:
        """The next calls of a verb are answered by these errors."""
        self._faults.setdefault(verb, []).extend(errors)

    def announced(self, number: int) -> list[str]:
        """The reasons of all Events once there are so many."""
        with self._announced:
            assert self._announced.wait_for(lambda: len(self.events) >= number, 20), self.events
            return [event["reason"] for event in self.events]

    def count(self, verb: str, resource: Resource) -> int:
        return self.calls.count((verb, resource.plural))

    def get(self, resource: Resource, name: str, namespace: str | None = None) -> dict[str, Any]:
        self._called("get", resource)
        assert resource in (PODS, JOBS)
        found = (self.pods if resource == PODS else self.jobs).get((namespace or "", name))
        if found is None:
            raise NotFoundError(404, "NotFound", f"{name} not found")
        return copy.deepcopy(found)

    def create(self, resource: Resource, body: dict[str, Any], namespace: str | None = None) -> dict[str, Any]:
        self._called("create", resource)
        if resource == EVENTS:
            assert (body["metadata"]["namespace"], body["regarding"]["kind"]) == (namespace, "CompressionJob")
            with self._announced:
                self.events.append(copy.deepcopy(body))
                self._announced.notify_all()
            return body
        assert resource == TOKEN_REVIEWS
        assert namespace is None
        assert (body["apiVersion"], body["kind"]) == ("authentication.k8s.io/v1", "TokenReview")
        known = self.tokens.get(body["spec"]["token"], {"authenticated": False})
        # An authenticator that knows nothing of audiences answers without looking at those asked for.
        is_aware = known.get("audiences") is not None
        if is_aware and not set(body["spec"]["audiences"]) & set(known["audiences"]):
            known = {"authenticated": False, "error": "token audiences do not match"}
        return body | {"status": copy.deepcopy(known)}

    def patch(
        self,
        resource: Resource,
        name: str,
        body: dict[str, Any],
        namespace: str | None = None,
        *,
        subresource: str | None = None,
        content_type: str = "",
        field_manager: str | None = None,
        force: bool = False,
    ) -> dict[str, Any]:
        self._called("patch", resource)
        assert (resource, subresource, content_type) == (JOBS, "status", APPLY)
        assert (field_manager, force) == ("limbeck-server", True)
        assert (body["apiVersion"], body["kind"]) == ("limbeck.dev/v1alpha1", "CompressionJob")
        assert set(body) == {"apiVersion", "kind", "metadata", "status"}
        # Without it, the API server would write to a later job of that name; a UID does not keep it from that.
        assert set(body["metadata"]) == {"name", "namespace", "resourceVersion"}
        assert set(body["status"]) <= {"progress", "steps", "result"}
        with self._lock:
            found = self.jobs.get((namespace or "", name))
            if found is None:
                raise NotFoundError(404, "NotFound", f"{name} not found")
            if found["metadata"]["resourceVersion"] != body["metadata"]["resourceVersion"]:
                raise ConflictError(409, "Conflict", "the object has been modified")
            found["status"] |= copy.deepcopy(body["status"])
            self.applied.append(body)
            found["metadata"]["resourceVersion"] = f"of-{found['metadata']['uid']}-{len(self.applied)}"
            self.written.set()
            return copy.deepcopy(found)

    def _called(self, verb: str, resource: Resource) -> None:
        with self._lock:
            self.calls.append((verb, resource.plural))
            faults = self._faults.get(verb)
            if faults:
                self.refused.set()
                raise faults.pop(0)


class Served:
    """The server at a port, and clients of it."""

    def __init__(self, client: httpx.Client, url: str) -> None:
        self.client, self.url = client, url

    def post(self, token: str, body: dict[str, Any] | bytes, job: str = "emoji", ns: str = "vision") -> httpx.Response:
        path = f"/api/v1/namespaces/{ns}/jobs/{job}/progress"
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        if isinstance(body, bytes):
            return self.client.post(path, content=body, headers=headers)
        return self.client.post(path, json=body, headers=headers)


@pytest.fixture
def clock() -> Clock:
    return Clock(START)


@pytest.fixture
def cluster() -> FakeCluster:
    return FakeCluster()


@pytest.fixture
def build_post() -> Callable[..., dict[str, Any]]:
    """`build_post(sequence, *events, records=[...])`: each event is (kind, fields), each record (step, update)."""

    def build(
        sequence: int = 1,
        *events: tuple[str, dict[str, Any]],
        records: list[tuple[str, int]] | None = None,
        **fields: Any,
    ) -> dict[str, Any]:
        wire = [{"time": "2026-11-24T06:00:00Z", "event": kind, **values} for kind, values in events]
        rows = [
            {"step": step, "update": update, "epoch": update / 10, "loss": 1 / update, "terms": {}}
            for step, update in records or []
        ]
        post = {"run": "6f1c0e0a", "epoch": 1, "attempt": 1, "sequence": sequence, "events": wire, "records": rows}
        return post | fields

    return build


@pytest.fixture
def record(build_post: Callable[..., dict[str, Any]]) -> Callable[..., bool]:
    """`record(history, sequence, ...)`: one post of job emoji straight into a history."""

    def take(history: History, *args: Any, uid: str = "uid-1", name: str = "emoji", **fields: Any) -> bool:
        post = ProgressPost.model_validate(build_post(*args, **fields))
        return history.record(JobKey(uid, "vision", name), post)

    return take


@pytest.fixture
def serve(tmp_path: Path, clock: Clock) -> Iterator[Callable[..., Served]]:
    """`serve(cluster, **settings)`: the server on a free port until the test ends."""
    with ExitStack() as stack:

        def start(cluster: FakeCluster, **settings: Any) -> Served:
            settings.setdefault("database_url", f"sqlite:///{tmp_path / 'history.sqlite'}")
            app = create_app(Settings(**settings), cluster, clock)
            listener = socket.create_server(("127.0.0.1", 0))
            ready = threading.Event()

            class Server(uvicorn.Server):
                async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                    await super().startup(sockets)
                    ready.set()

            server = Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2))
            thread = threading.Thread(target=server.run, args=([listener],))
            thread.start()

            def stop() -> None:
                server.should_exit = True
                thread.join(20)
                assert not thread.is_alive()
                listener.close()

            stack.callback(stop)
            assert ready.wait(20)
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            client = stack.enter_context(httpx.Client(base_url=url, timeout=20, trust_env=False))
            return Served(client, url)

        yield start


@pytest.fixture(scope="session")
def postgres_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A PostgreSQL of our own behind a socket; skipped where none is installed."""
    if shutil.which("initdb") is None or shutil.which("pg_ctl") is None or shutil.which("runuser") is None:
        pytest.skip("PostgreSQL (initdb, pg_ctl, runuser) is not installed")
    folder = tmp_path_factory.mktemp("postgres")
    folder.chmod(0o777)
    for parent in list(folder.parents)[:3]:
        if parent.name.startswith("pytest-"):
            parent.chmod(0o755)
    data = folder / "data"

    def as_postgres(*command: str) -> None:
        subprocess.run(["runuser", "-u", "postgres", "--", *command], check=True, capture_output=True, cwd=folder)

    as_postgres("initdb", "-D", str(data), "-A", "trust", "-U", "limbeck", "--no-sync")
    options = f"-c listen_addresses='' -c unix_socket_directories='{folder}' -c fsync=off"
    as_postgres("pg_ctl", "-D", str(data), "-o", options, "-l", str(folder / "log"), "-w", "start")
    try:
        yield f"postgresql+psycopg://limbeck@/postgres?host={folder}"
    finally:
        as_postgres("pg_ctl", "-D", str(data), "-m", "immediate", "-w", "stop")
