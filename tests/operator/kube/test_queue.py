from __future__ import annotations

import random
import threading
from collections.abc import Callable

import pytest

from limbeck.kube.backoff import Backoff
from limbeck.kube.queue import KeyedQueue

EXACT = Backoff(base_seconds=1, cap_seconds=8, spread=0)


@pytest.fixture
def queue(clock: Callable[[], float]) -> KeyedQueue[str]:
    return KeyedQueue(EXACT, clock=clock)


def test_a_key_that_is_added_many_times_is_handed_out_once(queue: KeyedQueue[str]) -> None:
    for key in ("a", "b", "a", "a"):
        queue.add(key)
    assert [queue.take(0), queue.take(0), queue.take(0)] == ["a", "b", None]


def test_a_key_in_work_is_not_handed_to_a_second_worker_but_comes_again_after(queue: KeyedQueue[str]) -> None:
    queue.add("a")
    assert queue.take(0) == "a"
    queue.add("a")
    assert queue.take(0) is None
    queue.done("a")
    assert queue.take(0) == "a"
    queue.done("a")
    assert queue.take(0) is None


def test_a_delayed_key_comes_when_its_time_has_come(queue: KeyedQueue[str], clock) -> None:
    queue.add_after("a", 5)
    clock.advance(4.9)
    assert queue.take(0) is None
    clock.advance(0.1)
    assert queue.take(0) == "a"


def test_delayed_keys_come_in_order_of_their_times(queue: KeyedQueue[str], clock) -> None:
    for key, seconds in (("late", 9), ("early", 1), ("middle", 5)):
        queue.add_after(key, seconds)
    clock.advance(10)
    assert [queue.take(0) for _ in range(3)] == ["early", "middle", "late"]


@pytest.mark.parametrize("delays", [(2, 7), (7, 2)])
def test_of_two_delays_the_earlier_counts(queue: KeyedQueue[str], clock, delays: tuple[float, float]) -> None:
    for seconds in delays:
        queue.add_after("a", seconds)
    clock.advance(2)
    assert queue.take(0) == "a"
    queue.done("a")
    clock.advance(10)
    assert queue.take(0) is None


def test_taking_a_key_forgets_its_delay(queue: KeyedQueue[str], clock) -> None:
    queue.add_after("a", 5)
    queue.add("a")
    assert queue.take(0) == "a"
    queue.done("a")
    clock.advance(10)
    assert queue.take(0) is None


def test_a_delay_set_while_in_work_holds_afterwards(queue: KeyedQueue[str], clock) -> None:
    queue.add("a")
    queue.take(0)
    queue.add_after("a", 5)
    queue.done("a")
    assert queue.take(0) is None
    clock.advance(5)
    assert queue.take(0) == "a"


def test_a_delay_that_ends_while_in_work_brings_the_key_again_after(queue: KeyedQueue[str], clock) -> None:
    queue.add("a")
    queue.take(0)
    queue.add_after("a", 5)
    clock.advance(6)
    assert queue.take(0) is None
    queue.done("a")
    assert queue.take(0) == "a"


def test_each_failure_of_a_key_doubles_its_delay_up_to_the_cap(queue: KeyedQueue[str]) -> None:
    assert [queue.retry("a") for _ in range(6)] == [1, 2, 4, 8, 8, 8]
    assert queue.retry("other") == 1


def test_a_success_makes_the_next_failure_the_first(queue: KeyedQueue[str]) -> None:
    queue.retry("a")
    queue.retry("a")
    queue.forget("a")
    assert queue.retry("a") == 1


def test_what_the_server_asks_for_is_waited_at_least(queue: KeyedQueue[str], clock) -> None:
    assert queue.retry("a", at_least=30) == 30
    clock.advance(29)
    assert queue.take(0) is None
    clock.advance(1)
    assert queue.take(0) == "a"


def test_a_thousand_reschedulings_leave_no_thousand_entries(queue: KeyedQueue[str]) -> None:
    for _ in range(1000):
        queue.add("a")
        queue.take(0)
        queue.add_after("a", 600)
        queue.done("a")
    assert len(queue._heap) < 100


def test_shutting_down_wakes_who_waits_and_drops_what_is_queued() -> None:
    queue: KeyedQueue[str] = KeyedQueue()
    taken: list[str | None] = []
    waiting = threading.Thread(target=lambda: taken.append(queue.take()))
    waiting.start()
    queue.shut_down()
    waiting.join(5)
    queue.add("a")
    assert (taken, queue.take()) == ([None], None)


def test_who_waits_for_a_delayed_key_is_woken_by_an_earlier_one() -> None:
    queue: KeyedQueue[str] = KeyedQueue()
    queue.add_after("late", 60)
    taken: list[str | None] = []
    waiting = threading.Thread(target=lambda: taken.append(queue.take()))
    waiting.start()
    queue.add_after("early", 0.01)
    waiting.join(5)
    assert taken == ["early"]


def test_a_wait_ends_by_itself_when_a_delayed_key_is_due() -> None:
    queue: KeyedQueue[str] = KeyedQueue()
    queue.add_after("a", 0.02)
    assert queue.take(10) == "a"


def test_many_takers_and_adders_never_work_on_one_key_at_a_time() -> None:
    queue: KeyedQueue[int] = KeyedQueue()
    in_work: set[int] = set()
    together: list[int] = []
    lock, handled = threading.Lock(), [0] * 7

    def take() -> None:
        while (key := queue.take()) is not None:
            with lock:
                if key in in_work:
                    together.append(key)
                in_work.add(key)
                handled[key] += 1
            with lock:
                in_work.discard(key)
            queue.done(key)

    def add(seed: int) -> None:
        choose = random.Random(seed)
        for _ in range(500):
            queue.add_after(choose.randrange(7), choose.choice((0, 0, 0.001)))

    takers = [threading.Thread(target=take) for _ in range(4)]
    adders = [threading.Thread(target=add, args=(seed,)) for seed in range(4)]
    for thread in takers + adders:
        thread.start()
    for thread in adders:
        thread.join(10)
    before = handled[0]
    queue.add(0)
    while handled[0] == before and takers[0].is_alive():
        takers[0].join(0.005)
    queue.shut_down()
    for thread in takers:
        thread.join(10)
    assert together == []
    assert all(handled)


def test_the_spread_keeps_many_from_coming_back_at_once_and_never_beyond_the_cap() -> None:
    backoff = Backoff(base_seconds=1, cap_seconds=8, spread=0.5, random=random.Random(0))
    delays = [backoff.delay(9) for _ in range(100)]
    assert 4 <= min(delays) < 5 < 7 < max(delays) <= 8


def test_a_thousand_failures_do_not_overflow() -> None:
    assert EXACT.delay(100_000) == 8
