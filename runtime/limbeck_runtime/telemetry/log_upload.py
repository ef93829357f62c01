"""Logs beside an output that cannot append: their new lines go up in segments, each a commit of the log `logs/`.

So a segment has a name of its own, is there whole or not at all, and only the newest driver adds any. Put together in
the order of the commits, they are the logs of all attempts. What is not up yet when a machine is lost is lost with it.
Left out: when to upload (at the end of each step, and of the run), and local outputs, where the logs lie as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from limbeck_runtime.commitlog import CommitLog, CorruptCommitError
from limbeck_runtime.storage import StorageError
from limbeck_runtime.telemetry.line_file import LineFile


class LogUpload:
    """Uploads what `files` (name -> file) grow by from now on; for one thread. It never fails its caller."""

    def __init__(self, log: CommitLog, files: Mapping[str, LineFile]) -> None:
        self._log = log
        self._files = dict(files)
        self._sent = {name: lines.size for name, lines in files.items()}
        self._has_cleaned = self._has_told = False

    def upload(self, warn: Callable[[str], object]) -> None:
        """Bring all new lines up. The first failure is told; the lines then go with the next segment."""
        try:
            new = {name: lines.read(self._sent[name]) for name, lines in self._files.items()}
            new = {name: lines for name, lines in new.items() if lines}
            if not new:
                return
            if not self._has_cleaned:
                self._log.janitor()
                self._has_cleaned = True
            self._log.commit({"lines": {name: lines.count(b"\n") for name, lines in new.items()}}, new)
        except (OSError, StorageError) as error:
            if not self._has_told:
                self._has_told = True
                warn(f"the logs of this run stay on this machine for now; the run goes on: {error}")
            return
        for name, lines in new.items():
            self._sent[name] += len(lines)


def uploaded_lines(log: CommitLog, name: str) -> bytes:
    """All lines of one file that were brought up so far, in their order. Segments that were damaged are left out.

    Raises StorageError.
    """
    segments = []
    for commit in log.all():
        if name in commit.files:
            try:
                segments.append(commit.read(name))
            except CorruptCommitError:
                continue
    return b"".join(segments)
