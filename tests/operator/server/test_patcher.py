from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from limbeck.kube.errors import (
    ConflictError,
    ForbiddenError,
    InvalidError,
    KubeError,
    ServerError,
    TooManyRequestsError,
    UnreachableError,
)
from limbeck.server.cluster import JOBS
from limbeck.server.history import History
from limbeck.server.metrics import Metrics
from limbeck.server.patcher import Patcher

STARTED = ("run_started", {"job": "emoji", "steps": ["distil"], "epoch": 1, "attempt": 1})
WARNING = ("warning", {"message": "a"})


@pytest.fixture
def history(tmp_path: Path, clock: Any) -> Iterator[History]:
    opened = History(f"sqlite:///{tmp_path / 'history.sqlite'}", clock)
    yield opened
    opened.close()


@pytest.fixture
def patcher(cluster: Any, history: History, clock: Any) -> Patcher:
    return Patcher(cluster, history, Metrics(), clock, interval_seconds=5, retention_days=30)


def test_a_jobs_status_gets_what_is_the_servers_and_keeps_the_rest(
    patcher: Patcher, cluster: Any, history: History, record: Any
) -> None:
    uid = cluster.add_job("emoji", attempt=2)
    record(history, 1, STARTED, uid=uid)
    patcher.work()
    status = cluster.jobs["vision", "emoji"]["status"]
    assert set(status) == {"attempt", "progress", "steps"}
    assert [step["name"] for step in status["steps"]] == ["distil"]


def test_a_job_is_written_at_most_once_per_interval(
    patcher: Patcher, cluster: Any, history: History, record: Any, clock: Any
) -> None:
    uid = cluster.add_job("emoji")
    for number in range(1, 41):
        record(history, number, WARNING, uid=uid)
        patcher.work()
        clock.advance(0.5)
    assert len(cluster.applied) == 4
    clock.advance(5)
    patcher.work()
    assert len(cluster.applied) == 5
    assert history.behind() == 0


def test_nothing_is_written_while_nothing_changes(
    patcher: Patcher, cluster: Any, history: History, record: Any, clock: Any
) -> None:
    uid = cluster.add_job("emoji")
    record(history, 1, WARNING, uid=uid)
    for number in range(2, 50):
        patcher.work()
        clock.advance(5)
        record(history, number, uid=uid)
    assert len(cluster.applied) == 1


def test_a_job_that_is_gone_is_given_up(
    patcher: Patcher, cluster: Any, history: History, record: Any, clock: Any
) -> None:
    record(history, 1, WARNING, uid="uid-gone")
    patcher.work()
    clock.advance(60)
    patcher.work()
    assert [verb for verb, _ in cluster.calls] == ["get"]
    assert history.behind() == 0


def test_a_job_of_the_same_name_that_came_later_is_left_alone(
    patcher: Patcher, cluster: Any, history: History, record: Any, clock: Any
) -> None:
    record(history, 1, WARNING, uid="uid-gone")
    cluster.add_job("emoji")
    patcher.work()
    clock.advance(60)
    patcher.work()
    assert cluster.applied == []
    assert history.behind() == 0


@pytest.mark.parametrize(
    "fault",
    [
        ConflictError(409, "Conflict", "somebody else wrote"),
        ServerError(500, "InternalError", "etcd is gone"),
        UnreachableError("connection refused"),
        TooManyRequestsError(429, "TooManyRequests", "later", 1),
        ForbiddenError(403, "Forbidden", "no right to patch"),
    ],
)
def test_a_write_that_fails_is_done_again_later_and_not_at_once(
    patcher: Patcher, cluster: Any, history: History, record: Any, clock: Any, fault: KubeError
) -> None:
    uid = cluster.add_job("emoji")
    record(history, 1, STARTED, uid=uid)
    cluster.fail("patch", fault)
    patcher.work()
    patcher.work()
    assert [verb for verb, _ in cluster.calls].count("patch") == 1
    clock.advance(5)
    patcher.work()
    assert len(cluster.applied) == 1


def test_an_api_server_that_sheds_load_is_left_alone_for_as_long_as_it_says(
    patcher: Patcher, cluster: Any, history: History, record: Any
) -> None:
    for name in ("a", "b", "c"):
        record(history, 1, WARNING, uid=cluster.add_job(name), name=name)
    cluster.fail("patch", TooManyRequestsError(429, "TooManyRequests", "later", 30))
    assert patcher.work() == 30
    assert cluster.count("patch", JOBS) == 1


def test_a_write_that_was_to_wait_is_not_done_sooner_by_another_replica(
    patcher: Patcher, cluster: Any, history: History, record: Any, clock: Any
) -> None:
    record(history, 1, WARNING, uid=cluster.add_job("emoji"))
    cluster.fail("patch", TooManyRequestsError(429, "TooManyRequests", "later", 30))
    patcher.work()
    clock.advance(29)
    assert history.claim_due(5, 10) == []
    clock.advance(1)
    assert len(history.claim_due(5, 10)) == 1


def test_pauses_grow_while_the_api_server_stays_away_and_end_when_it_is_back(
    patcher: Patcher, cluster: Any, history: History, record: Any, clock: Any
) -> None:
    uid = cluster.add_job("emoji")
    record(history, 1, WARNING, uid=uid)
    cluster.fail("patch", *[UnreachableError("refused") for _ in range(6)])
    pauses = []
    for _ in range(7):
        pauses.append(patcher.work())
        clock.advance(pauses[-1])
    assert pauses == [5, 10, 20, 40, 60, 60, 0]
    record(history, 2, WARNING, uid=uid)
    clock.advance(5)
    cluster.fail("patch", UnreachableError("refused"))
    assert patcher.work() == 5


def test_a_status_that_the_schema_refuses_is_not_sent_again_until_it_changes(
    patcher: Patcher, cluster: Any, history: History, record: Any, clock: Any
) -> None:
    uid = cluster.add_job("emoji")
    record(history, 1, WARNING, uid=uid)
    cluster.fail("patch", InvalidError(422, "Invalid", "status.steps: too many"))
    for _ in range(10):
        patcher.work()
        clock.advance(10)
    assert cluster.count("patch", JOBS) == 1
    record(history, 2, WARNING, uid=uid)
    patcher.work()
    assert len(cluster.applied) == 1


def test_old_history_is_forgotten(patcher: Patcher, history: History, record: Any, clock: Any) -> None:
    patcher.work()
    record(history, 1, uid="uid-old")
    clock.advance(31 * 86_400)
    patcher.work()
    assert history.by_uid("uid-old") is None


def test_the_worker_outlives_faults_of_database_and_api_server(cluster: Any, history: History, record: Any) -> None:
    times = iter([0.0])

    def broken_then_well() -> float:
        for _ in times:
            raise OperationalError("select", {}, Exception("the database is away"))
        return 1_795_500_000.0

    patcher = Patcher(cluster, history, Metrics(), broken_then_well, interval_seconds=0.05, retention_days=30)
    record(history, 1, WARNING, uid=cluster.add_job("emoji"))
    cluster.fail("patch", UnreachableError("refused"))
    stop = threading.Event()
    worker = threading.Thread(target=patcher.run, args=(stop,))
    worker.start()
    try:
        assert cluster.refused.wait(20)
        assert worker.is_alive()
    finally:
        stop.set()
        worker.join(20)
    assert not worker.is_alive()
