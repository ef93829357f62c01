"""Files on a local disk that are there whole or not at all, and stay there once their creation was reported.

A file is written under a temporary name in its own folder, synced, and linked to its final name; the link fails if the
name is taken, which is what makes creation exclusive. Rename would replace silently, so it is not used.

A writer holds a lock on its temporary file for as long as it works. The kernel drops the lock when the process dies,
however it dies, so `remove_abandoned` tells a dead writer's debris from a live writer's work without guessing by age.

Left out: overwriting, and any file system without hard links (the error says so).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
import uuid
from collections.abc import Iterable
from pathlib import Path

TEMPORARY_PREFIX = ".tmp-"
# Where a file system has no locks, a temporary file that nobody wrote to for this long belongs to nobody.
ABANDONED_AFTER_SECONDS = 3600.0


class LocalFiles:
    """The primitive operations that change a disk; tests replace it to stop the process before or after any of them.

    Without `durable` nothing is synced: for what may be lost with the power because it is checked and can be had again.
    """

    def __init__(self, *, durable: bool = True) -> None:
        self._durable = durable

    def open_new(self, path: Path) -> int:
        """Create an empty file for writing and return its descriptor; fails if the name is taken."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)

    def lock(self, descriptor: int) -> None:
        """Mark the file as in work by this process, where the file system can."""
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)

    def write(self, descriptor: int, data: memoryview) -> None:
        """Append all of `data`."""
        while data:
            data = data[os.write(descriptor, data) :]

    def fsync(self, descriptor: int) -> None:
        """Return when the file's bytes are on the disk."""
        if self._durable:
            os.fsync(descriptor)

    def close(self, descriptor: int) -> None:
        """Close, which drops the lock too."""
        os.close(descriptor)

    def link(self, source: Path, target: Path) -> None:
        """Give the file a second name; fails if the name is taken."""
        os.link(source, target)

    def unlink(self, path: Path) -> None:
        """Remove a name."""
        os.unlink(path)

    def make_dir(self, path: Path) -> None:
        """Create one folder; fails if it exists."""
        os.mkdir(path)

    def fsync_dir(self, path: Path) -> None:
        """Return when the folder's names are on the disk."""
        if not self._durable:
            return
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def create_file(files: LocalFiles, target: Path, chunks: Iterable[memoryview]) -> None:
    """Create `target` from `chunks`, whole and durable; its folder must exist. Raises FileExistsError or OSError."""
    temporary, descriptor = _open_temporary(files, target.parent)
    try:
        try:
            for chunk in chunks:
                files.write(descriptor, chunk)
            files.fsync(descriptor)
            files.link(temporary, target)
        finally:
            # Before the close: the lock must outlive the temporary name, or a janitor might take it for debris.
            with contextlib.suppress(FileNotFoundError):
                files.unlink(temporary)
    finally:
        files.close(descriptor)
    files.fsync_dir(target.parent)


def remove_abandoned(files: LocalFiles, folder: Path) -> int:
    """Remove the temporary files below `folder` whose writers are gone; the number removed is returned."""
    removed = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            if name.startswith(TEMPORARY_PREFIX) and _remove_if_abandoned(files, path):
                removed += 1
    return removed


def _open_temporary(files: LocalFiles, folder: Path) -> tuple[Path, int]:
    while True:
        path = folder / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
        descriptor = files.open_new(path)
        files.lock(descriptor)
        # A janitor may have come between the two calls and taken the unlocked file for debris.
        if os.fstat(descriptor).st_nlink:
            return path, descriptor
        files.close(descriptor)


def _remove_if_abandoned(files: LocalFiles, path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False  # its writer has just finished
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        files.unlink(path)
        return True
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        if time.time() - os.fstat(descriptor).st_mtime < ABANDONED_AFTER_SECONDS:
            return False
        files.unlink(path)
        return True
    finally:
        os.close(descriptor)
