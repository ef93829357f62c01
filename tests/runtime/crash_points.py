"""Kill a process before and after every operation that changes a store, one kill a run; local writes also halfway.

    python tests/runtime/crash_points.py SCENARIO PLACE

PLACE is a folder or an s3:// prefix. Run n works in PLACE/n and dies at its n-th kill point by os._exit(137), so
nothing is cleaned up or flushed; the last run is the one that finds no point left to die at. Printed as JSON, a list of
{"place", "at": which operation, "done": what the run had reported as done before it died}.

One process forks all runs: it has no threads, and starting Python once is a hundred times cheaper.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from limbeck_runtime.commitlog import CommitLog, Fence
from limbeck_runtime.storage import LocalFiles, Storage
from limbeck_runtime.store import FeatureCodec, TeacherStore

DIED = 137
CHANGING = ("create", "create_from_file", "delete")
Report = Callable[[str], None]


class KillPoints:
    """Counts kill points and ends the process at number `at`, which it names on the pipe `log` just before."""

    def __init__(self, at: int, log: int) -> None:
        self._at = at
        self._log = log
        self._passed = 0

    def pass_by(self, point: str) -> None:
        if self._passed == self._at:
            self.tell(point)
            os._exit(DIED)
        self._passed += 1

    def tell(self, line: str) -> None:
        os.write(self._log, f"{line}\n".encode())


class DyingFiles:
    """LocalFiles with kill points.

    Syncing is a point to die at, but is not done: a killed process loses nothing that it handed to the kernel, and the
    hundreds of runs would wait for the disk. That all is synced in time is test_local_files.py's business.
    """

    def __init__(self, points: KillPoints) -> None:
        self._inner = LocalFiles()
        self._points = points

    def __getattr__(self, name: str) -> Callable[..., Any]:
        operation = getattr(self._inner, name)

        def observed(*arguments: Any) -> Any:
            self._points.pass_by(f"before {name}")
            if name == "write":
                descriptor, data = arguments
                half = len(data) // 2
                self._inner.write(descriptor, data[:half])
                self._points.pass_by("halfway through write")
                self._inner.write(descriptor, data[half:])
                result = None
            else:
                result = None if "fsync" in name else operation(*arguments)
            self._points.pass_by(f"after {name}")
            return result

        return observed


class DyingBackend:
    """A cloud backend with kill points around what changes it."""

    def __init__(self, inner: Any, points: KillPoints) -> None:
        self._inner = inner
        self._points = points

    def __getattr__(self, name: str) -> Callable[..., Any]:
        operation = getattr(self._inner, name)

        def observed(*arguments: Any) -> Any:
            if name in CHANGING:
                self._points.pass_by(f"before {name}")
            result = operation(*arguments)
            if name in CHANGING:
                self._points.pass_by(f"after {name}")
            return result

        return observed


def open_dying(place: str, points: KillPoints) -> Storage:
    if not place.startswith("s3://"):
        return Storage.open(place, files=DyingFiles(points))  # type: ignore[arg-type]
    storage = Storage.open(place)
    return Storage(storage._root, storage._prefix, DyingBackend(storage._backend, points), ())  # type: ignore[arg-type]


def create_objects(storage: Storage, report: Report) -> None:
    storage.create("deep/er/first", b"first" * 1000)
    report("deep/er/first")
    with tempfile.NamedTemporaryFile() as source:
        source.write(b"second" * 1000)
        source.flush()
        storage.create_from_file("deep/second", Path(source.name))
    report("deep/second")


def commit_twice(storage: Storage, report: Report) -> None:
    log = CommitLog(storage.child("log"), Fence.claim(storage, {"test": "crash"}))
    for step in (1, 2):
        log.commit({"step": step}, {"weights": b"weights-%d" % step * 500, "optimizer": b"moments-%d" % step * 500})
        report(str(step))
        log.prune(keep=1)
        log.janitor()


def write_shards(storage: Storage, report: Report) -> None:
    with tempfile.TemporaryDirectory() as cache:
        store = TeacherStore(storage, Path(cache), {"embedding": FeatureCodec("float32")})
        for shard in (1, 2):
            embedding = np.arange(40, dtype=np.float32).reshape(5, 8) + shard
            store.write(f"{shard:064d}", [f"key-{row}" for row in range(5)], {"embedding": embedding}, {})
            report(str(shard))


SCENARIOS = {"create": create_objects, "commit": commit_twice, "shards": write_shards}


def _live_and_die(scenario: str, at: int, place: str, log: int) -> None:
    points = KillPoints(at, log)
    try:
        SCENARIOS[scenario](open_dying(place, points), lambda done: points.tell(f"done:{done}"))
    except BaseException as error:
        points.tell(f"error: {error!r}")
        os._exit(1)
    os._exit(0)


def run(scenario: str, base: str) -> list[dict[str, Any]]:
    results = []
    for at in range(10_000):
        place = f"{base}/{at}"
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            _live_and_die(scenario, at, place, writer)
        os.close(writer)
        with os.fdopen(reader) as lines:
            told = lines.read().splitlines()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status not in (0, DIED):
            raise SystemExit(f"run {at} failed: {told}")
        point = "the end" if status == 0 else told.pop()
        done = [line.removeprefix("done:") for line in told]
        results.append({"place": place, "at": point, "done": done})
        if status == 0:
            return results
    raise SystemExit("the scenario does not end")


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1], sys.argv[2])))
