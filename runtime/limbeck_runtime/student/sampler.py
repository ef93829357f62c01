"""Order of samples: a pure function of (seed, epoch, step), the same for any number of workers.

An epoch permutes the shards, then shuffles within a window of W shards that slides over them. The i-th shard
of the order gives each of its samples the key i + W * u with u uniform in [0, 1); samples go by rising key.
So the first samples come from the first shard alone (a student can start when one shard is captured), at most
W shards are open at any time, and from then on each batch mixes W shards. Capture follows `shard_order`, which
is the order in which shards open. From the second epoch on all is captured: a window that holds all shards
then opens them all at once, which is a full shuffle.

Random bits are PCG64's raw output, which numpy keeps for all versions; its distributions it may change.
Left out on purpose: weighted and class-balanced sampling.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# Legend: N samples of an epoch, P positions; the last axis is (shard, row).
Positions = npt.NDArray[np.int64]

_SHARDS, _SAMPLES = 0, 1  # which of the two draws a stream of random bits is for


def _uniform(count: int, *entropy: int) -> npt.NDArray[np.float64]:
    bits = np.random.PCG64(np.random.SeedSequence(entropy)).random_raw(count)
    return np.asarray((bits >> np.uint64(11)) * 2.0**-53, dtype=np.float64)


def shard_order(seed: int, epoch: int, num_shards: int) -> npt.NDArray[np.int64]:
    """Permutation of the shards in the order in which the epoch opens them; capture follows epoch 0's."""
    return np.argsort(_uniform(num_shards, seed, epoch, _SHARDS), kind="stable").astype(np.int64)


def epoch_pieces(seed: int, epoch: int, shard_sizes: Sequence[int], window: int) -> Iterator[Positions]:
    """The epoch's order in pieces of (P, 2): one whenever a shard opens, the last with all that is left.

    Memory is that of one window: a shard's keys are drawn when it opens and forgotten when it closes.
    """
    if window < 1:
        raise ValueError(f"`windowShards` must be at least 1, got {window}; set it to 1 or more")
    order = [int(shard) for shard in shard_order(seed, epoch, len(shard_sizes))]
    all_at_once = epoch > 0 and window >= len(order)
    keys_of_open: dict[int, npt.NDArray[np.float64]] = {}
    for piece, shard in enumerate(order):
        if piece >= window:
            del keys_of_open[order[piece - window]]
        opens = 0 if all_at_once else piece
        keys = opens + window * _uniform(shard_sizes[shard], seed, epoch, _SAMPLES, shard)
        # Rounding must not lift a key to the piece in which its shard is closed already.
        keys_of_open[shard] = np.minimum(keys, np.nextafter(opens + window, 0.0))
        is_last = shard == order[-1]
        if is_last or not all_at_once:
            low, high = (0 if all_at_once else piece), (np.inf if is_last else piece + 1)
            yield _between(keys_of_open, low, high)


def _between(keys_of_open: dict[int, npt.NDArray[np.float64]], low: float, high: float) -> Positions:
    """Positions whose key lies in [low, high), by rising key; equal keys in the order of opening."""
    keys_P, positions_P2 = [], []
    for shard, shard_keys in keys_of_open.items():
        rows = np.flatnonzero((shard_keys >= low) & (shard_keys < high))
        keys_P.append(shard_keys[rows])
        positions_P2.append(np.stack([np.full_like(rows, shard), rows], axis=1))
    rising = np.argsort(np.concatenate(keys_P), kind="stable")
    return np.concatenate(positions_P2)[rising].astype(np.int64, copy=False)


def epoch_order(seed: int, epoch: int, shard_sizes: Sequence[int], window: int) -> Positions:
    """The whole epoch's order, (N, 2); `epoch_pieces` gives the same without holding all of it."""
    none = np.empty((0, 2), dtype=np.int64)
    return np.concatenate([none, *epoch_pieces(seed, epoch, shard_sizes, window)])


def steps_per_epoch(num_samples: int, batch_size: int) -> int:
    """Steps of an epoch; the last one may hold fewer samples, none is dropped."""
    return -(-num_samples // batch_size)


def step_positions(order_N2: Positions, step: int, batch_size: int) -> Positions:
    """The batch of one step over all workers, (P, 2)."""
    return order_N2[step * batch_size : (step + 1) * batch_size]


def rank_slice(positions_P2: Positions, rank: int, world_size: int) -> Positions:
    """One worker's part of a batch: contiguous, so that parts joined by rank are the batch in its order.

    A batch with fewer samples than workers goes whole to each of them (see `share_of_batch`): no worker is
    ever without samples, and the mean of equal gradients is the gradient.
    """
    num = len(positions_P2)
    if num < world_size:
        return positions_P2
    return positions_P2[rank * num // world_size : (rank + 1) * num // world_size]


def share_of_batch(num_samples: int, rank: int, world_size: int) -> float:
    """Weight of a worker's mean loss in the batch's: its share of the samples; shares sum to 1."""
    if num_samples < world_size:
        return 1 / world_size
    return ((rank + 1) * num_samples // world_size - rank * num_samples // world_size) / num_samples


@dataclass(frozen=True, slots=True)
class SamplePlan:
    """All steps of a training run: which samples, in which batch, in which order."""

    seed: int
    shard_sizes: tuple[int, ...]
    window_shards: int
    batch_size: int
    epochs: int

    @property
    def num_samples(self) -> int:
        """Samples of one epoch."""
        return sum(self.shard_sizes)

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one epoch."""
        return steps_per_epoch(self.num_samples, self.batch_size)

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.epochs * self.steps_per_epoch

    def samples_in(self, step_in_epoch: int) -> int:
        """Samples of one step over all workers; the epoch's last step may have fewer than the others."""
        return min(self.batch_size, self.num_samples - step_in_epoch * self.batch_size)

    def batches(self, epoch: int, first_step: int = 0) -> Iterator[Positions]:
        """Batches of one epoch over all workers from `first_step` on, each (P, 2)."""
        waiting = np.empty((0, 2), dtype=np.int64)
        skipped = first_step * self.batch_size
        for piece in epoch_pieces(self.seed, epoch, self.shard_sizes, self.window_shards):
            waiting = np.concatenate([waiting, piece[skipped:]])
            skipped = max(0, skipped - len(piece))
            while len(waiting) >= self.batch_size:
                yield waiting[: self.batch_size]
                waiting = waiting[self.batch_size :]
        if len(waiting):
            yield waiting

    def rank_batches(
        self, rank: int, world_size: int, epoch: int = 0, first_step: int = 0
    ) -> Iterator[tuple[Positions, int]]:
        """(one worker's part of a batch, its epoch) from a position on to the end of the run."""
        for current in range(epoch, self.epochs):
            for positions_P2 in self.batches(current, first_step if current == epoch else 0):
                yield rank_slice(positions_P2, rank, world_size), current
