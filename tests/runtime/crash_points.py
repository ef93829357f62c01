"""Kill a process before, in the middle of, and after every primitive file operation of a scenario, one kill a run.

    python tests/runtime/crash_points.py SCENARIO FOLDER

Run n works in FOLDER/n and dies at its n-th kill point by os._exit(137), so nothing is cleaned up or flushed; the last
run is the one that finds no point left to die at. Printed as JSON, a list of
{"folder", "at": which operation, "done": what the run had reported as done before it died}.

One process forks all runs: it has no threads, and starting Python once is a hundred times cheaper.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from limbeck_runtime.commitlog import CommitLog, Fence
from limbeck_runtime.storage import LocalFiles, Storage
from limbeck_runtime.store import EmbeddingCodec, TeacherStore

DIED = 137
Report = Callable[[str], None]


class DyingFiles:
    """LocalFiles that stop the process at kill point `at`; the point is written to `log` just before.

    Syncing is a point to die at, but is not done: a killed process loses nothing that it handed to the kernel, and the
    hundreds of runs would wait for the disk. That all is synced in time is test_local_files.py's business.
    """

    def __init__(self, at: int, log: int) -> None:
        self._inner = LocalFiles()
        self._at = at
        self._log = log
        self._passed = 0

    def __getattr__(self, name: str) -> Callable[..., Any]:
        operation = getattr(self._inner, name)

        def observed(*arguments: Any) -> Any:
            self._pass(f"before {name}")
            if name == "write":
                descriptor, data = arguments
                half = len(data) // 2
                self._inner.write(descriptor, data[:half])
                self._pass("halfway through write")
                self._inner.write(descriptor, data[half:])
                result = None
            else:
                result = None if "fsync" in name else operation(*arguments)
            self._pass(f"after {name}")
            return result

        return observed

    def _pass(self, point: str) -> None:
        if self._passed == self._at:
            _tell(self._log, point)
            os._exit(DIED)
        self._passed += 1


def create_objects(files: Any, folder: Path, report: Report) -> None:
    storage = Storage.open(str(folder), files=files)
    storage.create("deep/er/first", b"first" * 1000)
    report("deep/er/first")
    source = folder.parent / f"source-{folder.name}"
    source.write_bytes(b"second" * 1000)
    storage.create_from_file("deep/second", source)
    report("deep/second")


def commit_twice(files: Any, folder: Path, report: Report) -> None:
    storage = Storage.open(str(folder), files=files)
    fence = Fence.claim(storage, {"test": "crash"})
    log = CommitLog(storage.child("log"), fence)
    for step in (1, 2):
        log.commit({"step": step}, {"weights": b"weights-%d" % step * 500, "optimizer": b"moments-%d" % step * 500})
        report(str(step))
        log.prune(keep=1)
        log.janitor()


def shard_outputs(shard: int) -> np.ndarray:
    return np.arange(40, dtype=np.float32).reshape(5, 8) + shard


def write_shards(files: Any, folder: Path, report: Report) -> None:
    store = TeacherStore(Storage.open(str(folder), files=files), folder / "cache", {"embedding": EmbeddingCodec()})
    for shard in (1, 2):
        store.write(f"{shard:064d}", [f"key-{row}" for row in range(5)], {"embedding": shard_outputs(shard)}, {})
        report(str(shard))


SCENARIOS = {"create": create_objects, "commit": commit_twice, "shards": write_shards}


def _live_and_die(scenario: str, at: int, folder: Path, writer: int) -> None:
    try:
        SCENARIOS[scenario](DyingFiles(at, writer), folder, lambda done: _tell(writer, f"done:{done}"))
    except BaseException as error:
        _tell(writer, f"error: {error!r}")
        os._exit(1)
    os._exit(0)


def _tell(writer: int, line: str) -> None:
    os.write(writer, f"{line}\n".encode())


def _live_and_die(scenario: str, at: int, folder: Path, writer: int) -> None:
    try:
        SCENARIOS[scenario](DyingFiles(at, writer), folder, lambda done: _tell(writer, f"done:{done}"))
    except BaseException as error:
        _tell(writer, f"error: {error!r}")
        os._exit(1)
    os._exit(0)


def _tell(writer: int, line: str) -> None:
    os.write(writer, f"{line}\n".encode())


def run(scenario: str, base: Path) -> list[dict[str, Any]]:
    results = []
    for at in range(10_000):
        folder = base / str(at)
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            _live_and_die(scenario, at, folder, writer)
        os.close(writer)
        with os.fdopen(reader) as lines:
            told = lines.read().splitlines()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status not in (0, DIED):
            raise SystemExit(f"run {at} failed: {told}")
        point = "the end" if status == 0 else told.pop()
        done = [line.removeprefix("done:") for line in told]
        results.append({"folder": str(folder), "at": point, "done": done})
        if status == 0:
            return results
    raise SystemExit("the scenario does not end")


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1], Path(sys.argv[2]))))
