from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from limbeck.kube.lease import EXIT_LEASE_LOST, LEASES, Lease, LeaseLostError, LeaseTimes, lead
from limbeck.kube.transport import Resource, Transport

QUICK = LeaseTimes(duration_seconds=1, deadline_seconds=0.6, renew_seconds=0.1, poll_seconds=0.02)
CONFIG_MAPS = Resource("", "v1", "configmaps")


def lease_object(serve, version: int, holder: str | None) -> Any:
    spec = {"holderIdentity": holder, "leaseDurationSeconds": 15, "leaseTransitions": 3}
    return serve.raw(200, json.dumps(serve.item("replicas", version, spec=spec)).encode())


def test_a_holder_whose_server_falls_silent_is_none_by_its_deadline(server, serve) -> None:
    server.lists.append(lease_object(serve, 1, None))
    server.writes.extend([lease_object(serve, 2, "me"), *[serve.silence()] * 20])
    lease = Lease(server.transport(), "shop", "replicas", "me", times=QUICK)
    assert lease.acquire(threading.Event())
    acquired_at = time.monotonic()
    with pytest.raises(LeaseLostError, match="lease shop/replicas is lost to me"):
        lease.keep(threading.Event())
    assert time.monotonic() - acquired_at < QUICK.duration_seconds
    assert not lease.is_held()


def test_a_holder_keeps_what_a_short_failure_of_the_server_did_not_let_it_renew(server, serve, eventually) -> None:
    server.lists.append(lease_object(serve, 1, None))
    failures = [serve.silence(), serve.status(500, "InternalError")]
    server.writes.extend([lease_object(serve, 2, "me"), *failures, *[lease_object(serve, 3, "me")] * 100])
    lease = Lease(server.transport(), "shop", "replicas", "me", times=QUICK)
    assert lease.acquire(threading.Event())
    stop = threading.Event()
    keeper = threading.Thread(target=lease.keep, args=(stop,))
    keeper.start()
    server.wait_for("write", 6)
    assert lease.is_held()
    stop.set()
    keeper.join(5)


def test_a_renewal_whose_answer_was_lost_is_recognised_as_our_own(server, serve) -> None:
    server.lists.extend([lease_object(serve, 1, None), lease_object(serve, 3, "me")])
    server.writes.extend([lease_object(serve, 2, "me"), serve.status(409, "Conflict"), lease_object(serve, 4, "me")])
    lease = Lease(server.transport(), "shop", "replicas", "me", times=QUICK)
    assert lease.acquire(threading.Event())
    assert lease._renew()
    assert server.seen("write")[2].body["metadata"]["resourceVersion"] == "3"


def test_a_lease_that_another_has_taken_is_lost_at_once(server, serve) -> None:
    server.lists.extend([lease_object(serve, 1, None), lease_object(serve, 3, "you")])
    server.writes.extend([lease_object(serve, 2, "me"), serve.status(409, "Conflict")])
    times = LeaseTimes(duration_seconds=60, deadline_seconds=50, renew_seconds=0.05)
    lease = Lease(server.transport(), "shop", "replicas", "me", times=times)
    assert lease.acquire(threading.Event())
    asked_at = time.monotonic()
    with pytest.raises(LeaseLostError):
        lease.keep(threading.Event())
    assert time.monotonic() - asked_at < 10
    assert not lease.is_held()


def test_a_follower_takes_only_what_has_not_changed_for_its_duration_on_its_own_clock(server, serve, clock) -> None:
    """Never by the renewTime in the object, which is another machine's clock."""
    lease = Lease(server.transport(), "shop", "replicas", "me", times=QUICK, clock=clock)
    server.lists.append(lease_object(serve, 1, "you"))
    assert not lease.try_acquire()
    clock.advance(14.9)
    assert not lease.try_acquire()
    server.lists[0] = lease_object(serve, 2, "you")  # renewed at the last moment
    assert not lease.try_acquire()
    clock.advance(14.9)
    assert not lease.try_acquire()
    clock.advance(0.2)
    server.writes.append(lease_object(serve, 3, "me"))
    assert lease.try_acquire()
    (write,) = server.seen("write")
    assert write.body["metadata"]["resourceVersion"] == "2"
    assert write.body["spec"]["leaseTransitions"] == 4


def test_a_lease_object_that_says_nothing_is_free(server, serve) -> None:
    server.lists.append(serve.raw(200, json.dumps(serve.item("replicas", 1)).encode()))
    server.writes.append(lease_object(serve, 2, "me"))
    assert Lease(server.transport(), "shop", "replicas", "me", times=QUICK).try_acquire()


def test_of_two_followers_the_slower_one_waits_on(server, serve) -> None:
    server.lists.append(lease_object(serve, 1, None))
    server.writes.append(serve.status(409, "Conflict"))
    assert not Lease(server.transport(), "shop", "replicas", "me", times=QUICK).try_acquire()


def test_a_process_that_slept_through_its_deadline_knows_it_before_it_writes(server, serve, clock) -> None:
    server.lists.append(lease_object(serve, 1, None))
    server.writes.append(lease_object(serve, 2, "me"))
    lease = Lease(server.transport(), "shop", "replicas", "me", times=QUICK, clock=clock)
    assert lease.try_acquire()
    assert lease.is_held()
    clock.advance(QUICK.deadline_seconds)
    assert not lease.is_held()


def test_waiting_for_the_lease_survives_an_unreachable_server_and_ends_on_stop(server, serve) -> None:
    server.lists.append(serve.status(500, "InternalError"))
    stop = threading.Event()
    results: list[bool] = []
    lease = Lease(server.transport(), "shop", "replicas", "me", times=QUICK)
    waiting = threading.Thread(target=lambda: results.append(lease.acquire(stop)))
    waiting.start()
    server.wait_for("list", 3)
    stop.set()
    waiting.join(5)
    assert results == [False]


def test_losing_the_lease_exits_the_process_even_while_it_still_starts(server, serve) -> None:
    server.lists.append(lease_object(serve, 1, None))
    server.writes.extend([lease_object(serve, 2, "me"), *[serve.status(500, "InternalError")] * 100])
    codes: list[int] = []
    stop = threading.Event()
    lease = Lease(server.transport(), "shop", "replicas", "me", times=QUICK)
    lead(lease, lambda: stop.wait(10) and None, stop, exit_process=codes.append)
    assert codes == [EXIT_LEASE_LOST]


@pytest.mark.parametrize("times", [{"renew_seconds": 4.0}, {"deadline_seconds": 4.0}, {"renew_seconds": 0.0}])
def test_times_that_let_two_hold_it_at_once_are_refused(times: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="renew_seconds < deadline_seconds < duration_seconds"):
        LeaseTimes(**times)


@pytest.fixture
def replica(control_plane, namespace) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Starts a replica in a process of its own; it has said "waiting"."""
    Transport(control_plane.client()).create(CONFIG_MAPS, {"metadata": {"name": "board"}}, namespace)
    started: list[subprocess.Popen[str]] = []

    def start(identity: str) -> subprocess.Popen[str]:
        script = Path(__file__).with_name("lease_holder.py")
        command = [sys.executable, str(script), str(control_plane.kubeconfig), namespace, identity]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, stderr=subprocess.PIPE)
        started.append(process)
        assert said(process) == "waiting"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def said(process: subprocess.Popen[str]) -> str:
    """The next word of a replica; its log lines go to the same place."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() in ("waiting", "acting"):
            return line.strip()
    assert process.stderr is not None
    raise AssertionError(f"the replica ended with {process.wait()}: {process.stderr.read()}")


def board_writes(control_plane, namespace: str) -> list[tuple[datetime, str]]:
    """When who changed the board, from the API server's audit log; the last line may be unfinished."""
    writes = []
    for line in control_plane.audit_log.read_text().splitlines(keepends=True):
        if line.endswith("\n") and f'"namespace":"{namespace}"' in line:
            entry = json.loads(line)
            if entry["objectRef"].get("name") == "board" and entry["responseStatus"]["code"] == 200:
                writes.append((datetime.fromisoformat(entry["requestReceivedTimestamp"]), entry["userAgent"]))
    return writes


@pytest.mark.controlplane
def test_after_a_kill_of_the_leader_the_follower_acts_within_five_seconds_and_none_writes_twice(
    control_plane, namespace, replica, eventually
) -> None:
    leader = replica("first")
    assert said(leader) == "acting"
    follower = replica("second")
    eventually(lambda: len(board_writes(control_plane, namespace)) > 20)
    killed_at = datetime.now().astimezone()
    leader.send_signal(signal.SIGKILL)
    assert said(follower) == "acting"
    eventually(lambda: "second" in {who for _, who in board_writes(control_plane, namespace)})
    writes = board_writes(control_plane, namespace)
    order = [who for _, who in writes]
    assert order == sorted(order)  # none of the first after the second began
    first_of_follower = next(at for at, who in writes if who == "second")
    took = (first_of_follower - killed_at).total_seconds()
    print(f"the follower acted {took:.2f} s after the kill")
    assert took <= 5


@pytest.mark.controlplane
def test_a_leader_that_was_stopped_and_continued_writes_no_more_and_exits(
    control_plane, namespace, replica, eventually
) -> None:
    leader = replica("first")
    assert said(leader) == "acting"
    follower = replica("second")
    leader.send_signal(signal.SIGSTOP)
    assert said(follower) == "acting"
    eventually(lambda: "second" in {who for _, who in board_writes(control_plane, namespace)})
    leader.send_signal(signal.SIGCONT)
    assert leader.wait(10) == EXIT_LEASE_LOST
    order = [who for _, who in board_writes(control_plane, namespace)]
    assert order == sorted(order)


@pytest.mark.controlplane
def test_a_leader_that_is_asked_to_stop_hands_over_at_once(control_plane, namespace, replica) -> None:
    leader = replica("first")
    assert said(leader) == "acting"
    follower = replica("second")
    asked_at = time.monotonic()
    leader.send_signal(signal.SIGTERM)
    assert said(follower) == "acting"
    assert time.monotonic() - asked_at < 2
    assert leader.wait(5) == 0
    order = [who for _, who in board_writes(control_plane, namespace)]
    assert order == sorted(order)


@pytest.mark.controlplane
def test_a_lease_that_somebody_deleted_is_made_again(control_plane, namespace) -> None:
    transport = Transport(control_plane.client())
    lease = Lease(transport, namespace, "replicas", f"me-{os.getpid()}")
    assert lease.acquire(threading.Event())
    transport.delete(LEASES, "replicas", namespace)
    assert lease._renew()
    assert transport.get(LEASES, "replicas", namespace)["spec"]["holderIdentity"] == lease.identity
    lease.release()
    assert "holderIdentity" not in transport.get(LEASES, "replicas", namespace)["spec"]
    assert not lease.is_held()
