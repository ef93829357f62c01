"""Commits are whole, found again, fenced, pruned and swept; on a local folder, in memory and on a real S3 server."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from limbeck_runtime.commitlog import CommitLog, CorruptCommitError, Fence, FencedError
from limbeck_runtime.fence import create_owned
from limbeck_runtime.storage import AlreadyExistsError, LocalFiles, Storage, StorageError

DAY = 24 * 3600.0


@pytest.fixture
def log(storage: Storage) -> CommitLog:
    return CommitLog(storage.child("log"), Fence.claim(storage, {"who": "the test"}))


def _replace(storage: Storage, path: str, content: bytes) -> None:
    storage.delete(path)
    storage.create(path, content)


def test_a_commit_is_found_again_with_record_and_files(
    log: CommitLog, open_storage: Callable[[], Storage], tmp_path: Path
) -> None:
    source = tmp_path / "weights.bin"
    source.write_bytes(b"\x00\x01" * 1000)

    log.commit({"step": 7, "nested": {"a": [1, None]}}, {"weights": source, "text": b"abc", "view": memoryview(b"de")})

    found = CommitLog(open_storage().child("log")).latest()
    assert found is not None
    assert found.record == {"step": 7, "nested": {"a": [1, None]}}
    assert found.read("weights") == b"\x00\x01" * 1000
    assert (found.read("text"), found.read("view")) == (b"abc", b"de")
    assert found.files["text"].size == 3


def test_the_newest_commit_is_the_latest_and_all_are_in_order(log: CommitLog) -> None:
    assert log.latest() is None
    for step in range(12):
        log.commit({"step": step}, {})

    latest = log.latest()
    assert latest is not None
    assert latest.record == {"step": 11}
    assert [commit.record["step"] for commit in log.all()] == list(range(12))


def test_a_log_without_fence_commits_too(storage: Storage) -> None:
    log = CommitLog(storage)
    log.commit({"step": 1}, {"file": b"x"})

    latest = log.latest()
    assert latest is not None
    assert latest.sequence == 1


def _missing(storage: Storage, path: str) -> None:
    storage.delete(path)


def _cut(storage: Storage, path: str) -> None:
    _replace(storage, path, storage.get(path)[:-1])


def _flipped(storage: Storage, path: str) -> None:
    content = bytearray(storage.get(path))
    content[len(content) // 2] ^= 4
    _replace(storage, path, bytes(content))


@pytest.mark.parametrize("damage", [_missing, _cut, _flipped])
def test_a_commit_with_a_damaged_file_is_passed_over_and_named(
    log: CommitLog, storage: Storage, damage: Callable[[Storage, str], None]
) -> None:
    good = log.commit({"step": 1}, {"weights": b"good weights"})
    bad = log.commit({"step": 2}, {"other": b"other", "weights": b"damaged weights"})
    damage(storage.child("log"), bad.files["weights"].path)

    assert log.latest() == good
    assert [(skipped.sequence, bad.files["weights"].path in skipped.reason) for skipped in log.skipped] == [
        (bad.sequence, True)
    ]
    with pytest.raises(CorruptCommitError, match="weights"):
        bad.read("weights")
    assert bad.read("other") == b"other"

    log.commit({"step": 3}, {"weights": b"new"})
    assert log.latest() is not None
    assert log.skipped == ()


def _plausible(storage: Storage, path: str) -> None:
    content = storage.get(path)
    assert content.count(b'"step": 2') == 1
    _replace(storage, path, content.replace(b'"step": 2', b'"step": 3'))


@pytest.mark.parametrize("damage", [_cut, _flipped, _plausible])
def test_a_damaged_entry_is_passed_over_and_its_number_not_used_again(
    log: CommitLog, storage: Storage, damage: Callable[[Storage, str], None]
) -> None:
    good = log.commit({"step": 1}, {"weights": b"good"})
    bad = log.commit({"step": 2}, {"weights": b"bad"})
    damage(storage.child("log"), f"commits/{bad.sequence:08d}.json")

    assert log.latest() == good
    assert [skipped.sequence for skipped in log.skipped] == [bad.sequence]
    assert log.commit({"step": 3}, {}).sequence == bad.sequence + 1


def test_a_cut_file_is_told_by_its_size_without_reading_it(log: CommitLog, storage: Storage) -> None:
    commit = log.commit({}, {"weights": b"0123456789"})
    _cut(storage.child("log"), commit.files["weights"].path)

    assert "has 9 bytes, committed were 10" in str(commit.problem())


def test_an_entry_of_a_newer_format_stops_everything(log: CommitLog, storage: Storage) -> None:
    commit = log.commit({"step": 1}, {"weights": b"precious"})
    path = f"log/commits/{commit.sequence:08d}.json"
    body = json.loads(storage.get(path))
    del body["sha256"]
    body["format"] = 99
    storage.delete(path)
    create_owned(storage, path, body)

    for act in (log.latest, log.janitor, log.all, lambda: log.commit({}, {})):
        with pytest.raises(StorageError, match="format 99"):
            act()
    assert storage.get(f"log/{commit.files['weights'].path}") == b"precious"


def test_a_record_is_what_json_makes_of_it(log: CommitLog) -> None:
    commit = log.commit({"tuple": (1, 2), "numbers": {10: "a", 9: "b"}}, {})

    assert commit.record == {"tuple": [1, 2], "numbers": {"10": "a", "9": "b"}}
    assert log.latest() == commit


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "x" * 200])
def test_a_file_name_that_is_no_name_is_refused(log: CommitLog, name: str) -> None:
    with pytest.raises(ValueError, match="name of a committed file"):
        log.commit({}, {name: b""})


def test_a_newer_driver_stops_the_older_at_once(storage: Storage) -> None:
    old = CommitLog(storage.child("log"), Fence.claim(storage, {"attempt": 1}))
    old.commit({"step": 1}, {"weights": b"1"})
    fence = Fence.claim(storage, {"attempt": 2})
    new = CommitLog(storage.child("log"), fence)

    assert fence.epoch == 2
    for act in (lambda: old.commit({"step": 2}, {}), lambda: old.prune(1), old.janitor, old.latest):
        with pytest.raises(FencedError, match="another driver"):
            act()

    latest = new.latest()
    assert latest is not None
    assert latest.record == {"step": 1}
    assert new.commit({"step": 3}, {}).epoch == 2
    assert [commit.record["step"] for commit in new.all()] == [1, 3]


def test_epochs_go_up_by_one_and_tell_their_owner(storage: Storage) -> None:
    fences = [Fence.claim(storage, {"attempt": attempt}) for attempt in range(1, 4)]

    assert [fence.epoch for fence in fences] == [1, 2, 3]
    assert json.loads(storage.get("fence/00000002.json"))["owner"] == {"attempt": 2}
    fences[2].check()
    with pytest.raises(FencedError):
        fences[1].check()


def test_pruning_keeps_the_newest_and_drops_the_files_of_the_others(log: CommitLog, storage: Storage) -> None:
    commits = [log.commit({"step": step}, {"weights": b"%d" % step}) for step in range(5)]

    log.prune(keep=2)

    assert log.all() == commits[-2:]
    assert [info.path for info in storage.child("log").list("data")] == sorted(
        commit.files["weights"].path for commit in commits[-2:]
    )
    assert log.commit({"step": 5}, {}).sequence == commits[-1].sequence + 1
    log.prune(keep=10)
    assert len(log.all()) == 3
    with pytest.raises(ValueError, match="at least 1"):
        log.prune(keep=0)


def test_the_janitor_sweeps_what_older_epochs_left_and_keeps_what_is_committed(storage: Storage) -> None:
    log = CommitLog(storage.child("log"), Fence.claim(storage, {}))
    kept = log.commit({}, {"weights": b"kept"})
    storage.create("log/data/00000001-0123-weights", b"left by a crash")

    assert log.janitor() == 0, "its own epoch may have a commit in progress"
    newer = CommitLog(storage.child("log"), Fence.claim(storage, {}))
    assert newer.janitor() == 1
    assert [info.path for info in storage.child("log").list("data")] == [kept.files["weights"].path]


def test_the_janitor_leaves_newer_epochs_alone(storage: Storage) -> None:
    log = CommitLog(storage.child("log"), Fence.claim(storage, {}), now=lambda: 4e9)
    storage.create("log/data/00000002-0123-weights", b"of the one who is taking over")

    assert log.janitor() == 0


def test_the_janitor_sweeps_old_debris_of_its_own_epoch_and_where_there_is_no_fence(storage: Storage) -> None:
    storage.create("log/data/00000000-0123-weights", b"debris")
    info = storage.head("log/data/00000000-0123-weights")
    assert info is not None

    assert CommitLog(storage.child("log"), now=lambda: info.modified + 60).janitor() == 0
    assert CommitLog(storage.child("log"), now=lambda: info.modified + DAY).janitor() == 1


class _Interposed:
    """A backend that calls `before(operation)` first."""

    def __init__(self, inner: object, before: Callable[[str], None]) -> None:
        self._inner = inner
        self._before = before

    def __getattr__(self, name: str) -> Callable[..., object]:
        operation = getattr(self._inner, name)

        def call(*arguments: object) -> object:
            self._before(name)
            return operation(*arguments)

        return call


class _Takeover:
    """Before operation `moment`, a newer driver claims the next epoch and reads the log."""

    def __init__(self, storage: Storage, moment: int) -> None:
        self._storage = storage
        self._moment = moment
        self.operations = 0
        self.seen: list[object] = []

    def __call__(self, operation: str) -> None:
        if self.operations == self._moment:
            latest = CommitLog(self._storage.child("log"), Fence.claim(self._storage, {"newer": True})).latest()
            self.seen.append(latest and latest.record)
        self.operations += 1


def _commit_while_taken_over(storage: Storage, moment: int) -> _Takeover:
    """Raises FencedError out of the older driver's commit."""
    log = CommitLog(storage.child("log"), Fence.claim(storage, {"older": True}))
    log.commit({"step": 1}, {"weights": b"1"})
    takeover = _Takeover(storage, moment)
    slow = Storage(storage._root, storage._prefix, _Interposed(storage._backend, takeover), ())
    log._storage, log._fence = slow.child("log"), Fence(slow, 1, {})
    try:
        log.commit({"step": 2}, {"weights": b"2"})
    finally:
        assert takeover.seen in ([], [{"step": 1}])
    return takeover


def test_no_moment_of_a_takeover_lets_the_older_driver_commit(tmp_path: Path, unsynced_files: LocalFiles) -> None:
    """The newer driver takes over before the n-th operation of the older one's commit, for every n."""
    moment = 0
    while True:
        storage = Storage.open(str(tmp_path / str(moment)), files=unsynced_files)
        try:
            takeover = _commit_while_taken_over(storage, moment)
        except FencedError:
            assert [commit.record for commit in CommitLog(storage.child("log")).all()] == [{"step": 1}]
            moment += 1
            continue
        assert takeover.seen == [], f"committed although the newer driver had read the log, at {moment}"
        assert takeover.operations == moment, "every operation was interrupted once"
        break
    assert moment >= 5


def test_an_answer_that_was_lost_is_not_taken_for_somebody_elses_commit(tmp_path: Path) -> None:
    storage = Storage.open(str(tmp_path))

    class Forgetful:
        """Does what it is asked to, then, repeated behind the caller's back, says that the name is taken."""

        def __getattr__(self, name: str) -> Callable[..., object]:
            return getattr(storage._backend, name)  # type: ignore[no-any-return]

        def create(self, path: str, data: memoryview) -> None:
            storage._backend.create(path, data)
            raise AlreadyExistsError(path)

    forgetful = Storage(storage._root, "", Forgetful(), ())
    fence = Fence.claim(forgetful, {})
    log = CommitLog(forgetful.child("log"), fence)
    commit = log.commit({"step": 1}, {"weights": b"x"})

    assert fence.epoch == 1
    assert log.all() == [commit]
    assert commit.sequence == 2, "after the seal, at the first try"
