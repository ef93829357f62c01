"""A distillation on a full disk, whichever write fills it: it ends at once, says where, and goes on with more room."""

from __future__ import annotations

import errno
import io
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck_runtime.pipeline import run
from limbeck_runtime.storage import LocalFiles, OutOfSpaceError, Storage
from limbeck_runtime.teacher.workers import ThreadWorkers

Job = dict[str, Any]
# Longer than any of these runs takes by far; a student that waited for its teacher for ever was the fault.
PATIENCE_SECONDS = 240.0


class FillingDisk(LocalFiles):
    """A disk with room for so many writes; the next one fills it in the middle, and it stays full."""

    def __init__(self, room: int) -> None:
        super().__init__(durable=False)
        self.room = room
        self._lock = threading.Lock()

    def write(self, descriptor: int, data: memoryview) -> None:
        with self._lock:
            self.room -= 1
            room = self.room
        if room == -1:
            os.write(descriptor, data[: len(data) // 2])
        if room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        super().write(descriptor, data)


@pytest.fixture
def job(classification: Callable[..., Job], classifier: Callable[..., Any], tmp_path: Path) -> Job:
    """The smallest that captures and trains: three shards, three steps, a checkpoint after each."""
    step = {"epochs": 1, "batchSize": 12, "checkpointIntervalSeconds": 0}
    return classification(
        tmp_path / "unused",
        teacher=classifier(channels=8),
        pipeline=[{"name": "distil", "distil": step}],
        export={"formats": ["Safetensors"]},
    )


@pytest.fixture
def go(open_run: Callable[..., Any], job: Job) -> Callable[[Path, LocalFiles], None]:
    """Runs the job with its output in a folder on such a disk, in bounded time; raises what ends it."""

    def one(output: Path, files: LocalFiles) -> None:
        ended: list[BaseException | None] = []

        def work() -> None:
            try:
                storage = Storage.open(str(output), files=files)
                with open_run(job, stream=io.StringIO(), teacher_workers=ThreadWorkers, output=storage) as context:
                    run(context)
                ended.append(None)
            except BaseException as error:
                ended.append(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join(PATIENCE_SECONDS)
        assert ended, f"the run did not end within {PATIENCE_SECONDS:g} s"
        if ended[0] is not None:
            raise ended[0]

    return one


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums come out bit for bit the same only then."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _weights(output: Path) -> bytes:
    return (output / "model" / "model.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_disk_that_is_full_at_any_write_ends_the_run_and_the_next_one_completes_it(
    go: Callable[[Path, LocalFiles], None], one_thread: None, tmp_path: Path
) -> None:
    whole = FillingDisk(10_000)
    go(tmp_path / "whole", whole)
    num_writes = 10_000 - whole.room
    assert num_writes > 30
    for room in range(num_writes):
        output = tmp_path / f"room-{room}"
        with pytest.raises(OutOfSpaceError, match=rf"cannot .* .*room-{room}/.*: the disk or quota is full; free "):
            go(output, FillingDisk(room))
        assert not list(output.rglob(".tmp-*")), room
        assert not list(output.rglob("teacher-at-work/*")), room
        assert not (output / "result.json").exists(), room
        go(output, LocalFiles(durable=False))
        assert _weights(output) == _weights(tmp_path / "whole"), room
        shutil.rmtree(output)


class FullForTheTeacher(LocalFiles):
    """A disk that has no room for what a teacher says, though smaller things fit."""

    def __init__(self) -> None:
        super().__init__(durable=False)
        self.num_refused = 0

    def link(self, source: Path, target: Path) -> None:
        if target.suffix == ".arrow":
            self.num_refused += 1
            raise OSError(errno.ENOSPC, "No space left on device")
        super().link(source, target)


def test_a_student_that_waits_hears_at_once_that_its_teacher_finds_no_room(
    go: Callable[[Path, LocalFiles], None], tmp_path: Path
) -> None:
    disk = FullForTheTeacher()
    with pytest.raises(OutOfSpaceError, match=r"cannot create .*\.arrow: the disk or quota is full"):
        go(tmp_path / "out", disk)
    assert disk.num_refused <= 3  # no shard is tried twice
    go(tmp_path / "out", LocalFiles(durable=False))
    assert _weights(tmp_path / "out")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 256 MiB in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True, timeout=20)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"no file system can be mounted here: {error}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True, timeout=20)


def _fill(disk: Path) -> Path:
    """A file that takes all the room there is."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (2**20, 4096, 1):
            with suppress(OSError):  # there is no room for so many bytes any more
                while True:
                    file.write(bytes(size))
    return ballast


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("moment", ["run_started", "capture_progress", "checkpoint", "step_finished"])
def test_a_driver_on_a_disk_that_fills_up_ends_and_goes_on_when_there_is_room(
    moment: str, job: Job, start_driver: Callable[..., Any], small_disk: Path
) -> None:
    job["spec"]["output"]["uri"] = str(small_disk / "out")
    job["spec"]["pipeline"][0]["distil"]["epochs"] = 30
    (small_disk / "scratch").mkdir()
    environment = {"TMPDIR": str(small_disk / "scratch"), "RAY_TMPDIR": "/tmp"}
    driver = start_driver(job, environment=environment)
    ballast = None
    for event in driver.events():
        if event["event"] == moment and ballast is None:
            ballast = _fill(small_disk)
    assert ballast is not None
    ended = driver.wait()
    assert (ended.code, ended.outcome["reason"]) == (1, "StorageError"), ended.errors
    assert f"{small_disk}/" in ended.outcome["message"]
    assert "the disk or quota is full; free space there" in ended.outcome["message"]
    assert not list((small_disk / "out").rglob(".tmp-*"))
    ballast.unlink()
    again = start_driver(job, environment=environment).wait()
    assert again.code == 0, again.errors
    assert _weights(small_disk / "out")
