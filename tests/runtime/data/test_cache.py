"""The cache of decoded shards: bounded, each shard decoded once at a time, failures not kept."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from limbeck_runtime.data.cache import ShardCache
from limbeck_runtime.data.decoded import DecodedShard


def _shard(num_bytes: int) -> DecodedShard:
    return DecodedShard(np.zeros((num_bytes, 1, 1, 1), np.uint8), None, None, None)


class _Decoder:
    """Counts what it decodes; may be told to wait, or to fail."""

    def __init__(self) -> None:
        self.decoded: list[int] = []
        self.failures_left = 0
        self.started = threading.Semaphore(0)
        self.may_end = threading.Event()
        self.may_end.set()

    def __call__(self, number: int) -> DecodedShard:
        self.decoded.append(number)
        self.started.release()
        assert self.may_end.wait(30)
        if self.failures_left:
            self.failures_left -= 1
            raise OSError("the store does not answer")
        return _shard(10)


def _cache(decoder: _Decoder, pool: ThreadPoolExecutor, max_bytes: int = 30) -> ShardCache:
    return ShardCache(decoder, lambda number: 10, max_bytes, pool)


def _touch(cache: ShardCache, *numbers: int) -> None:
    for number in numbers:
        with cache.holding(number):
            pass


def test_the_least_recently_used_shard_goes_first() -> None:
    decoder = _Decoder()
    with ThreadPoolExecutor(1) as pool:
        cache = _cache(decoder, pool)
        _touch(cache, 0, 1, 2, 0, 3, 0, 1)
    assert decoder.decoded == [0, 1, 2, 3, 1]
    stats = cache.stats
    assert (stats.hits, stats.misses, stats.evictions) == (2, 5, 2)
    assert stats.peak_bytes == 30


def test_a_shard_that_is_held_stays_and_others_wait_for_room() -> None:
    decoder = _Decoder()
    with ThreadPoolExecutor(2) as pool:
        cache = _cache(decoder, pool, max_bytes=10)
        with cache.holding(0):
            waiting = pool.submit(_touch, cache, 1)
            assert not waiting.done()
            assert decoder.decoded == [0]
        waiting.result(30)
    assert decoder.decoded == [0, 1]
    assert cache.stats.peak_bytes == 10


def test_many_threads_that_want_one_shard_decode_it_once() -> None:
    decoder = _Decoder()
    decoder.may_end.clear()
    with ThreadPoolExecutor(8) as pool:
        cache = _cache(decoder, pool)
        users = [pool.submit(_touch, cache, 5) for _ in range(6)]
        assert decoder.started.acquire(timeout=30)
        decoder.may_end.set()
        for user in users:
            user.result(30)
    assert decoder.decoded == [5]


def test_room_is_reserved_before_decoding_so_that_shards_in_the_making_count() -> None:
    decoder = _Decoder()
    decoder.may_end.clear()
    with ThreadPoolExecutor(8) as pool:
        cache = _cache(decoder, pool, max_bytes=20)
        users = [pool.submit(_touch, cache, number) for number in range(4)]
        for _ in range(2):
            assert decoder.started.acquire(timeout=30)
        assert not decoder.started.acquire(blocking=False)
        assert cache.stats.num_bytes == 20
        decoder.may_end.set()
        for user in users:
            user.result(30)
    assert sorted(decoder.decoded) == [0, 1, 2, 3]
    assert cache.stats.peak_bytes == 20


def test_decoding_ahead_pushes_out_only_what_nobody_wants() -> None:
    decoder = _Decoder()
    with ThreadPoolExecutor(1) as pool:
        cache = _cache(decoder, pool, max_bytes=20)
        cache.want([0, 2])
        _touch(cache, 0, 1)
        cache.prefetch(2, lambda: False)
        _touch(cache, 0, 2)
        stopped = threading.Event()
        waiting = threading.Thread(target=cache.prefetch, args=(3, stopped.is_set), daemon=True)
        waiting.start()
        stopped.set()
        cache.wake()
        waiting.join(30)
    assert not waiting.is_alive()
    assert decoder.decoded == [0, 1, 2]


def test_decoding_ahead_goes_on_as_soon_as_a_shard_is_no_longer_wanted() -> None:
    decoder = _Decoder()
    with ThreadPoolExecutor(1) as pool:
        cache = _cache(decoder, pool, max_bytes=10)
        cache.want([0])
        _touch(cache, 0)
        waiting = threading.Thread(target=cache.prefetch, args=(1, lambda: False), daemon=True)
        waiting.start()
        cache.unwant([0])
        waiting.join(30)
        assert not waiting.is_alive()
        _touch(cache, 1)
    assert decoder.decoded == [0, 1]


def test_a_failure_is_raised_and_forgotten() -> None:
    decoder = _Decoder()
    decoder.failures_left = 1
    with ThreadPoolExecutor(1) as pool:
        cache = _cache(decoder, pool)
        with pytest.raises(OSError, match="does not answer"):
            _touch(cache, 0)
        assert cache.stats.num_bytes == 0
        _touch(cache, 0)
    assert decoder.decoded == [0, 0]


def test_a_failure_while_decoding_ahead_is_left_to_who_needs_the_shard() -> None:
    decoder = _Decoder()
    decoder.failures_left = 1
    with ThreadPoolExecutor(1) as pool:
        cache = _cache(decoder, pool)
        cache.prefetch(0, lambda: False)
        pool.submit(lambda: None).result(30)
        assert cache.stats.num_bytes == 0
        _touch(cache, 0)
    assert decoder.decoded == [0, 0]


def test_a_cache_too_small_for_what_is_wanted_goes_on_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    decoder = _Decoder()
    with ThreadPoolExecutor(1) as pool:
        cache = _cache(decoder, pool, max_bytes=10)
        cache.want([0, 1])
        _touch(cache, 0, 1, 0)
    assert decoder.decoded == [0, 1, 0]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "windowShards` to at most 1" in caplog.text


def test_a_closed_cache_gives_an_error_and_no_wait() -> None:
    decoder = _Decoder()
    with ThreadPoolExecutor(1) as pool:
        cache = _cache(decoder, pool)
        cache.close()
        with pytest.raises(RuntimeError, match="closed"):
            _touch(cache, 0)
    assert decoder.decoded == []
