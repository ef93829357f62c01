"""A local file of lines that grows: each line is in it whole or not at all, however a run ends.

Left out: durability (what a loss of power takes of a log is no loss), and stores without append (log_upload.py).
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

from limbeck_runtime.local_files import LocalFiles
from limbeck_runtime.storage import out_of_space

# A line is far shorter than this, so the last whole line ends within it.
_LONGEST_LINE = 65_536


class LineFile:
    """Appends lines. Safe to use from several threads."""

    def __init__(self, path: Path, files: LocalFiles | None = None) -> None:
        """Open `path`, dropping what a crash left of its last line. Raises OSError."""
        self.path = path
        self._files = files or LocalFiles(durable=False)
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        try:
            self._size = self._end_of_last_line()
            os.ftruncate(self._descriptor, self._size)
        except OSError:
            self.close()
            raise

    def append(self, line: bytes) -> None:
        """Add one line, its end included. Raises OutOfSpaceError, OSError; nothing of the line is there then."""
        with self._lock:
            try:
                self._files.write(self._descriptor, memoryview(line))
            except OSError as error:
                os.ftruncate(self._descriptor, self._size)
                raise (out_of_space("append to", self.path, error) or error) from error
            self._size += len(line)

    def read(self, start: int = 0) -> bytes:
        """All lines from byte `start` on."""
        with self._lock:
            return os.pread(self._descriptor, self._size - start, start)

    @property
    def size(self) -> int:
        """Bytes of all lines."""
        return self._size

    def close(self) -> None:
        """Close the file; the second time does nothing."""
        with self._lock:
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1

    def _end_of_last_line(self) -> int:
        size = os.fstat(self._descriptor).st_size
        start = max(0, size - _LONGEST_LINE)
        return start + os.pread(self._descriptor, size - start, start).rfind(b"\n") + 1
