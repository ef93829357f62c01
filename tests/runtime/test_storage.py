"""All kinds of storage behave alike; each test runs on a local folder, in memory and on a real S3 server."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from limbeck_runtime.storage import AlreadyExistsError, NotFoundError, Storage


def test_what_was_created_is_read_back(storage: Storage) -> None:
    storage.create("folder/object.bin", b"0123456789")

    assert storage.get("folder/object.bin") == b"0123456789"
    assert storage.get_range("folder/object.bin", 2, 3) == b"234"
    info = storage.head("folder/object.bin")
    assert info is not None
    assert (info.path, info.size) == ("folder/object.bin", 10)


def test_a_range_beyond_the_end_is_cut(storage: Storage) -> None:
    storage.create("object", b"0123456789")

    assert storage.get_range("object", 8, 100) == b"89"
    assert storage.get_range("object", 10, 5) == b""
    with pytest.raises(ValueError, match="must not be negative"):
        storage.get_range("object", -1, 5)


def test_an_object_may_be_empty_and_a_memoryview(storage: Storage) -> None:
    storage.create("empty", b"")
    storage.create("view", memoryview(bytearray(b"abc")))

    assert storage.get("empty") == b""
    assert storage.get("view") == b"abc"


def test_a_second_creation_fails_and_changes_nothing(storage: Storage, tmp_path: Path) -> None:
    storage.create("object", b"first")
    source = tmp_path / "source"
    source.write_bytes(b"third")

    with pytest.raises(AlreadyExistsError, match="object"):
        storage.create("object", b"second")
    with pytest.raises(AlreadyExistsError, match="object"):
        storage.create_from_file("object", source)

    assert storage.get("object") == b"first"


def test_of_many_that_create_at_once_exactly_one_succeeds(storage: Storage) -> None:
    def create(writer: int) -> int | None:
        try:
            storage.create("contested", b"%d" % writer * 5000)
        except AlreadyExistsError:
            return None
        return writer

    with ThreadPoolExecutor(8) as pool:
        winners = [writer for writer in pool.map(create, range(8)) if writer is not None]

    assert len(winners) == 1
    assert storage.get("contested") == b"%d" % winners[0] * 5000


def test_a_file_is_created_from_a_file(storage: Storage, tmp_path: Path) -> None:
    source = tmp_path / "source"
    content = bytes(range(256)) * 20_000
    source.write_bytes(content)

    storage.create_from_file("object", source)
    source.write_bytes(b"changed later")

    assert storage.get("object") == content


@pytest.mark.s3
def test_a_large_file_goes_up_in_parts(s3_server, tmp_path: Path) -> None:
    storage = s3_server.open()
    source = tmp_path / "large"
    with source.open("wb") as file:
        file.truncate(65 * 2**20)
        file.seek(64 * 2**20)
        file.write(b"near the end")

    storage.create_from_file("large", source)

    info = storage.head("large")
    assert info is not None
    assert info.size == 65 * 2**20
    assert storage.get_range("large", 64 * 2**20, 12) == b"near the end"
    with pytest.raises(AlreadyExistsError):
        storage.create_from_file("large", source)


def test_what_is_not_there_is_said_with_its_place(storage: Storage) -> None:
    storage.create("folder/object", b"1")

    with pytest.raises(NotFoundError) as caught:
        storage.get("folder/other")
    assert f"{storage.uri}/folder/other" in str(caught.value)
    with pytest.raises(NotFoundError):
        storage.get_range("folder/other", 0, 1)
    assert storage.head("folder/other") is None
    assert storage.head("folder") is None
    assert storage.head("folder/object/below") is None


def test_a_listing_is_complete_sorted_and_by_folder(storage: Storage) -> None:
    for path in ("b/2", "b/1", "a", "b/c/3", "bb/4"):
        storage.create(path, b"x" * len(path))

    assert [(info.path, info.size) for info in storage.list()] == [
        ("a", 1), ("b/1", 3), ("b/2", 3), ("b/c/3", 5), ("bb/4", 4),
    ]  # fmt: skip
    assert [info.path for info in storage.list("b")] == ["b/1", "b/2", "b/c/3"]
    assert storage.list("nothing") == []


def test_a_child_sees_only_its_prefix(storage: Storage) -> None:
    child = storage.child("runs").child("one")
    child.create("object", b"x")
    storage.create("beside", b"y")

    assert [info.path for info in child.list()] == ["object"]
    assert storage.get("runs/one/object") == b"x"
    assert child.uri == f"{storage.uri}/runs/one"


def test_deletion_is_final_and_may_be_repeated(storage: Storage) -> None:
    storage.create("object", b"1")

    storage.delete("object")
    storage.delete("object")

    assert storage.head("object") is None
    storage.create("object", b"2")
    assert storage.get("object") == b"2"


def test_an_object_changes_its_tag_when_it_is_made_anew(storage: Storage) -> None:
    storage.create("object", b"1")
    before = storage.head("object")
    storage.delete("object")
    storage.create("object", b"22")
    after = storage.head("object")

    assert before is not None
    assert after is not None
    assert before.etag != after.etag


def test_a_storage_survives_pickling(storage: Storage) -> None:
    child = storage.child("runs")
    child.create("object", b"x")

    copy = pickle.loads(pickle.dumps(child))

    assert copy.uri == child.uri
    assert copy.get("object") == b"x"


def test_two_that_open_the_same_place_see_the_same(open_storage: Callable[[], Storage]) -> None:
    open_storage().create("object", b"x")

    assert open_storage().get("object") == b"x"


@pytest.mark.parametrize("path", ["", "/absolute", "../above", "a/../../b", "a\\b", ".", "folder/.tmp-1"])
def test_a_path_that_leaves_the_prefix_is_refused(tmp_path: Path, path: str) -> None:
    storage = Storage.open(str(tmp_path))

    with pytest.raises(ValueError, match="object path must"):
        storage.create(path, b"x")


def test_only_a_local_folder_has_local_paths(tmp_path: Path) -> None:
    assert Storage.open(str(tmp_path)).child("a").local_path("b") == tmp_path / "a" / "b"
    assert Storage.open(tmp_path.as_uri()).local_path("b") == tmp_path / "b"
    assert Storage.open("memory://some").local_path("b") is None


@pytest.mark.parametrize("uri", ["ftp://host/x", "s3://"])
def test_a_place_that_cannot_be_opened_is_refused(uri: str) -> None:
    with pytest.raises(ValueError, match="storage"):
        Storage.open(uri)


def test_an_unknown_option_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="nonsense"):
        Storage.open("s3://bucket/x", options={"nonsense": "1"})
