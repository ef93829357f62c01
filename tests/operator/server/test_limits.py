from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from limbeck.server.limits import Buckets, Cache


def test_a_value_is_believed_for_as_long_as_the_caller_says(clock: Any) -> None:
    cache: Cache[str, int] = Cache(10, clock)
    cache.put("a", 1)
    clock.advance(5)
    assert (cache.get("a", 5), cache.get("a", 4.9), cache.get("b", 5)) == (1, None, None)


def test_a_clock_that_is_set_back_does_not_make_a_value_last_for_ever(clock: Any) -> None:
    cache: Cache[str, int] = Cache(10, clock)
    cache.put("a", 1)
    clock.advance(-3600)
    assert cache.get("a", 60) is None


def test_the_oldest_of_too_many_values_goes(clock: Any) -> None:
    cache: Cache[str, int] = Cache(2, clock)
    for key, value in {"a": 1, "b": 2, "c": 3}.items():
        cache.put(key, value)
    assert (cache.get("a", 1), cache.get("b", 1), cache.get("c", 1)) == (None, 2, 3)


def test_a_dropped_value_is_gone(clock: Any) -> None:
    cache: Cache[str, int] = Cache(2, clock)
    cache.put("a", 1)
    cache.drop("a")
    assert cache.get("a", 1) is None


def test_a_bucket_allows_a_burst_and_then_its_rate(clock: Any) -> None:
    buckets: Buckets[str] = Buckets(2, 3, clock)
    assert [buckets.take("a") for _ in range(4)] == [0, 0, 0, 0.5]
    clock.advance(0.5)
    assert [buckets.take("a"), buckets.take("a")] == [0, 0.5]


def test_each_key_has_a_bucket_of_its_own(clock: Any) -> None:
    buckets: Buckets[str] = Buckets(1, 1, clock)
    assert [buckets.take("a"), buckets.take("b"), buckets.take("a")] == [0, 0, 1]


@pytest.mark.parametrize("pause", [0.0, -100.0])
def test_a_bucket_that_waits_for_no_time_to_pass_gives_nothing(clock: Any, pause: float) -> None:
    buckets: Buckets[str] = Buckets(1, 1, clock)
    take: Callable[[str], float] = buckets.take
    take("a")
    clock.advance(pause)
    assert take("a") > 0
