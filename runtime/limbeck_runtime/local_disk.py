"""Objects as files below one folder, for storage.py."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from limbeck_runtime.local_files import TEMPORARY_PREFIX, LocalFiles, create_file, remove_abandoned
from limbeck_runtime.storage_backend import (
    AlreadyExistsError,
    NotFoundError,
    ObjectInfo,
    StorageError,
    out_of_space,
)

_COPY_BYTES = 4 * 2**20


class LocalDisk:
    """Objects as files below one folder, created as local_files.py says."""

    def __init__(self, root: Path, files: LocalFiles) -> None:
        self._root = root
        self._files = files
        self._durable_folders: set[Path] = set()

    def local_path(self, path: str) -> Path:
        return self._root / path

    def get(self, path: str) -> bytes:
        with self._explained("read", path):
            return (self._root / path).read_bytes()

    def get_range(self, path: str, start: int, length: int) -> bytes:
        with self._explained("read", path), (self._root / path).open("rb") as file:
            file.seek(start)
            return file.read(length)

    def head(self, path: str) -> ObjectInfo | None:
        with contextlib.suppress(NotFoundError), self._explained("look up", path):
            status = os.stat(self._root / path)
            if stat.S_ISREG(status.st_mode):
                return _file_info(path, status)
        return None

    def create(self, path: str, data: memoryview) -> None:
        self._create(path, iter((data,)))

    def create_from_file(self, path: str, local: Path) -> None:
        self._create(path, _chunks(local))

    def _create(self, path: str, chunks: Iterator[memoryview]) -> None:
        target = self._root / path
        with self._explained("create", path):
            if target.exists():
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
            self._make_durable(target.parent)
            create_file(self._files, target, chunks)

    def _make_durable(self, folder: Path) -> None:
        """See that the folder exists and would survive a loss of power, asked of the disk once per folder."""
        inside = folder.is_relative_to(self._root)
        if folder in self._durable_folders or (not inside and folder.is_dir()):
            return
        self._make_durable(folder.parent)
        with contextlib.suppress(FileExistsError):
            self._files.make_dir(folder)
        self._files.fsync_dir(folder.parent)
        self._durable_folders.add(folder)

    def list(self, prefix: str) -> list[ObjectInfo]:
        found = []
        for parent, _, names in os.walk(self._root / prefix):
            for name in names:
                if name.startswith(TEMPORARY_PREFIX):
                    continue
                file = Path(parent, name)
                with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                    found.append(_file_info(file.relative_to(self._root).as_posix(), file.stat()))
        return found

    def delete(self, path: str) -> None:
        with self._explained("delete", path), contextlib.suppress(FileNotFoundError):
            self._files.unlink(self._root / path)

    def remove_temporary(self, prefix: str) -> int:
        return remove_abandoned(self._files, self._root / prefix)

    @contextlib.contextmanager
    def _explained(self, verb: str, path: str) -> Iterator[None]:
        target = self._root / path
        try:
            yield
        except FileExistsError as error:
            raise AlreadyExistsError(f"cannot {verb} {target}: it exists already") from error
        except (FileNotFoundError, NotADirectoryError) as error:
            if verb == "create":
                raise StorageError(f"cannot create {target}: {error.strerror}: {error.filename}") from error
            raise NotFoundError(f"cannot {verb} {target}: no such file") from error
        except OSError as error:
            full = out_of_space(verb, target, error)
            if full is not None:
                raise full from error
            if verb == "create" and error.errno in (errno.EPERM, errno.EOPNOTSUPP):
                raise StorageError(
                    f"cannot create {target}: {error.strerror}; the file system must allow hard links and writing"
                ) from error
            raise StorageError(f"cannot {verb} {target}: {error.strerror or error}") from error


def _file_info(path: str, status: os.stat_result) -> ObjectInfo:
    return ObjectInfo(path, status.st_size, f"{status.st_ino:x}-{status.st_mtime_ns:x}", status.st_mtime)


def _chunks(local: Path) -> Iterator[memoryview]:
    with local.open("rb") as file:
        while chunk := file.read(_COPY_BYTES):
            yield memoryview(chunk)
