"""One object store behind one small class: local folder, S3, Google Cloud, Azure, or memory.

Objects are created once and never changed. There is no overwrite and no compare-and-swap: what must be atomic is the
creation of one object (see commitlog.py), and every kind of store can do that. Errors: see storage_backend.py.

Left out: moving, copying and appending; access times; anything that would make two kinds of store behave differently.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from limbeck_runtime import cloud_store
from limbeck_runtime.cloud_store import CloudStore
from limbeck_runtime.local_disk import LocalDisk
from limbeck_runtime.local_files import TEMPORARY_PREFIX, LocalFiles
from limbeck_runtime.storage_backend import (
    AlreadyExistsError,
    Backend,
    NotFoundError,
    ObjectInfo,
    OutOfSpaceError,
    RetryPolicy,
    StorageError,
    out_of_space,
)

__all__ = [
    "AlreadyExistsError",
    "LocalFiles",
    "NotFoundError",
    "ObjectInfo",
    "OutOfSpaceError",
    "RetryPolicy",
    "Storage",
    "StorageError",
    "out_of_space",
]

_SCHEMES = ("file", "s3", "s3a", "gs", "az", "abfs", "abfss", "memory")


class Storage:
    """One prefix of one object store. Paths are relative to it and use `/`; instances can be pickled."""

    def __init__(self, uri: str, prefix: str, backend: Backend, arguments: tuple[Any, ...]) -> None:
        self._root = uri
        self._prefix = prefix
        self._backend = backend
        self._arguments = arguments

    @classmethod
    def open(
        cls,
        uri: str,
        *,
        options: Mapping[str, str] | None = None,
        files: LocalFiles | None = None,
        retry: RetryPolicy | None = None,
    ) -> Storage:
        """Open a folder (`path` or file://) or a bucket prefix (s3://, gs://, az://, memory://NAME).

        Credentials come from the environment as each cloud's own tools read them; `options` go over them, with
        obstore's names (for S3: endpoint, region, access_key_id, secret_access_key).
        """
        scheme, separator, rest = uri.partition("://")
        if separator and scheme not in _SCHEMES:
            raise ValueError(f"storage URI must be a path or start with one of {_SCHEMES}, got {uri!r}")
        arguments = (uri, dict(options or {}), files, retry)
        if not separator or scheme == "file":
            path = Path(unquote(urlsplit(uri).path) if separator else uri).expanduser().resolve()
            return cls(str(path), "", LocalDisk(path, files or LocalFiles()), arguments)
        if scheme == "memory":
            name, _, prefix = rest.partition("/")
            root = f"memory://{name}"
            return cls(root, prefix.strip("/"), CloudStore(cloud_store.memory(name), root), arguments)
        root = uri.rstrip("/")
        store = cloud_store.connect(root, options or {}, retry or RetryPolicy())
        return cls(root, "", CloudStore(store, root), arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        uri, options, files, retry = self._arguments
        return _reopen, (uri, options, files, retry, self._prefix)

    def __repr__(self) -> str:
        return f"Storage({self.uri!r})"

    @property
    def uri(self) -> str:
        """Where this prefix lies, for messages and records."""
        return f"{self._root}/{self._prefix}" if self._prefix else self._root

    def child(self, prefix: str) -> Storage:
        """The same store under a longer prefix."""
        return Storage(self._root, self._full(prefix), self._backend, self._arguments)

    def local_path(self, path: str) -> Path | None:
        """The file behind an object, or None where the store is not a local disk. Never write to it."""
        return self._backend.local_path(self._full(path))

    def get(self, path: str) -> bytes:
        """All bytes of an object. Raises NotFoundError."""
        return self._backend.get(self._full(path))

    def get_range(self, path: str, start: int, length: int) -> bytes:
        """`length` bytes from `start`, fewer where the object ends before. Raises NotFoundError."""
        if start < 0 or length < 0:
            raise ValueError(f"range of {path} must not be negative, got start {start}, length {length}")
        return self._backend.get_range(self._full(path), start, length)

    def head(self, path: str) -> ObjectInfo | None:
        """Size and tag of an object, or None if there is none."""
        info = self._backend.head(self._full(path))
        return info and self._relative(info)

    def create(self, path: str, data: bytes | memoryview) -> None:
        """Create an object, whole and durable. Raises AlreadyExistsError and leaves the object there untouched."""
        self._backend.create(self._full(path), memoryview(data).cast("B"))

    def create_from_file(self, path: str, local: Path) -> None:
        """The same from a file of any size.

        To a cloud, files above 64 MiB go up in parts: they appear whole or not at all, but that the name was free is
        checked before the upload and not again at its end. So give such objects unique names.
        """
        self._backend.create_from_file(self._full(path), local)

    def list(self, prefix: str = "") -> list[ObjectInfo]:
        """All objects below a folder-like prefix, sorted by path; half-written ones are never among them."""
        found = self._backend.list(self._full(prefix) if prefix else self._prefix)
        return sorted((self._relative(info) for info in found), key=lambda info: info.path)

    def delete(self, path: str) -> None:
        """Remove an object; that there is none is fine."""
        self._backend.delete(self._full(path))

    def remove_temporary(self) -> int:
        """Remove what writers that died left half-written below this prefix; the number of files is returned."""
        return self._backend.remove_temporary(self._prefix)

    def _full(self, path: str) -> str:
        parts = PurePosixPath(path).parts
        if not parts or path.startswith("/") or "\\" in path or any(part in ("..", ".") for part in parts):
            raise ValueError(f"object path must be relative, with / and without .., got {path!r}")
        if parts[-1].startswith(TEMPORARY_PREFIX):
            raise ValueError(
                f"object path must not start with {TEMPORARY_PREFIX}, which marks unfinished files: {path!r}"
            )
        joined = "/".join(parts)
        return f"{self._prefix}/{joined}" if self._prefix else joined

    def _relative(self, info: ObjectInfo) -> ObjectInfo:
        path = info.path.removeprefix(self._prefix).removeprefix("/")
        return ObjectInfo(path, info.size, info.etag, info.modified)


def _reopen(
    uri: str, options: Mapping[str, str], files: LocalFiles | None, retry: RetryPolicy | None, prefix: str
) -> Storage:
    opened = Storage.open(uri, options=options, files=files, retry=retry)
    return Storage(opened._root, prefix, opened._backend, opened._arguments)
