"""A real S3 server, and one storage of each kind, for every test of the runtime."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from limbeck_runtime.storage import LocalFiles, RetryPolicy, Storage

BUCKET = "limbeck-test"
# Storage that answers at all answers a test at once; a stopped server should not cost a test a minute.
PATIENCE = RetryPolicy(max_retries=2, timeout_seconds=5)


class S3Server:
    """versitygw over a folder, on a port of its own."""

    def __init__(self, binary: Path, folder: Path) -> None:
        (folder / BUCKET).mkdir(parents=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port: int = probe.getsockname()[1]
        self._command = [str(binary), "--port", f"127.0.0.1:{self._port}", "--quiet", "posix", str(folder)]
        self._process: subprocess.Popen[bytes] | None = None
        self.options = {
            "endpoint": f"http://127.0.0.1:{self._port}",
            "region": "us-east-1",
            "access_key_id": "limbeck",
            "secret_access_key": "limbeck-secret",
        }

    def uri(self) -> str:
        """A prefix that nobody has used."""
        return f"s3://{BUCKET}/{uuid.uuid4().hex}"

    def open(self, uri: str | None = None) -> Storage:
        return Storage.open(uri or self.uri(), options=self.options, retry=PATIENCE)

    def start(self) -> None:
        environment = os.environ | {"ROOT_ACCESS_KEY": "limbeck", "ROOT_SECRET_KEY": "limbeck-secret"}
        process = subprocess.Popen(self._command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._process = process
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", self._port), timeout=1).close()
                return
            except ConnectionRefusedError:
                assert process.poll() is None, f"versitygw ended with {process.returncode}"
                assert time.monotonic() < deadline, "versitygw does not listen"
                try:
                    process.wait(0.02)  # a pause that ends early if the server does
                except subprocess.TimeoutExpired:
                    continue

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@pytest.fixture(scope="session")
def versitygw_binary() -> Path:
    import gotools

    try:
        return gotools.VERSITYGW.build()
    except gotools.CannotBuildError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def s3_server(versitygw_binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """Shared by the whole session; not to be stopped. Each test takes a prefix of its own."""
    server = S3Server(versitygw_binary, tmp_path_factory.mktemp("s3"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def own_s3_server(versitygw_binary: Path, tmp_path: Path) -> Iterator[S3Server]:
    """For a test that stops it."""
    server = S3Server(versitygw_binary, tmp_path / "s3")
    server.start()
    yield server
    server.stop()


@pytest.fixture(params=["local", "memory", pytest.param("s3", marks=pytest.mark.s3)])
def open_storage(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Storage]:
    """Opens one empty place anew with each call; local, in memory and on S3."""
    if request.param == "s3":
        server: S3Server = request.getfixturevalue("s3_server")
        uri = server.uri()
        return lambda: server.open(uri)
    uri = str(tmp_path / "storage") if request.param == "local" else f"memory://{uuid.uuid4().hex}/in/it"
    return lambda: Storage.open(uri, files=LocalFiles(durable=False))


@pytest.fixture
def storage(open_storage: Callable[[], Storage]) -> Storage:
    """One empty storage of each kind."""
    return open_storage()


_LOCAL_OPERATIONS = ("open_new", "lock", "write", "fsync", "link", "unlink", "close", "fsync_dir", "make_dir")


class Crash(NamedTuple):
    """One run that was killed: where it worked, at which operation it died, what it had reported as done."""

    storage: Storage
    at: str
    done: list[str]

    def left_behind(self) -> set[str]:
        """Every file there is, finished or not."""
        root = self.storage.local_path("x")
        if root is None:
            return {info.path for info in self.storage.list()}
        return {
            Path(parent, name).relative_to(root.parent).as_posix()
            for parent, _, names in os.walk(root.parent)
            for name in names
        }


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def crash_everywhere(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], list[Crash]]:
    """Runs a scenario of crash_points.py once for each point at which it can die."""

    def run(scenario: str) -> list[Crash]:
        environment = dict(os.environ)
        if request.param == "s3":
            server: S3Server = request.getfixturevalue("s3_server")
            base, operations = server.uri(), ("create",)
            environment |= {f"AWS_{name.upper()}": value for name, value in server.options.items()}
            open_storage: Callable[[str], Storage] = server.open
        else:
            base, operations = str(tmp_path / scenario), _LOCAL_OPERATIONS
            open_storage = partial(Storage.open, files=LocalFiles(durable=False))
        command = [sys.executable, str(Path(__file__).with_name("crash_points.py")), scenario, base]
        finished = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert finished.returncode == 0, finished.stderr
        results = json.loads(finished.stdout)
        expected = {f"{when} {name}" for when in ("before", "after") for name in operations} | {"the end"}
        assert expected <= {result["at"] for result in results}
        return [Crash(open_storage(result["place"]), result["at"], result["done"]) for result in results]

    return run


@pytest.fixture
def unsynced_files() -> LocalFiles:
    """For tests that create hundreds of files and not about durability."""
    return LocalFiles(durable=False)
