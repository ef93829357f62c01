"""Commits of named files with a record, of which the newest whole one is what a run goes on from.

Data files get unique names below `data/`; then one small object `commits/<sequence>.json` that names them with their
sizes and hashes is created, and that creation is the commit: before it nothing is visible, after it everything is.

Only one driver may commit. It claims an epoch (`Fence`), and its first act on a log is an entry of its own, the seal.
Entries are numbered without gaps and each number can be created only once, so a driver of an older epoch either got its
entry in before the seal, where the new one reads it, or finds the seal in its way and stops. No clock is involved.

Left out: overwriting, and any sharing of data files between commits.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from limbeck_runtime.fence import (
    CorruptObjectError,
    Fence,
    FencedError,
    create_owned,
    number_of,
    numbered_path,
    read_object,
)
from limbeck_runtime.storage import AlreadyExistsError, NotFoundError, Storage, StorageError

__all__ = ["Commit", "CommitLog", "CorruptCommitError", "Fence", "FencedError", "FileRef", "SkippedCommit"]

Content = bytes | memoryview | Path

_FORMAT = 1
_COMMITS, _DATA = "commits", "data"
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
# A data file that no commit names may still belong to a commit in progress: of our own epoch, or where there is no
# fence. After this long without its commit it does not.
_IN_PROGRESS_SECONDS = 6 * 3600.0


class CorruptCommitError(StorageError):
    """A committed file is not what was committed."""


@dataclass(frozen=True)
class FileRef:
    """A data file as its commit describes it."""

    path: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Commit:
    """One entry of the log."""

    storage: Storage = field(repr=False)
    sequence: int
    epoch: int
    record: Mapping[str, Any]
    files: Mapping[str, FileRef]

    def read(self, name: str) -> bytes:
        """The bytes of one file, their hash checked. Raises KeyError, CorruptCommitError."""
        reference = self.files[name]
        try:
            data = self.storage.get(reference.path)
        except NotFoundError as error:
            raise CorruptCommitError(f"commit {self.sequence} of {self.storage.uri} lost {reference.path}") from error
        if hashlib.sha256(data).hexdigest() != reference.sha256:
            raise CorruptCommitError(f"{reference.path} in {self.storage.uri} is not what commit {self.sequence} wrote")
        return data

    def problem(self) -> str | None:
        """What is wrong with this commit's files, or None when all are there with the right size and hash."""
        for name, reference in self.files.items():
            info = self.storage.head(reference.path)
            if info is None:
                return f"{name} ({reference.path}) is missing"
            if info.size != reference.size:
                return f"{name} ({reference.path}) has {info.size} bytes, committed were {reference.size}"
        for name, reference in self.files.items():
            if _sha256_of(self.storage, reference.path) != reference.sha256:
                return f"{name} ({reference.path}) has another hash than was committed"
        return None


@dataclass(frozen=True)
class SkippedCommit:
    """A commit that `latest` passed over, and why."""

    sequence: int
    reason: str


@dataclass(frozen=True)
class _Entry:
    sequence: int
    epoch: int
    seal: bool
    record: Mapping[str, Any]
    files: Mapping[str, FileRef]


class CommitLog:
    """The log below one prefix. With a fence it can commit; without, it reads (and, in tests, commits unfenced)."""

    def __init__(self, storage: Storage, fence: Fence | None = None, now: Callable[[], float] = time.time) -> None:
        self._storage = storage
        self._fence = fence
        self._now = now
        self._sealed = False
        self._lock = threading.RLock()
        self.skipped: tuple[SkippedCommit, ...] = ()

    def commit(self, record: Mapping[str, Any], files: Mapping[str, Content]) -> Commit:
        """Make `files` and `record` the newest commit; they are durable when this returns.

        A file given by its path must not change meanwhile.

        Raises FencedError when a newer driver took over, StorageError when the store fails; nothing is visible then.
        """
        with self._lock:
            self._take_over()
            references = {name: self._store_file(name, content) for name, content in files.items()}
            return self._append(record, references, seal=False)

    def latest(self) -> Commit | None:
        """The newest commit whose files are all there, whole; those passed over are in `skipped` afterwards."""
        with self._lock:
            self._take_over()
            skipped = []
            for sequence in reversed(self._sequences()):
                try:
                    entry = self._entry(sequence)
                except NotFoundError:
                    continue  # pruned meanwhile
                except CorruptObjectError as error:
                    skipped.append(SkippedCommit(sequence, str(error)))
                    continue
                if entry.seal:
                    continue
                commit = self._as_commit(entry)
                reason = commit.problem()
                if reason is None:
                    self.skipped = tuple(skipped)
                    return commit
                skipped.append(SkippedCommit(sequence, reason))
            self.skipped = tuple(skipped)
            return None

    def all(self) -> list[Commit]:
        """All commits with a readable entry, oldest first; their files are not looked at."""
        return [self._as_commit(entry) for entry in self._entries() if not entry.seal]

    def prune(self, keep: int) -> None:
        """Forget all but the newest `keep` commits. The newest entry of all always stays: it carries the numbering."""
        if keep < 1:
            raise ValueError(
                f"number of commits to keep must be at least 1, got {keep}; keep 2 to have one to fall back to"
            )
        with self._lock:
            self._take_over()
            entries = list(self._entries())
            commits = [entry for entry in entries if not entry.seal]
            if len(commits) <= keep:
                return
            oldest_kept = commits[-keep].sequence
            for entry in entries:
                if entry.sequence < oldest_kept:
                    # The entry first: a crash in between leaves unnamed files for the janitor, not a broken commit.
                    self._storage.delete(numbered_path(_COMMITS, entry.sequence))
                    for reference in entry.files.values():
                        self._storage.delete(reference.path)

    def janitor(self) -> int:
        """Remove data files that no commit names and what died half-written; the number removed is returned.

        Files of older epochs can no longer be committed and go at once. Files of our own epoch, or all of them where
        there is no fence, may belong to a commit in progress and go when they are hours old.
        """
        with self._lock:
            self._take_over()
            removed = self._storage.remove_temporary()
            candidates = self._storage.list(
                _DATA
            )  # before the entries: what is committed meanwhile is not in this list
            named = {reference.path for entry in self._entries() for reference in entry.files.values()}
            for info in candidates:
                if info.path in named:
                    continue
                epoch = number_of(info.path)
                over = self._fence is not None and epoch < self._fence.epoch
                foreign = self._fence is not None and epoch > self._fence.epoch
                old = self._now() - info.modified > _IN_PROGRESS_SECONDS
                if over or (old and not foreign):
                    self._storage.delete(info.path)
                    removed += 1
            return removed

    def _take_over(self) -> None:
        """Close the log to drivers of older epochs, once; raise FencedError if a newer one has closed it to us."""
        if self._fence is None:
            return
        if self._sealed:
            self._fence.check()
            return
        self._append({}, {}, seal=True)
        self._sealed = True

    def _append(self, record: Mapping[str, Any], files: Mapping[str, FileRef], *, seal: bool) -> Commit:
        """Create the next entry. Whoever holds an older epoch than the log's newest entry is fenced out."""
        epoch = self._fence.epoch if self._fence else 0
        token = uuid.uuid4().hex
        record = json.loads(json.dumps(record))  # what a reader will see, and a copy
        if self._fence:
            self._fence.check()
        while True:
            newest, newest_epoch = self._newest()
            if self._fence and newest_epoch > epoch:
                raise FencedError(f"{self._storage.uri} was taken over by epoch {newest_epoch}; epoch {epoch} stops")
            sequence = newest + 1
            body: dict[str, Any] = {
                "format": _FORMAT,
                "sequence": sequence,
                "epoch": epoch,
                "seal": seal,
                "token": token,
                "record": record,
                "files": {name: vars(reference) for name, reference in files.items()},
            }
            if create_owned(self._storage, numbered_path(_COMMITS, sequence), body):
                return Commit(self._storage, sequence, epoch, record, dict(files))

    def _store_file(self, name: str, content: Content) -> FileRef:
        if not _FILE_NAME.fullmatch(name):
            raise ValueError(f"name of a committed file must be letters, digits and ._- only, got {name!r}")
        epoch = self._fence.epoch if self._fence else 0
        path = f"{_DATA}/{epoch:08d}-{uuid.uuid4().hex}-{name}"
        # Nobody else can have taken this name: if it exists, a request succeeded whose answer was lost.
        with contextlib.suppress(AlreadyExistsError):
            if isinstance(content, Path):
                self._storage.create_from_file(path, content)
            else:
                self._storage.create(path, content)
        if isinstance(content, Path):
            with content.open("rb") as file:
                return FileRef(path, hashlib.file_digest(file, "sha256").hexdigest(), content.stat().st_size)
        return FileRef(path, hashlib.sha256(content).hexdigest(), memoryview(content).nbytes)

    def _newest(self) -> tuple[int, int]:
        """The newest entry's number, and the epoch of the newest readable one; zeros where there is none."""
        sequences = self._sequences()
        for sequence in reversed(sequences):
            with contextlib.suppress(NotFoundError, CorruptObjectError):
                return sequences[-1], self._entry(sequence).epoch
        return sequences[-1] if sequences else 0, 0

    def _sequences(self) -> list[int]:
        return sorted(number_of(info.path) for info in self._storage.list(_COMMITS))

    def _entries(self) -> Iterator[_Entry]:
        """Readable entries, oldest first."""
        for sequence in self._sequences():
            with contextlib.suppress(NotFoundError, CorruptObjectError):
                yield self._entry(sequence)

    def _entry(self, sequence: int) -> _Entry:
        path = numbered_path(_COMMITS, sequence)
        body = read_object(self._storage, path)
        if body["format"] != _FORMAT:
            # Not corrupt: skipping it, or sweeping its files, would throw away what a newer version did.
            raise StorageError(
                f"{path} in {self._storage.uri} has format {body['format']}, known is {_FORMAT}; upgrade limbeck"
            )
        if body["sequence"] != sequence:
            raise CorruptObjectError(f"{path} in {self._storage.uri} says that it is entry {body['sequence']}")
        files = {name: FileRef(**reference) for name, reference in body["files"].items()}
        return _Entry(sequence, body["epoch"], body["seal"], body["record"], files)

    def _as_commit(self, entry: _Entry) -> Commit:
        return Commit(self._storage, entry.sequence, entry.epoch, entry.record, entry.files)


def _sha256_of(storage: Storage, path: str) -> str:
    local = storage.local_path(path)
    try:
        if local is None:
            return hashlib.sha256(storage.get(path)).hexdigest()
        with local.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (NotFoundError, FileNotFoundError):
        return "missing"
