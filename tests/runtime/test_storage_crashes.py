"""Death at every operation: nothing half-written is visible, nothing reported done is lost, no debris stays."""

from __future__ import annotations

import pytest

from limbeck_runtime.commitlog import CommitLog, Fence
from limbeck_runtime.storage import AlreadyExistsError


def test_an_object_is_whole_or_absent_wherever_its_writer_dies(crash_everywhere) -> None:
    contents = {"deep/er/first": b"first" * 1000, "deep/second": b"second" * 1000}

    for crash in crash_everywhere("create"):
        storage = crash.storage
        visible = {info.path for info in storage.list()}
        assert visible >= set(crash.done), crash
        for path in visible:
            assert storage.get(path) == contents[path], crash
        storage.remove_temporary()
        assert crash.left_behind() == visible, crash
        for path, content in contents.items():
            if path in visible:
                with pytest.raises(AlreadyExistsError):
                    storage.create(path, content)
            else:
                storage.create(path, content)


def test_a_commit_is_whole_or_absent_wherever_its_driver_dies(crash_everywhere) -> None:
    for crash in crash_everywhere("commit"):
        log = CommitLog(crash.storage.child("log"), Fence.claim(crash.storage, {}))

        latest = log.latest()

        assert log.skipped == (), crash
        steps = [commit.record["step"] for commit in log.all()]
        assert steps == sorted(set(steps)), crash
        assert (latest is None) == (steps == [])
        assert (steps or [0])[-1] >= max(map(int, crash.done), default=0), crash
        for commit in log.all():
            step = commit.record["step"]
            assert commit.read("weights") == b"weights-%d" % step * 500
            assert commit.read("optimizer") == b"moments-%d" % step * 500

        log.janitor()
        crash.storage.remove_temporary()
        left = crash.left_behind()
        assert not [path for path in left if ".tmp-" in path], crash
        named = {f"log/{file.path}" for commit in log.all() for file in commit.files.values()}
        assert {path for path in left if not path.startswith(("log/commits/", "fence/"))} == named, crash
        log.commit({"step": 99}, {"weights": b"new"})
        again = log.latest()
        assert again is not None
        assert again.record == {"step": 99}
