"""Programs that outlive the command that starts them, each known by its pid and the moment of its start.

So a pid that the kernel gave to somebody else is never killed. Left out on purpose: restarting what ends.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

_POLL_SECONDS = 0.1
_LAST_LINES = 15


class EndedError(RuntimeError):
    """A program is not there any more, or is not what it should be in time."""


class Daemons:
    """The programs of one cluster: a pid file each in `pids`, a log each in `logs`."""

    def __init__(self, pids: Path, logs: Path) -> None:
        self._pids = pids
        self._logs = logs

    def start(self, name: str, command: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> int:
        """In a session of its own, so that Ctrl-C in our terminal does not reach it."""
        self._pids.mkdir(parents=True, exist_ok=True)
        self._logs.mkdir(parents=True, exist_ok=True)
        arguments = [str(part) for part in command]
        program = shutil.which(arguments[0])
        if program is None:
            raise FileNotFoundError(f"{name} is started by {arguments[0]}, which is not here")
        pid = os.posix_spawn(
            program,
            arguments,
            {**os.environ, **(environment or {})},
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, self.log(name), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
        )
        (self._pids / name).write_text(f"{pid} {started_at(pid)}", encoding="ascii")
        return pid

    def log(self, name: str) -> Path:
        return self._logs / f"{name}.log"

    def running(self) -> dict[str, int]:
        """Pids by name of those that still run."""
        if not self._pids.is_dir():
            return {}
        alive = {file.name: self.pid(file.name) for file in sorted(self._pids.iterdir())}
        return {name: pid for name, pid in alive.items() if pid is not None}

    def pid(self, name: str) -> int | None:
        """None unless it runs and is the very process that was started."""
        try:
            pid, moment = (self._pids / name).read_text(encoding="ascii").split()
        except FileNotFoundError:
            return None
        return int(pid) if started_at(int(pid)) == moment else None

    def stop(self, name: str, with_signal: signal.Signals = signal.SIGKILL, patience_seconds: float = 5.0) -> None:
        """Returns when it is gone; killed if it is not by itself within `patience_seconds`."""
        pid = self.pid(name)
        if pid is not None:
            end(pid, with_signal, patience_seconds)
        (self._pids / name).unlink(missing_ok=True)

    def wait(self, name: str, seconds: float, what: str, is_so: Callable[[], bool]) -> None:
        """Until `is_so`; EndedError, with the end of the log, if the program ends first or the time does."""
        deadline = time.monotonic() + seconds
        while not is_so():
            if self.pid(name) is None:
                raise EndedError(f"{name} ended before {what}; {self._end_of_log(name)}")
            if time.monotonic() > deadline:
                raise EndedError(f"no {what} after {seconds:.0f} s; {self._end_of_log(name)}")
            time.sleep(_POLL_SECONDS)

    def _end_of_log(self, name: str) -> str:
        log = self.log(name)
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
        return "\n".join([f"the end of {log}:", *lines[-_LAST_LINES:]])


def started_at(pid: int) -> str | None:
    """The moment of a process's start in the kernel's ticks; None if it is gone, or dead and only not reaped yet."""
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)  # ours to reap if we started it in this very process
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, *fields = text.rpartition(")")[2].split()  # the name before it may hold blanks
    return None if state in "ZX" else fields[18]


def end(pid: int, with_signal: signal.Signals = signal.SIGKILL, patience_seconds: float = 5.0) -> None:
    """Returns when the process is gone."""
    assert pid > 1, f"{pid} is no program of ours; kill() would take it for a whole group"
    deadline = time.monotonic() + patience_seconds
    moment = started_at(pid)
    with suppress(ProcessLookupError):
        os.kill(pid, with_signal)
        while started_at(pid) == moment is not None:
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
            time.sleep(_POLL_SECONDS / 5)
