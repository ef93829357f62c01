"""Stages: pieces of a run whose results are committed, so that the next run finds them instead of doing them again.

A stage is known by its name and by the fingerprint of all that went into it. Its work fills an empty folder and
returns a record; both become visible at once, or not at all.
Left out: what the stages are (pipeline.py), and training's own checkpoints, which lie inside a stage's work.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbeck_runtime.commitlog import Commit, CommitLog
from limbeck_runtime.context import Context


@dataclass(frozen=True)
class Stage:
    """A finished stage."""

    name: str
    fingerprint: str
    record: Mapping[str, Any]
    seconds: float
    reused: bool
    folder: Path

    @classmethod
    def from_commit(cls, name: str, commit: Commit, folder: Path, *, reused: bool) -> Stage:
        """The stage as `commit` holds it; its files lie in `folder`."""
        record = commit.record
        return cls(name, record["fingerprint"], record["record"], record["seconds"], reused, folder)


def is_done(context: Context, name: str, fingerprint: str) -> bool:
    """Whether `run_stage` would find the stage."""
    return _found(context.log("stages", name), fingerprint) is not None


def run_stage(
    context: Context,
    name: str,
    fingerprint: str,
    work: Callable[[Path], Mapping[str, Any]],
) -> Stage:
    """The committed stage of this name and fingerprint; where there is none, `work(folder)` makes it first.

    `work` gets an empty folder, whose files are committed with the record.

    Raises:
        FencedError: a newer driver has taken over.
        StorageError: the result cannot be stored.
    """
    context.check_stop()
    log = context.log("stages", name)
    folder = context.scratch / "stages" / name
    folder.mkdir(parents=True)
    commit = _found(log, fingerprint)
    for skipped in log.skipped:
        context.warn(f"stage {name}: passed over result {skipped.sequence}: {skipped.reason}")
    if commit is not None:
        for file in commit.files:
            (folder / file).write_bytes(commit.read(file))
        return Stage.from_commit(name, commit, folder, reused=True)
    started = time.monotonic()
    record = dict(work(folder))
    files = {path.name: path for path in sorted(folder.iterdir())}
    seconds = time.monotonic() - started
    commit = log.commit({"fingerprint": fingerprint, "record": record, "seconds": seconds}, files)
    log.prune(keep=1)
    log.janitor()
    return Stage.from_commit(name, commit, folder, reused=False)


def _found(log: CommitLog, fingerprint: str) -> Commit | None:
    commit = log.latest()
    return commit if commit is not None and commit.record.get("fingerprint") == fingerprint else None
