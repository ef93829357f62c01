"""Order of samples: properties for any plan, and a golden so that no version of numpy changes it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck_runtime.student.sampler import (
    SamplePlan,
    epoch_order,
    epoch_pieces,
    rank_slice,
    shard_order,
    share_of_batch,
    step_positions,
    steps_per_epoch,
)

plans = st.builds(
    SamplePlan,
    seed=st.integers(0, 2**40),
    shard_sizes=st.lists(st.integers(0, 30), min_size=1, max_size=9).map(tuple),
    window_shards=st.integers(1, 12),
    batch_size=st.integers(1, 17),
    epochs=st.integers(1, 3),
)


def as_set(positions: np.ndarray) -> set[tuple[int, int]]:
    return {(int(shard), int(row)) for shard, row in positions}


@given(plans)
def test_every_sample_comes_once_an_epoch(plan: SamplePlan) -> None:
    expected = {(shard, row) for shard, size in enumerate(plan.shard_sizes) for row in range(size)}
    for epoch in range(plan.epochs):
        order = epoch_order(plan.seed, epoch, plan.shard_sizes, plan.window_shards)
        assert len(order) == len(expected)
        assert as_set(order) == expected


@given(plans, st.integers(0, 2))
def test_batches_are_the_epochs_order_cut(plan: SamplePlan, epoch: int) -> None:
    order = epoch_order(plan.seed, epoch, plan.shard_sizes, plan.window_shards)
    batches = list(plan.batches(epoch))
    assert len(batches) == plan.steps_per_epoch == steps_per_epoch(len(order), plan.batch_size)
    for step, batch in enumerate(batches):
        np.testing.assert_array_equal(batch, step_positions(order, step, plan.batch_size))
        assert len(batch) == plan.samples_in(step)


@given(plans, st.sampled_from([1, 2, 3]))
def test_workers_together_see_the_order_of_one(plan: SamplePlan, world_size: int) -> None:
    one = list(plan.rank_batches(0, 1))
    many = [list(plan.rank_batches(rank, world_size)) for rank in range(world_size)]
    assert len(one) == plan.total_steps
    for step, (batch, epoch) in enumerate(one):
        parts = [worker[step] for worker in many]
        assert all(part_epoch == epoch for _, part_epoch in parts)
        if len(batch) < world_size:
            assert all(np.array_equal(part, batch) for part, _ in parts)
        else:
            np.testing.assert_array_equal(np.concatenate([part for part, _ in parts]), batch)
            assert min(len(part) for part, _ in parts) >= 1


@given(st.integers(1, 40), st.integers(1, 7))
def test_shares_of_a_batch_follow_the_samples_and_sum_to_one(num_samples: int, world_size: int) -> None:
    batch = np.zeros((num_samples, 2), dtype=np.int64)
    shares = [share_of_batch(num_samples, rank, world_size) for rank in range(world_size)]
    assert sum(shares) == pytest.approx(1)
    if num_samples >= world_size:
        lengths = [len(rank_slice(batch, rank, world_size)) for rank in range(world_size)]
        assert shares == pytest.approx([length / num_samples for length in lengths])


@given(plans)
def test_shards_open_in_shard_order_and_at_most_a_window_is_open(plan: SamplePlan) -> None:
    order = epoch_order(plan.seed, 0, plan.shard_sizes, plan.window_shards)
    place_of = {int(shard): place for place, shard in enumerate(shard_order(plan.seed, 0, len(plan.shard_sizes)))}
    places = [place_of[int(shard)] for shard, _ in order]
    highest = -1
    for place in places:
        highest = max(highest, place)
        assert place > highest - plan.window_shards, "a shard is used after its window has passed"


@given(plans)
def test_a_piece_needs_only_the_shards_that_opened_so_far(plan: SamplePlan) -> None:
    opened = shard_order(plan.seed, 0, len(plan.shard_sizes))
    for piece, positions in enumerate(epoch_pieces(plan.seed, 0, plan.shard_sizes, plan.window_shards)):
        assert set(positions[:, 0]) <= set(opened[: piece + 1])


@given(plans, st.data())
def test_a_run_resumes_at_any_step_with_the_same_batches(plan: SamplePlan, data: st.DataObject) -> None:
    if plan.total_steps == 0:
        return
    at = data.draw(st.integers(0, plan.total_steps - 1))
    resumed = plan.rank_batches(0, 1, at // plan.steps_per_epoch, at % plan.steps_per_epoch)
    for (left, left_epoch), (right, right_epoch) in zip(list(plan.rank_batches(0, 1))[at:], resumed, strict=True):
        assert left_epoch == right_epoch
        np.testing.assert_array_equal(left, right)


def test_epochs_differ_and_a_window_mixes_its_shards() -> None:
    sizes = [100] * 12
    first, second = epoch_order(7, 0, sizes, 4), epoch_order(7, 1, sizes, 4)
    assert not np.array_equal(first, second)
    shares = np.bincount(first[500:600, 0])
    assert np.count_nonzero(shares) >= 4
    assert shares.max() < 45, "about a quarter of the samples from each of four shards"


def test_a_window_of_all_shards_is_a_full_shuffle_once_all_are_captured() -> None:
    starts = [epoch_order(3, epoch, [1000] * 4, 4)[:200, 0] for epoch in (0, 1)]
    assert len(set(starts[0])) == 1, "in the first epoch the student starts on the first captured shard"
    assert np.bincount(starts[1], minlength=4).min() > 30, "about 50 samples of each shard"


def test_the_order_is_the_same_in_all_versions() -> None:
    assert shard_order(5, 2, 6).tolist() == [4, 0, 1, 5, 2, 3]
    assert epoch_order(5, 2, [2, 3, 1, 2], 2).tolist() == [
        *([0, 1], [0, 0], [1, 1], [1, 2]),
        *([1, 0], [2, 0], [3, 1], [3, 0]),
    ]


def test_a_window_without_shards_is_refused() -> None:
    with pytest.raises(ValueError, match="`windowShards` must be at least 1, got 0"):
        epoch_order(0, 0, [1], 0)
