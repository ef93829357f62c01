"""Any samples of one or several shards as arrays, in any order, straight from the mapped files.

Packed bytes are gathered first, over all shards of a batch, and decoded once: the cost of a batch hardly depends on how
many shards it touches.

Shapes: B samples of the batch, R rows (samples or tokens) of the batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from limbeck_runtime.store.codec import Array, Codec, Encoded
from limbeck_runtime.store.layout import Shard, Signal
from limbeck_runtime.store.ragged import Ragged, flat_positions, starts_of
from limbeck_runtime.store.writer import lengths_name, part_name


class ShardReader:
    """One opened shard. It stays readable when its file is removed; safe to use from several threads."""

    def __init__(self, shard: Shard, num_bytes: int) -> None:
        self._shard = shard
        self.num_bytes = num_bytes
        self.num_samples = len(shard.keys)

    @property
    def shard_id(self) -> str:
        """The id under which it was written."""
        return self._shard.shard_id

    @property
    def codecs(self) -> Mapping[str, Codec]:
        """The codec of each signal."""
        return {name: signal.codec for name, signal in self._shard.signals.items()}

    @property
    def provenance(self) -> Mapping[str, Any]:
        """What the writer said about where the outputs come from."""
        return self._shard.provenance

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """The samples' keys, in the order of their rows."""
        return tuple(self._shard.keys.to_pylist())

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {key: row for row, key in enumerate(self.keys)}

    def row_of(self, key: str) -> int:
        """Raises KeyError if the shard has no such sample."""
        return self._rows[key]

    def read(self, rows_B: Array | Sequence[int], signals: Iterable[str] | None = None) -> dict[str, Array]:
        """The outputs of these rows, in this order; all signals unless some are named. See codec.py for the arrays.

        A signal by token comes padded to the longest of these samples, with `<signal>.lengths` int32 (B,). The padding
        has no probability. Raises IndexError for a row that does not exist.
        """
        rows_B = np.asarray(rows_B, np.intp)
        return read_batch({0: self}, np.zeros(len(rows_B), np.intp), rows_B, signals)

    def _signal(self, name: str) -> Signal:
        return self._shard.signals[name]


def read_batch(
    readers: Mapping[int, ShardReader], shards_B: Array, rows_B: Array, signals: Iterable[str] | None = None
) -> dict[str, Array]:
    """What `ShardReader.read` gives, for samples of several shards: sample i is row rows[i] of readers[shards[i]]."""
    if len(rows_B) == 0:
        raise ValueError("a batch must hold at least one sample")
    # Samples are gathered shard after shard, and put in the batch's order while still packed.
    order_B = np.argsort(shards_B, kind="stable")
    shards_B, rows_B = shards_B[order_B], rows_B[order_B].astype(np.intp, copy=False)
    cuts = [0, *((shards_B[1:] != shards_B[:-1]).nonzero()[0] + 1).tolist(), len(rows_B)]
    opened = [readers[int(shards_B[start])] for start in cuts[:-1]]
    sources = [rows_B[start:stop] for start, stop in itertools.pairwise(cuts)]
    # Unsigned, a negative row is a large one.
    if rows_B.view(np.uintp).max() >= min([reader.num_samples for reader in opened]):
        _check_each(opened, sources)
    place_B = None
    if len(opened) > 1:
        place_B = np.empty_like(order_B)
        place_B[order_B] = np.arange(len(order_B))
    level = _Level(sources, cuts, place_B)
    outputs: dict[str, Array] = {}
    for name in opened[0].codecs if signals is None else signals:
        outputs |= _read_signal(name, [reader._signal(name) for reader in opened], level)
    return outputs


def _check_each(opened: Sequence[ShardReader], sources: Sequence[Array]) -> None:
    for reader, source in zip(opened, sources, strict=True):
        for row in source.tolist():
            if not 0 <= row < reader.num_samples:
                raise IndexError(f"rows of shard {reader.shard_id} must be 0 to {reader.num_samples - 1}, got {row}")


@dataclass(frozen=True)
class _Level:
    """Which rows of each shard to gather. Those of shard i go to cuts[i] up to cuts[i + 1] of all gathered rows.

    `place` says for each row of the batch which of the gathered rows it is; None if they are in order.
    """

    sources: list[Array]
    cuts: list[int]
    place: Array | None

    def gather(self, arrays: Sequence[Array | None]) -> Array:
        """The batch's rows of one column, whose part in each shard is given."""
        first = arrays[0]
        assert first is not None
        gathered = np.empty((self.cuts[-1], *first.shape[1:]), first.dtype)
        for array, source, start, stop in zip(arrays, self.sources, self.cuts[:-1], self.cuts[1:], strict=True):
            assert array is not None
            # The rows were checked; "clip" lets NumPy write to the target directly.
            array.take(source, axis=0, out=gathered[start:stop], mode="clip")
        return gathered if self.place is None else gathered.take(self.place, axis=0)

    def descend(self, offsets: Sequence[Array | None]) -> tuple[_Level, Array]:
        """The rows that these offsets cut this level's rows into; and how many each row of the batch has."""
        lengths, sources = [], []
        for offset, source in zip(offsets, self.sources, strict=True):
            assert offset is not None
            begin = offset[source].astype(np.int64)
            lengths.append(offset[source + 1] - begin)
            sources.append(flat_positions(begin, lengths[-1]))
        cuts = [0, *itertools.accumulate(len(source) for source in sources)]
        lengths_R = np.concatenate(lengths)
        if self.place is None:
            return _Level(sources, cuts, None), lengths_R
        starts_R = starts_of(lengths_R)[self.place]
        lengths_R = lengths_R[self.place]
        return _Level(sources, cuts, flat_positions(starts_R, lengths_R)), lengths_R


def _read_signal(name: str, stored: list[Signal], level: _Level) -> dict[str, Array]:
    first = stored[0]
    for signal in stored:
        if (signal.codec is not first.codec and signal.codec != first.codec) or signal.shape != first.shape:
            raise ValueError(
                f"{name} must be stored alike in all shards of a batch, got {first.codec} and {signal.codec}"
            )
    lengths_B = None
    if first.token_offsets is not None:
        level, lengths_B = level.descend([signal.token_offsets for signal in stored])
    columns = {column: level.gather([signal.columns[column] for signal in stored]) for column in first.columns}
    slots = counts_R = None
    if first.slots is not None:
        slot_level, counts_R = level.descend([signal.slot_offsets for signal in stored])
        slots = slot_level.gather([signal.slots for signal in stored])
    decoded = first.codec.decode(Encoded(columns, slots, counts_R), first.shape)
    if lengths_B is None:
        return {part_name(name, part): array for part, array in decoded.items()}
    fill = first.codec.fill
    outputs = {part_name(name, part): Ragged(array, lengths_B).padded(fill[part]) for part, array in decoded.items()}
    outputs[lengths_name(name)] = lengths_B.astype(np.int32)
    return outputs
