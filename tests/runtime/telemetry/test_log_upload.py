from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from limbeck_runtime.commitlog import CommitLog, Fence
from limbeck_runtime.storage import LocalFiles, Storage
from limbeck_runtime.telemetry.line_file import LineFile
from limbeck_runtime.telemetry.log_upload import LogUpload, uploaded_lines

EVENTS, PROGRESS = "events.jsonl", "progress.jsonl"


@pytest.fixture
def files(tmp_path: Path) -> Iterator[dict[str, LineFile]]:
    made = {name: LineFile(tmp_path / "scratch" / name) for name in (EVENTS, PROGRESS)}
    yield made
    for lines in made.values():
        lines.close()


def driver_of(storage: Storage, files: dict[str, LineFile]) -> LogUpload:
    """As the next driver would begin."""
    return LogUpload(CommitLog(storage.child("logs"), Fence.claim(storage, {})), files)


def found(storage: Storage, name: str) -> bytes:
    return uploaded_lines(CommitLog(storage.child("logs")), name)


def refuse(message: str) -> None:
    raise AssertionError(message)


class FullForAWhile(LocalFiles):
    """A disk whose room comes and goes."""

    is_full = False

    def open_new(self, path: Path) -> int:
        if self.is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().open_new(path)


def test_segments_put_together_are_the_log(storage: Storage, files: dict[str, LineFile]) -> None:
    upload = driver_of(storage, files)
    for number in range(3):
        files[EVENTS].append(b"event %d\n" % number)
        if number != 1:
            files[PROGRESS].append(b"update %d\n" % number)
        upload.upload(refuse)
    assert found(storage, EVENTS) == b"event 0\nevent 1\nevent 2\n"
    assert found(storage, PROGRESS) == b"update 0\nupdate 2\n"


def test_where_nothing_is_new_nothing_is_written(storage: Storage, files: dict[str, LineFile]) -> None:
    files[EVENTS].append(b"fetched from before\n")
    upload = driver_of(storage, files)
    upload.upload(refuse)
    assert not storage.list("logs")
    files[EVENTS].append(b"new\n")
    upload.upload(refuse)
    before = storage.list("logs")
    upload.upload(refuse)
    assert storage.list("logs") == before
    assert found(storage, EVENTS) == b"new\n"


def test_the_next_driver_goes_on_where_the_one_before_ended(storage: Storage, files: dict[str, LineFile]) -> None:
    for number in range(2):
        upload = driver_of(storage, files)
        files[EVENTS].append(b"driver %d\n" % number)
        upload.upload(refuse)
    assert found(storage, EVENTS) == b"driver 0\ndriver 1\n"


def test_a_driver_that_was_taken_over_adds_nothing_says_so_once_and_goes_on(
    storage: Storage, files: dict[str, LineFile]
) -> None:
    older = driver_of(storage, files)
    files[EVENTS].append(b"older\n")
    older.upload(refuse)
    newer = driver_of(storage, files)
    files[EVENTS].append(b"newer\n")
    newer.upload(refuse)
    files[EVENTS].append(b"older again\n")
    told: list[str] = []
    older.upload(told.append)
    older.upload(told.append)
    assert len(told) == 1
    assert "another driver has taken over" in told[0]
    assert found(storage, EVENTS) == b"older\nnewer\n"


def test_lines_that_could_not_go_up_go_with_the_next_segment(tmp_path: Path, files: dict[str, LineFile]) -> None:
    disk = FullForAWhile()
    storage = Storage.open(str(tmp_path / "out"), files=disk)
    upload = driver_of(storage, files)
    files[EVENTS].append(b"first\n")
    disk.is_full = True
    told: list[str] = []
    upload.upload(told.append)
    upload.upload(told.append)
    assert len(told) == 1
    assert str(tmp_path / "out" / "logs") in told[0]
    disk.is_full = False
    files[EVENTS].append(b"second\n")
    upload.upload(refuse)
    assert found(storage, EVENTS) == b"first\nsecond\n"


def test_a_segment_that_was_damaged_is_left_out(storage: Storage, files: dict[str, LineFile]) -> None:
    upload = driver_of(storage, files)
    for number in range(3):
        files[EVENTS].append(b"event %d\n" % number)
        upload.upload(refuse)
    middle = CommitLog(storage.child("logs")).all()[1].files[EVENTS].path
    storage.delete(f"logs/{middle}")
    storage.create(f"logs/{middle}", b"event 9\n")
    assert found(storage, EVENTS) == b"event 0\nevent 2\n"


@pytest.mark.s3
def test_a_server_that_is_gone_costs_the_run_nothing(own_s3_server: object, files: dict[str, LineFile]) -> None:
    storage = own_s3_server.open()  # type: ignore[attr-defined]
    upload = driver_of(storage, files)
    files[EVENTS].append(b"first\n")
    own_s3_server.stop()  # type: ignore[attr-defined]
    told: list[str] = []
    upload.upload(told.append)
    upload.upload(told.append)
    assert len(told) == 1
    own_s3_server.start()  # type: ignore[attr-defined]
    upload.upload(refuse)
    assert found(storage, EVENTS) == b"first\n"
