"""Streams: in order, ahead of the consumer, bounded, and gone when closed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from limbeck.api.v1alpha1.data import DataFormat
from limbeck_runtime.data.errors import ShardChangedError
from limbeck_runtime.data.index import DataIndex
from limbeck_runtime.data.loader import BatchLoader
from limbeck_runtime.models.preprocessing import Preprocessing

Plan = Iterator[tuple[np.ndarray, int]]


def _plan(index: DataIndex, batch_size: int = 5) -> list[tuple[np.ndarray, int]]:
    order = np.random.default_rng(1).permutation(index.positions())
    return [(order[start : start + batch_size], 0) for start in range(0, len(order), batch_size)]


def _threads() -> set[str]:
    return {thread.name.rpartition("_")[0] or thread.name for thread in threading.enumerate()} & {
        "limbeck-plan",
        "limbeck-batches",
        "limbeck-decode",
        "limbeck-shards",
    }


def test_batches_come_in_the_plans_order(tars: Any, preprocessing: Preprocessing) -> None:
    index = tars.index()
    plan = _plan(index)
    with BatchLoader(index, preprocessing) as loader, loader.stream(plan) as stream:
        keys = [batch.keys for batch in stream]
        with pytest.raises(StopIteration):
            next(stream)
    assert keys == [index.keys(positions) for positions, _ in plan]


def test_decoding_runs_ahead_of_the_consumer(tars: Any, preprocessing: Preprocessing) -> None:
    index = tars.index()
    reached_the_end = threading.Event()

    def plan() -> Plan:
        yield index.positions()[:4], 0
        yield index.positions()[20:24], 0
        reached_the_end.set()

    with BatchLoader(index, preprocessing) as loader, loader.stream(plan()) as stream:
        assert reached_the_end.wait(30)  # though nobody has asked for a batch yet
        assert len(list(stream)) == 2


def test_a_plan_that_waits_does_not_hold_back_the_batches_before(tars: Any, preprocessing: Preprocessing) -> None:
    index = tars.index()
    may_go_on = threading.Event()

    def plan() -> Plan:
        yield index.positions()[:4], 0
        assert may_go_on.wait(30)
        yield index.positions()[4:8], 0

    with BatchLoader(index, preprocessing) as loader, loader.stream(plan()) as stream:
        assert next(stream).keys[0] == "s000"
        may_go_on.set()
        assert next(stream).keys[0] == "s004"


def test_an_exception_of_the_plan_reaches_the_consumer_after_the_batches_before(
    tars: Any, preprocessing: Preprocessing
) -> None:
    index = tars.index()

    def plan() -> Plan:
        yield index.positions()[:4], 0
        raise OSError("the teacher died")

    with BatchLoader(index, preprocessing) as loader, loader.stream(plan()) as stream:
        assert len(next(stream)) == 4
        with pytest.raises(OSError, match="the teacher died"):
            next(stream)
        assert _threads() <= {"limbeck-decode", "limbeck-shards"}


def test_an_exception_while_decoding_reaches_the_consumer_in_its_turn(
    builders: Any, preprocessing: Preprocessing
) -> None:
    data_set = builders.data_set(DataFormat.WEB_DATASET)
    data_set.add("a", {"k0": builders.whole_sample(0)}).add("b", {"k1": builders.whole_sample(1)})
    index = data_set.index()
    data_set.layout.write(data_set.folder, "b", {"k1": builders.whole_sample(2)})
    with BatchLoader(index, preprocessing) as loader:
        stream = loader.stream([(np.array([[0, 0]]), 0), (np.array([[1, 0]]), 0)])
        assert next(stream).keys == ("k0",)
        with pytest.raises(ShardChangedError, match=r"b\.tar"):
            next(stream)


def test_closing_ends_all_threads_even_in_the_middle(tars: Any, preprocessing: Preprocessing) -> None:
    index = tars.index()
    endless = (item for _ in iter(int, 1) for item in _plan(index))
    with BatchLoader(index, preprocessing, cache_bytes=10_000) as loader:
        stream = loader.stream(endless)
        assert next(stream)
        assert "limbeck-batches" in _threads()
        stream.close()
        assert not _threads() & {"limbeck-plan", "limbeck-batches"}
        with pytest.raises(StopIteration):
            next(stream)
        # A new stream on the same loader works.
        with loader.stream(_plan(index)) as again:
            assert sum(len(batch) for batch in again) == 47
    assert not _threads()


def test_closing_the_loader_closes_its_streams(tars: Any, preprocessing: Preprocessing) -> None:
    index = tars.index()
    loader = BatchLoader(index, preprocessing)
    stream = loader.stream(_plan(index))
    loader.close()
    assert stream.closed
    assert not _threads()
    with pytest.raises(RuntimeError, match="closed"):
        loader.batch(np.array([[0, 0]]))


def test_what_waits_for_the_consumer_is_bounded_in_bytes(tars: Any, preprocessing: Preprocessing) -> None:
    index = tars.index()
    pulled = []

    def plan() -> Plan:
        for number in range(500):
            pulled.append(number)
            yield index.positions()[number % 40 : number % 40 + 5], 0

    with BatchLoader(index, preprocessing, cache_bytes=80_000) as loader, loader.stream(plan()) as stream:
        num_bytes = [batch.num_bytes for batch in stream]
        assert max(num_bytes) <= stream.peak_ready_bytes <= 10_000
        assert loader.stats.peak_bytes <= 70_000
    assert len(pulled) == 500


def test_the_plan_is_read_a_bounded_way_ahead(tars: Any, preprocessing: Preprocessing) -> None:
    index = tars.index()
    pulled = 0

    def plan() -> Plan:
        nonlocal pulled
        for _ in range(1000):
            pulled += 1
            yield index.positions()[:5], 0

    with BatchLoader(index, preprocessing, cache_bytes=10_000) as loader, loader.stream(plan()) as stream:
        for consumed in range(1, 300):
            next(stream)
            # 64 planned, one in the making, what is ready (one batch here), and one in the plan's hand.
            assert pulled <= consumed + 64 + 4


def test_waiting_is_measured(tars: Any, preprocessing: Preprocessing) -> None:
    index = tars.index()
    with BatchLoader(index, preprocessing) as loader, loader.stream(_plan(index)) as stream:
        next(stream)
        assert stream.wait_seconds > 0
