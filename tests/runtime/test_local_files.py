"""What a local file's creation leaves behind: in time on the disk, and nothing when it fails."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from limbeck_runtime.local_files import LocalFiles, remove_abandoned
from limbeck_runtime.storage import AlreadyExistsError, OutOfSpaceError, Storage, StorageError


class ObservedFiles:
    """LocalFiles whose every call goes through `around(name, arguments, call)`."""

    def __init__(self, around: Callable[[str, tuple[Any, ...], Callable[[], Any]], Any]) -> None:
        self._inner = LocalFiles()
        self._around = around

    def __getattr__(self, name: str) -> Callable[..., Any]:
        operation = getattr(self._inner, name)
        return lambda *arguments: self._around(name, arguments, lambda: operation(*arguments))


def _failing(at: str, code: int) -> Any:
    """Files of which one operation fails; a failing write has written the half."""

    def around(name: str, arguments: tuple[Any, ...], call: Callable[[], Any]) -> Any:
        if name != at:
            return call()
        if name == "write":
            os.write(arguments[0], arguments[1][: len(arguments[1]) // 2])
        raise OSError(code, os.strerror(code))

    return ObservedFiles(around)


def _everything_below(folder: Path) -> list[str]:
    return [name for _, _, names in os.walk(folder) for name in names]


def test_bytes_and_names_are_synced_before_they_are_relied_on(tmp_path: Path) -> None:
    trace: list[tuple[str, Any]] = []

    def around(name: str, arguments: tuple[Any, ...], call: Callable[[], Any]) -> Any:
        trace.append((name, arguments[0] if name != "link" else arguments[1]))
        return call()

    root = tmp_path / "root"
    Storage.open(str(root), files=ObservedFiles(around)).create("a/b", b"content")

    names = [name for name, _ in trace]
    descriptor = next(argument for name, argument in trace if name == "write")
    link = names.index("link")
    assert names.index("write") < trace.index(("fsync", descriptor)) < link
    assert ("fsync_dir", root / "a") in trace[link:], "the new name would be lost with the power"
    for made, parent in ((root, tmp_path), (root / "a", root)):
        assert trace.index(("make_dir", made)) < trace.index(("fsync_dir", parent)) < link


def test_a_folder_made_by_another_process_is_synced_too(tmp_path: Path) -> None:
    (tmp_path / "root" / "a").mkdir(parents=True)
    synced = []

    def around(name: str, arguments: tuple[Any, ...], call: Callable[[], Any]) -> Any:
        if name == "fsync_dir":
            synced.append(arguments[0])
        return call()

    storage = Storage.open(str(tmp_path / "root"), files=ObservedFiles(around))
    storage.create("a/first", b"1")
    assert tmp_path / "root" in synced
    synced.clear()
    storage.create("a/second", b"2")
    assert synced == [tmp_path / "root" / "a"], "asked of the disk once per folder"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("at", ["open_new", "write", "fsync", "link", "make_dir"])
def test_a_full_disk_is_said_with_file_and_remedy_and_leaves_nothing(tmp_path: Path, at: str, code: int) -> None:
    storage = Storage.open(str(tmp_path / "root"), files=_failing(at, code))

    with pytest.raises(OutOfSpaceError) as caught:
        storage.create("folder/object", b"content")

    assert f"{tmp_path}/root/folder/object" in str(caught.value)
    assert "free space" in str(caught.value)
    assert "run the same command again" in str(caught.value)
    assert _everything_below(tmp_path) == []


@pytest.mark.parametrize("at", ["write", "fsync", "link"])
def test_a_broken_disk_is_said_with_file_and_cause_and_leaves_nothing(tmp_path: Path, at: str) -> None:
    storage = Storage.open(str(tmp_path / "root"), files=_failing(at, errno.EIO))

    with pytest.raises(StorageError, match=r"root/object: Input/output error"):
        storage.create("object", b"content")

    assert _everything_below(tmp_path) == []


def test_a_file_system_without_hard_links_is_explained(tmp_path: Path) -> None:
    storage = Storage.open(str(tmp_path), files=_failing("link", errno.EPERM))

    with pytest.raises(StorageError, match="hard links"):
        storage.create("object", b"content")


def test_a_parent_that_is_a_file_is_an_error_and_not_an_absence(tmp_path: Path) -> None:
    storage = Storage.open(str(tmp_path))
    storage.create("object", b"1")

    with pytest.raises(StorageError, match="cannot create") as caught:
        storage.create("object/below", b"2")
    assert not isinstance(caught.value, AlreadyExistsError)


def test_unfinished_files_are_not_listed(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / ".tmp-1").write_bytes(b"half")

    assert Storage.open(str(tmp_path)).list() == []


def test_only_the_files_of_dead_writers_are_removed(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    dead, live, whole = tmp_path / "a" / ".tmp-dead", tmp_path / ".tmp-live", tmp_path / "whole"
    for path in (dead, live, whole):
        path.write_bytes(b"half")
    with live.open("wb") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)

        assert Storage.open(str(tmp_path)).remove_temporary() == 1
        assert (dead.exists(), live.exists(), whole.exists()) == (False, True, True)

    assert remove_abandoned(LocalFiles(), tmp_path) == 1
    assert not live.exists()


def test_a_child_removes_only_what_lies_below_it(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / ".tmp-1").write_bytes(b"half")

    assert Storage.open(str(tmp_path)).child("a").remove_temporary() == 1
    assert (tmp_path / "b" / ".tmp-1").exists()


def test_a_janitor_that_comes_right_after_the_opening_costs_the_writer_nothing(tmp_path: Path) -> None:
    swept = []

    def around(name: str, arguments: tuple[Any, ...], call: Callable[[], Any]) -> Any:
        if name == "lock" and not swept:
            swept.append(remove_abandoned(LocalFiles(), tmp_path))
        return call()

    storage = Storage.open(str(tmp_path), files=ObservedFiles(around))
    storage.create("object", b"content")

    assert swept == [1]
    assert storage.get("object") == b"content"
    assert _everything_below(tmp_path) == ["object"]
