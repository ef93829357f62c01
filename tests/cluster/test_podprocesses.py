"""What is done to processes of this machine; what is in a pod, tests/e2e/test_faults.py sees."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import podprocesses
import pytest


@pytest.fixture
def child(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that says `begun` and sleeps."""
    code = "import time; print('begun', flush=True); time.sleep(600)"
    with (tmp_path / "out").open("wb") as out, subprocess.Popen([sys.executable, "-c", code], stdout=out) as process:
        wait(lambda: (tmp_path / "out").read_text() == "begun\n")
        yield process
        process.kill()


def wait(happened: object) -> None:
    assert callable(happened)
    deadline = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_process_is_stopped_and_goes_on_also_after_an_error(child: subprocess.Popen[bytes]) -> None:
    with pytest.raises(ValueError, match="on purpose"), podprocesses.stopped([child.pid]):  # noqa: PT012
        wait(lambda: state(child.pid) == "T")
        assert podprocesses.is_alive(child.pid)
        raise ValueError("on purpose")
    wait(lambda: state(child.pid) != "T")


def test_a_process_that_nobody_has_reaped_is_not_alive(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    wait(lambda: state(child.pid) == "Z")
    assert not podprocesses.is_alive(child.pid)


def test_what_a_process_said_can_be_read_when_it_is_gone(child: subprocess.Popen[bytes]) -> None:
    with podprocesses.output_of(child.pid) as said:
        child.kill()
        child.wait()
        assert said() == "begun\n"


def test_processes_are_found_by_the_container_in_their_cgroup() -> None:
    pod = {
        "spec": {"containers": [{"name": "ray-head"}]},
        "status": {"containerStatuses": [{"name": "ray-head", "containerID": "containerd://nobody-has-this"}]},
    }
    assert podprocesses.of_container(pod) == []
