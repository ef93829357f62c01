from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue

import pytest

from limbeck.kube.backoff import Backoff
from limbeck.kube.errors import TooManyRequestsError
from limbeck.kube.queue import KeyedQueue
from limbeck.kube.workers import Workers

FAST = Backoff(base_seconds=0.001, cap_seconds=0.01)


def test_a_reconcile_that_raises_is_tried_again_and_ends_no_worker() -> None:
    queue: KeyedQueue[str] = KeyedQueue(FAST)
    tries: SimpleQueue[str] = SimpleQueue()
    left = [ValueError("one"), KeyError("two")]

    def reconcile(key: str) -> None:
        if left:
            raise left.pop()
        tries.put(key)

    workers = Workers(queue, reconcile, num_workers=1)
    workers.start()
    queue.add("a")
    assert tries.get(timeout=5) == "a"
    assert workers.stop()
    assert queue.num_failures("a") == 0


def test_a_reconcile_is_called_again_when_it_asked_to_be() -> None:
    queue: KeyedQueue[str] = KeyedQueue(FAST)
    calls: SimpleQueue[str] = SimpleQueue()

    def reconcile(key: str) -> float:
        calls.put(key)
        return 0.01

    workers = Workers(queue, reconcile, num_workers=2)
    workers.start()
    queue.add("a")
    assert [calls.get(timeout=5) for _ in range(3)] == ["a", "a", "a"]
    assert workers.stop()


def test_what_the_server_asked_for_is_waited(clock) -> None:
    queue: KeyedQueue[str] = KeyedQueue(FAST, clock=clock)
    results: SimpleQueue[Exception | None] = SimpleQueue()

    def reconcile(key: str) -> None:
        raise TooManyRequestsError(429, "TooManyRequests", "later", retry_after=30)

    workers = Workers(queue, reconcile, num_workers=1, on_result=lambda _key, _seconds, error: results.put(error))
    workers.start()
    queue.add("a")
    assert isinstance(results.get(timeout=5), TooManyRequestsError)
    assert workers.stop()
    assert queue.seconds_until_due("a") == 30


def test_no_more_run_at_a_time_than_allowed(eventually: Callable[[Callable[[], bool]], None]) -> None:
    queue: KeyedQueue[int] = KeyedQueue(FAST)
    running: list[int] = []
    go_on = threading.Event()

    def reconcile(key: int) -> None:
        running.append(key)
        go_on.wait(5)

    workers = Workers(queue, reconcile, num_workers=3)
    workers.start()
    for key in range(10):
        queue.add(key)
    eventually(lambda: len(running) == 3 and len(queue) == 7)
    go_on.set()
    eventually(lambda: len(running) == 10)
    assert workers.stop()


def test_stopping_takes_no_new_key_and_says_when_one_will_not_end() -> None:
    queue: KeyedQueue[str] = KeyedQueue(FAST)
    started, go_on = threading.Event(), threading.Event()
    done: list[str] = []

    def reconcile(key: str) -> None:
        started.set()
        go_on.wait(5)
        done.append(key)

    workers = Workers(queue, reconcile, num_workers=1)
    workers.start()
    queue.add("in work")
    queue.add("queued")
    started.wait(5)
    assert not workers.stop(timeout_seconds=0.01)
    go_on.set()
    assert workers.stop()
    assert done == ["in work"]


def test_no_worker_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="num_workers must be at least 1, got 0"):
        Workers(KeyedQueue[str](), lambda _key: None, num_workers=0)
