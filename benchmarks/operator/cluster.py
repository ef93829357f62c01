"""A real API server with KubeRay's kinds, the operator and the mimic as processes, and what the audit log says."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import urllib3

from benchmarks.runner import ROOT
from limbeck.api.crd import custom_resource_definition
from limbeck.controller.names import JOBS
from limbeck.kube.transport import Resource, Transport

sys.path.append(str(ROOT / "tests" / "cluster"))

from controlplane import ControlPlane
from crds import install_crd
from kuberay import crds
from mimic import RUNS_ON, SUCCEEDED, Mimic
from operator_account import make_role, new_account, user_of

__all__ = ["RUNS_ON", "SUCCEEDED", "Mimic"]

Object = dict[str, Any]
NAMESPACE = "bench"
_SYSTEM = "limbeck-system"
_NAMESPACES = Resource("", "v1", "namespaces", False)


def number_of(name: str, default: int) -> int:
    """How many of something: LIMBECK_BENCH_<name>, else what the target says."""
    return int(os.environ.get(f"LIMBECK_BENCH_{name}", default))


@contextlib.contextmanager
def api_server() -> Iterator[ControlPlane]:
    """One with limbeck's and KubeRay's kinds, empty, and a role with the operator's rights."""
    with tempfile.TemporaryDirectory(prefix="limbeck-bench-") as folder:
        plane = ControlPlane(Path(folder) / "plane")
        try:
            plane.start()
            transport = Transport(plane.client())
            for crd in (custom_resource_definition(), *crds()):
                install_crd(transport, crd)
            make_role(transport)
            for name in (NAMESPACE, _SYSTEM):
                transport.create(_NAMESPACES, {"metadata": {"name": name}})
            yield plane
        finally:
            plane.stop()


@contextlib.contextmanager
def mimic(plane: ControlPlane, ending: str) -> Iterator[psutil.Process]:
    command = [sys.executable, "-m", "benchmarks.operator.play", str(plane.kubeconfig), ending]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "ready", f"the mimic ended with {process.wait()}"
        yield psutil.Process(process.pid)
    finally:
        process.kill()
        process.communicate()


@dataclass(frozen=True)
class Replica:
    """One operator process."""

    process: subprocess.Popen[bytes]
    log: Path
    user: str
    started: float

    def said(self, event: str) -> Object | None:
        for line in self.log.read_text(encoding="utf-8").splitlines():
            if line.startswith("{") and json.loads(line)["event"] == event:
                return dict(json.loads(line))
        return None

    def wait_until_it_acts(self) -> None:
        until(lambda: self.said("acting") is not None, 120)

    def metric(self, name: str) -> float:
        """The sum over all series of a metric."""
        started = self.said("started")
        assert started is not None
        with urllib3.PoolManager(retries=False, timeout=10.0) as pool:
            text = pool.request("GET", f"http://127.0.0.1:{started['port']}/metrics").data.decode()
        found = re.findall(rf"^{name}(?:\{{.*\}})? (\S+)$", text, re.MULTILINE)
        return sum(float(value) for value in found)

    def cpu_seconds(self) -> float:
        times = psutil.Process(self.process.pid).cpu_times()
        return float(times.user + times.system)

    def memory_mib(self) -> float:
        return float(psutil.Process(self.process.pid).memory_info().rss) / 2**20

    def stop(self) -> None:
        """As a node does that is drained: the lease is given back."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)


class Replicas:
    """Starts operators, each with an account of its own, and ends them all."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane
        self._folder = tempfile.TemporaryDirectory(prefix="limbeck-bench-operator-")
        self._all: list[Replica] = []

    def __enter__(self) -> Replicas:
        return self

    def __exit__(self, *_: object) -> None:
        for replica in self._all:
            replica.process.kill()
            replica.process.wait()
        self._folder.cleanup()

    def start(self) -> Replica:
        name = f"operator-{len(self._all)}"
        kubeconfig = new_account(self._plane, _SYSTEM, name, Path(self._folder.name))
        settings = {
            "IMAGE": "registry.example/limbeck-runtime:1",
            "LIMBECK_NAMESPACE": _SYSTEM,
            "HOST": "127.0.0.1",
            "PORT": "0",
        }
        environment = {f"LIMBECK_OPERATOR_{key}": value for key, value in settings.items()}
        environment["KUBECONFIG"] = str(kubeconfig)
        log = Path(self._folder.name) / f"{name}.log"
        started = time.monotonic()
        with log.open("wb") as out:
            command = [sys.executable, "-m", "limbeck.controller"]
            process = subprocess.Popen(command, env=os.environ | environment, stderr=out, stdin=subprocess.DEVNULL)
        self._all.append(Replica(process, log, user_of(_SYSTEM, name), started))
        return self._all[-1]


class KeptAlive:
    """One operator as a Deployment keeps it: started again when it ends, as it does when it loses its lease.

    It does so where the machine is so busy that a renewal of the lease waits for seconds.
    """

    def __init__(self, replicas: Replicas) -> None:
        self._replicas = replicas
        self._cpu_of_the_dead = 0.0
        self._last_cpu = 0.0
        self.num_restarts = 0
        self.current = replicas.start()
        self.users = {self.current.user}
        self.current.wait_until_it_acts()

    def look(self) -> Replica:
        """The one that runs."""
        if self.current.process.poll() is not None:
            self._cpu_of_the_dead += self._last_cpu
            self._last_cpu = 0.0
            self.num_restarts += 1
            self.current = self._replicas.start()
            self.users.add(self.current.user)
        return self.current

    def cpu_seconds(self) -> float:
        """Of all that ran; to be asked often, for of a dead one only what was seen last is known."""
        with contextlib.suppress(psutil.Error):
            self._last_cpu = self.look().cpu_seconds()
        return self._cpu_of_the_dead + self._last_cpu


def until(happened: Callable[[], bool], seconds: float, pause_seconds: float = 0.05) -> None:
    """Looks again and again. Raises TimeoutError."""
    deadline = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > deadline:
            raise TimeoutError(f"it did not happen within {seconds:g} s")
        time.sleep(pause_seconds)


def writes(plane: ControlPlane, users: set[str]) -> list[Object]:
    """What those users wrote, from the audit log, in the order of arrival; leases apart."""
    found = []
    for line in plane.audit_log.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n") and (entry := json.loads(line))["user"]["username"] in users:
            found.append(entry)
    found = [
        each for each in found if each["objectRef"]["resource"] != "leases" and each["responseStatus"]["code"] < 300
    ]
    return sorted(found, key=lambda each: str(each["requestReceivedTimestamp"]))


def job(name: str, **spec: Any) -> Object:
    """The smallest one that can be run."""
    return {
        "apiVersion": "limbeck.dev/v1alpha1",
        "kind": "CompressionJob",
        "metadata": {"name": name},
        "spec": {
            "target": {"sizeRatio": 4},
            "task": "ImageText",
            "teacher": {"model": {"loader": "Transformers", "uri": "s3://models/clip"}},
            "data": {
                "train": {"uri": "s3://pairs/{000..127}.tar", "format": "WebDataset"},
                "validationPercent": 5,
                "columns": {"image": "png", "text": "txt"},
            },
            "output": {"uri": f"s3://results/{name}"},
            **spec,
        },
    }


def phases(transport: Transport) -> dict[str, str]:
    """The phase of every job, page by page."""
    found: dict[str, str] = {}
    token: str | None = None
    while True:
        page = transport.list(JOBS, NAMESPACE, limit=1000, continue_=token)
        for item in page["items"]:
            found[item["metadata"]["name"]] = str((item.get("status") or {}).get("phase", ""))
        token = page["metadata"].get("continue")
        if not token:
            return found
