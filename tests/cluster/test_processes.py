"""Programs by their pid: found again, ended, and never mistaken for somebody else's."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

if TYPE_CHECKING:
    from processes import Daemons


@pytest.fixture
def daemons(tmp_path: Path) -> Daemons:
    from processes import Daemons

    return Daemons(tmp_path / "pids", tmp_path / "logs")


def test_a_program_is_found_again_by_who_did_not_start_it(daemons: Daemons, tmp_path: Path) -> None:
    from processes import Daemons

    pid = daemons.start("sleeper", ["sleep", "1000"])
    other = Daemons(tmp_path / "pids", tmp_path / "logs")
    try:
        assert other.running() == {"sleeper": pid}
        assert os.getsid(pid) == pid
    finally:
        other.stop("sleeper")
    assert other.running() == {}
    assert not psutil.pid_exists(pid)


def test_a_pid_that_another_process_got_is_left_alone(daemons: Daemons, tmp_path: Path) -> None:
    pid = daemons.start("sleeper", ["sleep", "1000"])
    record = tmp_path / "pids" / "sleeper"
    truth = record.read_text()
    record.write_text(f"{pid} 1")
    daemons.stop("sleeper")
    assert psutil.pid_exists(pid)
    record.write_text(truth)
    daemons.stop("sleeper")
    assert not psutil.pid_exists(pid)


def test_one_that_will_not_end_by_itself_is_killed(daemons: Daemons) -> None:
    stubborn = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('on', flush=True); time.sleep(99)"
    )
    pid = daemons.start("stubborn", [sys.executable, "-c", stubborn])
    daemons.wait("stubborn", 20, "its word", lambda: "on" in daemons.log("stubborn").read_text())
    daemons.stop("stubborn", signal.SIGTERM, patience_seconds=0.2)
    assert not psutil.pid_exists(pid)


def test_waiting_for_one_that_ended_says_so_with_the_end_of_its_log(daemons: Daemons) -> None:
    from processes import EndedError

    daemons.start("failing", [sys.executable, "-c", "print('no such file'); raise SystemExit(3)"])
    with pytest.raises(EndedError, match=r"failing ended before an answer; the end of .*\nno such file"):
        daemons.wait("failing", 20, "an answer", lambda: False)


def test_a_wait_has_an_end(daemons: Daemons) -> None:
    from processes import EndedError

    daemons.start("sleeper", ["sleep", "1000"])
    try:
        with pytest.raises(EndedError, match="no answer after 0 s"):
            daemons.wait("sleeper", 0.2, "answer", lambda: False)
    finally:
        daemons.stop("sleeper")


def test_a_program_that_is_not_here_is_named(daemons: Daemons) -> None:
    with pytest.raises(FileNotFoundError, match="broken is started by no-such-program, which is not here"):
        daemons.start("broken", ["no-such-program"])
    assert daemons.running() == {}
