"""One shard as a seekable binary file, wherever it lies, without ever holding it whole."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

from limbeck_runtime.data.errors import BrokenShardError
from limbeck_runtime.storage import Storage

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

# What one request to a cloud store brings; also the most that a reader holds.
BLOCK_BYTES = 4 * 2**20


def split_uri(uri: str) -> tuple[str, str]:
    """Folder and file name of a URI or path."""
    folder, slash, name = uri.rpartition("/")
    if not slash:
        return ".", name
    return folder or "/", name


@contextmanager
def open_shard(uri: str, storage_options: Mapping[str, str] | None) -> Iterator[IO[bytes]]:
    """Open one file for reading; names that end in `gz` are unpacked on the way.

    Raises:
        BrokenShardError: there is no such file.
    """
    folder, name = split_uri(uri)
    storage = Storage.open(folder, options=storage_options)
    local = storage.local_path(name)
    if local is not None:
        if not local.is_file():
            raise BrokenShardError(uri, None, "there is no such file")
        file: IO[bytes] = local.open("rb", buffering=1 << 17)
    else:
        info = storage.head(name)
        if info is None:
            raise BrokenShardError(uri, None, "there is no such object")
        file = io.BufferedReader(_RemoteFile(storage, name, info.size), BLOCK_BYTES)
    with file:
        if name.endswith((".gz", ".tgz")):
            with gzip.open(file) as unpacked:
                yield unpacked  # type: ignore[misc]
        else:
            yield file


class _RemoteFile(io.RawIOBase):
    """An object of a store, read by ranges."""

    def __init__(self, storage: Storage, path: str, size: int) -> None:
        self._storage, self._path, self._size = storage, path, size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        length = min(len(view), self._size - self._position)
        if length <= 0:
            return 0
        data = self._storage.get_range(self._path, self._position, length)
        view[: len(data)] = data
        self._position += len(data)
        return len(data)
