"""The processes of a pod as the machine sees them: killed and stopped from outside, as an out-of-memory kill, a hung
container runtime or a node without power would. For the test cluster, whose one node is this machine.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

Pod = dict[str, Any]

_DRIVER = ["-m", "limbeck_runtime.driver"]


def of_container(pod: Pod, container: str = "") -> list[int]:
    """Pids of all that runs in a container of the pod, the first one unless named; they lie in its cgroup."""
    statuses = pod["status"]["containerStatuses"]
    names = [each["name"] for each in pod["spec"]["containers"]]
    wanted = container or names[0]
    (identity,) = [each["containerID"].rpartition("/")[2] for each in statuses if each["name"] == wanted]
    return [pid for pid, cgroup in _cgroups() if identity in cgroup]


def kill(pod: Pod) -> None:
    """SIGKILL for all of the first container at once; the pod itself stays, and its restart policy decides."""
    pids = of_container(pod)
    assert pids, f"no process runs in pod {pod['metadata']['name']}"
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def driver(pod: Pod) -> int:
    """Pid of limbeck's driver in a head pod; not of the shell, nor of the submitter, that name it too."""
    (found,) = [pid for pid in of_container(pod) if _is_driver(_command(pid))]
    return found


def keeper(pod: Pod) -> int:
    """Pid of the shim that holds the pod's containers: while it is stopped, nobody can end them."""
    pid = of_container(pod)[0]
    uid = pod["metadata"]["uid"]
    while uid in _cgroup(pid):
        pid = _parent(pid)
    assert "containerd-shim" in _command(pid)[0], f"{pid} is {_command(pid)[:1]}, no shim"
    return pid


def is_alive(pid: int) -> bool:
    """A process that is dead and only not reaped yet is not."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return text.rpartition(")")[2].split()[0] not in "ZX"


@contextmanager
def output_of(pid: int) -> Iterator[Callable[[], str]]:
    """A function that gives all that the process has written to its standard output, a file, also when it is gone."""
    with open(f"/proc/{pid}/fd/1", encoding="utf-8", errors="replace") as file:

        def said() -> str:
            file.seek(0)
            return file.read()

        yield said


@contextmanager
def stopped(pids: Iterable[int]) -> Iterator[None]:
    """SIGSTOP now and SIGCONT afterwards, whatever happens in between."""
    pids = list(pids)
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def _is_driver(command: list[str]) -> bool:
    return Path(command[0]).name.startswith("python") and command[1:3] == _DRIVER


def _cgroups() -> Iterator[tuple[int, str]]:
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            yield int(folder.name), _cgroup(int(folder.name))


def _cgroup(pid: int) -> str:
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cgroup").read_text(encoding="ascii")
    return ""


def _command(pid: int) -> list[str]:
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    return [""]


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[1])
