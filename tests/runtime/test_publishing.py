"""A published result is whole or absent, follows the newest commit, and forgets what is no more."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from limbeck_runtime.publishing import publish
from limbeck_runtime.storage import NotFoundError, Storage, StorageError


@pytest.fixture
def files(tmp_path: Path) -> Callable[..., dict[str, Path]]:
    """`files(**{"report.html": "text"})` as local files."""

    def write(**contents: str) -> dict[str, Path]:
        paths = {}
        for name, text in contents.items():
            path = tmp_path / "made" / hashlib.sha256(f"{name}{text}".encode()).hexdigest()
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
            paths[name] = path
        return paths

    return write


def _contents(storage: Storage) -> dict[str, str]:
    return {info.path: storage.get(info.path).decode() for info in storage.list() if info.path != "result.json"}


def test_files_lie_under_their_names_and_the_list_has_their_hashes(
    storage: Storage, files: Callable[..., dict[str, Path]]
) -> None:
    published = publish(storage, files(**{"report.html": "r", "model/README.md": "m"}), "print")
    assert _contents(storage) == {"report.html": "r", "model/README.md": "m"}
    listing = json.loads(storage.get("result.json"))
    assert listing["fingerprint"] == "print"
    assert listing["files"]["report.html"] == hashlib.sha256(b"r").hexdigest()
    assert published.report == f"{storage.uri}/report.html"


def test_a_new_result_replaces_the_old_and_drops_what_it_lacks(
    storage: Storage, files: Callable[..., dict[str, Path]]
) -> None:
    publish(storage, files(**{"report.html": "old", "model/model.onnx": "old"}), "a")
    publish(storage, files(**{"report.html": "new"}), "b")
    assert _contents(storage) == {"report.html": "new"}


def test_what_the_user_put_beside_a_result_stays(storage: Storage, files: Callable[..., dict[str, Path]]) -> None:
    storage.create("notes.txt", b"mine")
    publish(storage, files(**{"report.html": "old"}), "a")
    publish(storage, files(**{"report.html": "new"}), "b")
    assert _contents(storage)["notes.txt"] == "mine"


class _FailsAfter(Storage):
    """Raises after so many changes, as a store does that goes away."""

    @classmethod
    def over(cls, storage: Storage, changes: int) -> _FailsAfter:
        broken = cls(storage._root, storage._prefix, storage._backend, storage._arguments)
        broken.left = changes
        return broken

    left: int

    def _count(self) -> None:
        if self.left == 0:
            raise StorageError("gone")
        self.left -= 1

    def create(self, path: str, data: bytes | memoryview) -> None:
        self._count()
        super().create(path, data)

    def create_from_file(self, path: str, local: Path) -> None:
        self._count()
        super().create_from_file(path, local)

    def delete(self, path: str) -> None:
        self._count()
        super().delete(path)


def test_a_result_cut_off_at_any_change_is_never_listed_half_and_is_completed_by_the_next_call(
    open_storage: Callable[[], Storage], files: Callable[..., dict[str, Path]]
) -> None:
    storage = open_storage()
    old = files(**{"report.html": "old", "model/a": "old", "model/b": "same"})
    new = files(**{"report.html": "new", "model/a": "new", "model/b": "same"})
    for changes in range(6):
        publish(storage, old, "old")
        with pytest.raises(StorageError):
            publish(_FailsAfter.over(storage, changes), new, "new")
        try:
            listed = json.loads(storage.get("result.json"))["files"]
        except NotFoundError:
            listed = {}
        for name, sha256 in listed.items():
            assert hashlib.sha256(storage.get(name)).hexdigest() == sha256, changes
        publish(storage, new, "new")
        assert _contents(storage) == {"report.html": "new", "model/a": "new", "model/b": "same"}
