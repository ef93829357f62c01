"""What storage.py asks of a kind of store, and the errors that all kinds answer with.

StorageError
|-- NotFoundError        no object of that name
|-- AlreadyExistsError   the name is taken
`-- OutOfSpaceError      the disk or the quota is full
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class StorageError(Exception):
    """The object store failed; the message names the object and the cause."""


class NotFoundError(StorageError):
    """There is no object of that name."""


class AlreadyExistsError(StorageError):
    """The name is taken; the object there is left as it was."""


class OutOfSpaceError(StorageError):
    """The disk or the quota is full; nothing of the object was kept."""


def out_of_space(verb: str, place: object, error: BaseException) -> OutOfSpaceError | None:
    """The error to raise where `error` says that a disk or a quota is full; None where it says anything else."""
    if not isinstance(error, OSError) or error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return None
    return OutOfSpaceError(
        f"cannot {verb} {place}: the disk or quota is full; free space there or move the output elsewhere, then run "
        "the same command again: it goes on from the last commit"
    )


@dataclass(frozen=True)
class ObjectInfo:
    """What a listing tells of an object; `modified` is in seconds since 1970 by the store's clock."""

    path: str
    size: int
    etag: str | None
    modified: float


@dataclass(frozen=True)
class RetryPolicy:
    """How long failing requests to a cloud store are repeated before they count as failed."""

    max_retries: int = 8
    timeout_seconds: float = 90.0


class Backend(Protocol):
    """What Storage needs of a store; full paths, no prefix. Implemented by a local disk and by obstore."""

    def get(self, path: str) -> bytes: ...
    def get_range(self, path: str, start: int, length: int) -> bytes: ...
    def head(self, path: str) -> ObjectInfo | None: ...
    def create(self, path: str, data: memoryview) -> None: ...
    def create_from_file(self, path: str, local: Path) -> None: ...
    def list(self, prefix: str) -> list[ObjectInfo]: ...
    def delete(self, path: str) -> None: ...
    def local_path(self, path: str) -> Path | None: ...
    def remove_temporary(self, prefix: str) -> int: ...
