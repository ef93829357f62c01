"""The operator as a process of its own, before a real API server that knows CompressionJobs and no RayJob."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import urllib3

from limbeck.api.crd import custom_resource_definition
from limbeck.controller.names import JOBS
from limbeck.kube.errors import AlreadyExistsError, NotFoundError
from limbeck.kube.transport import Resource, Transport

pytestmark = pytest.mark.controlplane

Object = dict[str, Any]
CRDS = Resource("apiextensions.k8s.io", "v1", "customresourcedefinitions", False)
EVENTS = Resource("events.k8s.io", "v1", "events")


class Replica:
    """One `python -m limbeck.controller`, and what it writes to its log."""

    def __init__(self, log: Path, environment: dict[str, str]) -> None:
        self._log = log
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "limbeck.controller"], env=os.environ | environment, stderr=out
            )

    def said(self, event: str) -> Object | None:
        for line in self._log.read_text(encoding="utf-8").splitlines():
            if line.startswith("{") and (entry := json.loads(line))["event"] == event:
                return entry
        return None

    def get(self, path: str) -> tuple[int, str]:
        with urllib3.PoolManager(retries=False, timeout=5.0) as pool:
            answer = pool.request("GET", f"http://127.0.0.1:{self.said('started')['port']}{path}")
            return answer.status, answer.data.decode()


@pytest.fixture
def transport(control_plane, eventually) -> Transport:
    transport = Transport(control_plane.client())
    with contextlib.suppress(AlreadyExistsError):
        transport.create(CRDS, custom_resource_definition())
    eventually(lambda: is_served(transport))
    return transport


def is_served(transport: Transport) -> bool:
    try:
        transport.list(JOBS)
    except NotFoundError:
        return False
    return True


@pytest.fixture
def start(control_plane, namespace, tmp_path) -> Iterator[Callable[..., Replica]]:
    replicas: list[Replica] = []

    def start_one(**settings: str) -> Replica:
        environment = {
            "KUBECONFIG": str(control_plane.kubeconfig),
            "LIMBECK_OPERATOR_IMAGE": "registry.example/limbeck-runtime:1",
            "LIMBECK_OPERATOR_LIMBECK_NAMESPACE": namespace,
            "LIMBECK_OPERATOR_NAMESPACES": json.dumps([namespace]),
            "LIMBECK_OPERATOR_HOST": "127.0.0.1",
            "LIMBECK_OPERATOR_PORT": "0",
            **{f"LIMBECK_OPERATOR_{name}": value for name, value in settings.items()},
        }
        replicas.append(Replica(tmp_path / f"replica-{len(replicas)}.log", environment))
        return replicas[-1]

    yield start_one
    for replica in replicas:
        replica.process.kill()
        replica.process.wait()


@pytest.fixture
def eventually() -> Callable[[Callable[[], bool]], None]:
    """For what other processes do: looks again and again, for at most thirty seconds."""

    def wait(happened: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 30
        while not happened():
            assert time.monotonic() < deadline, "it never happened"
            time.sleep(0.02)

    return wait


def reason_of(transport: Transport, namespace: str, kind: str = "Reconciling") -> str:
    status = transport.get(JOBS, "emoji", namespace).get("status", {})
    return next((each["reason"] for each in status.get("conditions", []) if each["type"] == kind), "")


def test_without_kuberay_a_job_says_what_to_install(transport, namespace, start, build_job, eventually) -> None:
    replica = start()
    transport.create(JOBS, build_job(), namespace)
    eventually(lambda: reason_of(transport, namespace) == "KubeRayAbsent")
    status = transport.get(JOBS, "emoji", namespace)["status"]
    messages = [each["message"] for each in status["conditions"] if each["type"] == "Reconciling"]
    assert messages == ["the cluster serves no RayJob; install KubeRay 1.6 or later"]
    assert replica.get("/readyz") == (200, "ok")
    assert re.search(r"limbeck_operator_reconciles_total\{outcome=\"ok\"\} [1-9]", replica.get("/metrics")[1])


def test_a_job_that_was_there_before_is_found(transport, namespace, start, build_job, eventually) -> None:
    transport.create(JOBS, build_job(), namespace)
    start()
    eventually(lambda: reason_of(transport, namespace) == "KubeRayAbsent")


def test_a_job_that_only_the_models_refuse_is_failed_and_told(
    transport, namespace, start, build_job, eventually
) -> None:
    start()
    transport.create(JOBS, build_job(**{"spec.evaluation.explain": True}), namespace)
    eventually(lambda: reason_of(transport, namespace, "Failed") == "InvalidSpec")
    eventually(lambda: [each["reason"] for each in transport.list(EVENTS, namespace)["items"]] == ["InvalidSpec"])


def test_progress_is_no_reason_to_look_at_a_job(transport, namespace, start, build_job, eventually) -> None:
    replica = start()
    transport.create(JOBS, build_job(), namespace)
    eventually(lambda: reason_of(transport, namespace) == "KubeRayAbsent")

    def rounds() -> str:
        return "".join(re.findall(r"limbeck_operator_reconcile_seconds_count (\S+)", replica.get("/metrics")[1]))

    def shown() -> list[str]:
        return re.findall(r"limbeck_job_progress_ratio\{.*\} (\S+)", replica.get("/metrics")[1])

    eventually(lambda: rounds() != "")
    settled: list[str] = []
    eventually(lambda: settled.append(rounds()) or (len(settled) > 20 and len(set(settled[-20:])) == 1))
    before = rounds()
    for percent in (10, 40):
        change = {"status": {"progress": {"percent": percent, "lastUpdateTime": "2026-11-24T06:00:00Z"}}}
        transport.patch(JOBS, "emoji", change, namespace, subresource="status")
        eventually(lambda percent=percent: shown() == [str(percent / 100)])
    assert rounds() == before


def test_when_the_leader_is_killed_the_follower_acts(transport, namespace, start, build_job, eventually) -> None:
    leader = start()
    eventually(lambda: leader.said("acting") is not None)
    follower = start()
    eventually(lambda: follower.said("started") is not None and follower.get("/readyz")[0] == 200)
    assert follower.said("acting") is None
    leader.process.send_signal(signal.SIGKILL)
    killed_at = time.monotonic()
    transport.create(JOBS, build_job(), namespace)
    eventually(lambda: reason_of(transport, namespace) == "KubeRayAbsent")
    print(f"the follower acted {time.monotonic() - killed_at:.2f} s after the leader's death")


def test_a_leader_that_is_asked_to_stop_hands_over_and_ends_well(
    transport, namespace, start, build_job, eventually
) -> None:
    leader = start()
    eventually(lambda: leader.said("acting") is not None)
    follower = start()
    leader.process.send_signal(signal.SIGTERM)
    assert leader.process.wait(20) == 0
    eventually(lambda: follower.said("acting") is not None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"IMAGE": ""}, "LIMBECK_OPERATOR_IMAGE: String should have at least 1 character"),
        ({"WORKERS": "0"}, "LIMBECK_OPERATOR_WORKERS: Input should be greater than or equal to 1"),
        ({"SERVER_CA_FILE": "/nowhere/ca.crt"}, "No such file or directory: '/nowhere/ca.crt'"),
    ],
)
def test_settings_that_cannot_be_end_the_process_with_their_name(start, settings, message, tmp_path) -> None:
    assert start(**settings).process.wait(30) == 2
    assert message in (tmp_path / "replica-0.log").read_text(encoding="utf-8")
