"""Runs rows one after the other, each in a process of its own: clean memory, own threads, and nobody else's crash."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.outcome import MeasurementError, Outcome, judge
from benchmarks.rows import Row

ROOT = Path(__file__).resolve().parents[1]
# Threads of everything that computes in a row, unless the row itself says otherwise.
NUM_THREADS = 2
_SETTINGS = {
    **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(NUM_THREADS)),
    "PYTHONUNBUFFERED": "1",
    "RAY_AUTH_MODE": "disabled",
}
# Rare, so that showing the time takes none from what is measured.
_TICK_SECONDS = 1.0
# After SIGTERM a row may end what it has started (a Ray, a training run) before it is killed.
_GRACE_SECONDS = 10.0


@dataclass(frozen=True)
class Observer:
    """Whom the runner tells: a row begins, is still at work, has come to its end."""

    on_start: Callable[[str, Row], None] = lambda row_id, row: None
    on_tick: Callable[[], None] = lambda: None
    on_end: Callable[[Outcome], None] = lambda outcome: None


def run_rows(
    rows: Mapping[str, Row], observer: Observer, environment: Mapping[str, str] = os.environ
) -> Iterator[Outcome]:
    """Measure the rows in their order, each when it is asked for."""
    for row_id, row in rows.items():
        observer.on_start(row_id, row)
        outcome = run_row(row_id, row, environment, observer.on_tick)
        observer.on_end(outcome)
        yield outcome


def run_row(
    row_id: str,
    row: Row,
    environment: Mapping[str, str] = os.environ,
    on_tick: Callable[[], None] = lambda: None,
) -> Outcome:
    """Measure one row; whatever keeps it from a result becomes the outcome's reason."""
    with tempfile.TemporaryDirectory(prefix=f"bench-{row_id}-") as folder:
        result, log = Path(folder) / "result.json", Path(folder) / "log.txt"
        with log.open("wb") as output:
            command = [sys.executable, "-m", "benchmarks.row_process", row.module, str(result)]
            child = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**environment, **_SETTINGS, "TMPDIR": folder},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                in_time = _wait(child, row.limit_seconds, on_tick)
            finally:
                _end(child)
        if not in_time:
            return Outcome(row_id, row, reason=f"took longer than {row.limit_seconds:g} s")
        if child.returncode != 0:
            return Outcome(row_id, row, reason=_last_words(log.read_text(errors="replace"), child.returncode))
        try:
            return judge(row_id, row, json.loads(result.read_text(encoding="utf-8")))
        except MeasurementError as error:
            return Outcome(row_id, row, reason=str(error))


def _wait(child: subprocess.Popen[bytes], limit_seconds: float, on_tick: Callable[[], None]) -> bool:
    """Whether the child ended within its time."""
    deadline = time.monotonic() + limit_seconds
    while (left := deadline - time.monotonic()) > 0:
        try:
            child.wait(min(left, _TICK_SECONDS))
            return True
        except subprocess.TimeoutExpired:
            on_tick()
    return False


def _end(child: subprocess.Popen[bytes]) -> None:
    """End the child, and what it may have left behind in its session."""
    if child.poll() is None:
        child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(_GRACE_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _last_words(log: str, code: int) -> str:
    """Why a process ended, as far as its output says: of a Python traceback the last line."""
    lines: Sequence[str] = [line for line in log.splitlines() if line.strip()]
    how = f"ended with {code}" if code > 0 else f"was ended by {signal.Signals(-code).name}"
    return f"{how}: {lines[-1].strip()}" if lines else how
