"""Remote shards are read by ranges, as a file would be."""

from __future__ import annotations

import io

import pytest

from limbeck_runtime.data.errors import BrokenShardError
from limbeck_runtime.data.shard_file import BLOCK_BYTES, open_shard, split_uri
from limbeck_runtime.storage import Storage


def test_a_remote_object_reads_and_seeks_as_a_file_does() -> None:
    data = bytes(range(256)) * 40_000  # more than two blocks
    assert len(data) > 2 * BLOCK_BYTES
    Storage.open("memory://shard-file/in").create("big.bin", data)
    file = io.BytesIO(data)
    with open_shard("memory://shard-file/in/big.bin", None) as remote:
        for start, length in ((0, 10), (BLOCK_BYTES - 5, 20), (7, 3), (len(data) - 4, 100), (len(data) + 9, 5)):
            assert remote.seek(start) == file.seek(start)
            assert remote.read(length) == file.read(length)
            assert remote.tell() == file.tell()
        assert remote.seek(-6, io.SEEK_END) == file.seek(-6, io.SEEK_END)
        assert remote.read() == file.read()
        remote.seek(0)
        assert remote.read() == data


def test_a_missing_object_is_an_error_that_names_it() -> None:
    with (
        pytest.raises(BrokenShardError, match=r"memory://shard-file/gone\.tar"),
        open_shard("memory://shard-file/gone.tar", None),
    ):
        pass


@pytest.mark.parametrize(
    ("uri", "parts"),
    [
        ("s3://b/p/t.tar", ("s3://b/p", "t.tar")),
        ("t.tar", (".", "t.tar")),
        ("/t.tar", ("/", "t.tar")),
        ("d/t.tar", ("d", "t.tar")),
    ],
)
def test_a_uri_is_a_folder_and_a_name(uri: str, parts: tuple[str, str]) -> None:
    assert split_uri(uri) == parts
