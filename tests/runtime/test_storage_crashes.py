"""Death at every file operation: nothing half-written is visible, nothing reported done is lost, no debris stays."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from limbeck_runtime.commitlog import CommitLog, Fence
from limbeck_runtime.storage import AlreadyExistsError, Storage


def _files(folder: Path) -> set[str]:
    return {str(Path(parent, name).relative_to(folder)) for parent, _, names in os.walk(folder) for name in names}


def test_an_object_is_whole_or_absent_wherever_its_writer_dies(crash_everywhere) -> None:
    contents = {"deep/er/first": b"first" * 1000, "deep/second": b"second" * 1000}

    for result in crash_everywhere("create"):
        folder = Path(result["folder"])
        storage = Storage.open(str(folder))
        visible = {info.path for info in storage.list()}
        assert visible >= set(result["done"]), result
        for path in visible:
            assert storage.get(path) == contents[path], result
        storage.remove_temporary()
        assert _files(folder) == visible, result
        for path, content in contents.items():
            if path in visible:
                with pytest.raises(AlreadyExistsError):
                    storage.create(path, content)
            else:
                storage.create(path, content)


def test_a_commit_is_whole_or_absent_wherever_its_driver_dies(crash_everywhere, unsynced_files) -> None:
    for result in crash_everywhere("commit"):
        folder = Path(result["folder"])
        storage = Storage.open(str(folder), files=unsynced_files)
        log = CommitLog(storage.child("log"), Fence.claim(storage, {}))

        latest = log.latest()

        assert log.skipped == (), result
        steps = [commit.record["step"] for commit in log.all()]
        assert steps == sorted(set(steps)), result
        assert (latest is None) == (steps == [])
        assert (steps or [0])[-1] >= max(map(int, result["done"]), default=0), result
        for commit in log.all():
            step = commit.record["step"]
            assert commit.read("weights") == b"weights-%d" % step * 500
            assert commit.read("optimizer") == b"moments-%d" % step * 500

        log.janitor()
        storage.remove_temporary()
        named = {f"log/{file.path}" for commit in log.all() for file in commit.files.values()}
        others = {path for path in _files(folder) if not path.startswith(("log/commits/", "fence/"))}
        assert others == named, result
        assert not [path for path in _files(folder) if ".tmp-" in path], result
        log.commit({"step": 99}, {"weights": b"new"})
        again = log.latest()
        assert again is not None
        assert again.record == {"step": 99}
