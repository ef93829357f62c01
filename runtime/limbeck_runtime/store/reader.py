"""Any samples of one or several shards as arrays, in any order, straight from the mapped files.

Packed bytes are gathered first, over all shards of a batch, and decoded once: the cost of a batch hardly depends on how
many shards it touches.

Shapes: B samples of the batch, R rows (samples or tokens) of the batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
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
    shards_B, rows_B = shards_B[order_B], rows_B[order_B]
    cuts = [0, *(np.flatnonzero(shards_B[1:] != shards_B[:-1]) + 1).tolist(), len(rows_B)]
    opened = [readers[int(shards_B[start])] for start in cuts[:-1]]
    _check_rows(rows_B, opened, cuts)
    rows = [rows_B[start:stop] for start, stop in itertools.pairwise(cuts)]
    place_B = None
    if len(opened) > 1:
        place_B = np.empty_like(order_B)
        place_B[order_B] = np.arange(len(order_B))
    outputs: dict[str, Array] = {}
    for name in opened[0].codecs if signals is None else signals:
        pieces = [(reader._signal(name), source_B) for reader, source_B in zip(opened, rows, strict=True)]
        outputs |= _read_signal(name, pieces, place_B)
    return outputs


def _check_rows(rows_B: Array, opened: Sequence[ShardReader], cuts: Sequence[int]) -> None:
    # Arrays take a negative row from their end; as an unsigned number it is too large like any other wrong one.
    sizes_B = np.repeat([reader.num_samples for reader in opened], np.diff(cuts))
    wrong_B = rows_B.astype(np.int64, copy=False).view(np.uint64) >= sizes_B.view(np.uint64)
    if wrong_B.any():
        at = int(wrong_B.argmax())
        reader = opened[int(np.searchsorted(cuts, at, side="right")) - 1]
        raise IndexError(f"rows of shard {reader.shard_id} must be 0 to {reader.num_samples - 1}, got {rows_B[at]}")


# Some rows of one shard's signal. `place` below: for each row of the batch, which of all gathered rows it is.
_Piece = tuple[Signal, Array]


def _read_signal(name: str, pieces: list[_Piece], place_B: Array | None) -> dict[str, Array]:
    first = pieces[0][0]
    codec = first.codec
    for signal, _ in pieces:
        if (signal.codec is not codec and signal.codec != codec) or signal.shape != first.shape:
            raise ValueError(f"{name} must be stored alike in all shards of a batch, got {codec} and {signal.codec}")
    place_R, lengths_B = place_B, None
    if first.token_offsets is not None:
        pieces, place_R, lengths_B = _descend(pieces, [signal.token_offsets for signal, _ in pieces], place_B)
    columns = {
        column: _gather([signal.columns[column] for signal, _ in pieces], pieces, place_R) for column in first.columns
    }
    slots = counts_R = None
    if first.slots is not None:
        pieces, place_S, counts_R = _descend(pieces, [signal.slot_offsets for signal, _ in pieces], place_R)
        slots = _gather([signal.slots for signal, _ in pieces], pieces, place_S)
    decoded = codec.decode(Encoded(columns, slots, counts_R), first.shape)
    if lengths_B is None:
        return {part_name(name, part): array for part, array in decoded.items()}
    outputs = {
        part_name(name, part): Ragged(array, lengths_B).padded(codec.fill[part]) for part, array in decoded.items()
    }
    outputs[lengths_name(name)] = lengths_B.astype(np.int32)
    return outputs


def _descend(
    pieces: list[_Piece], offsets: list[Array | None], place_R: Array | None
) -> tuple[list[_Piece], Array | None, Array]:
    """One level down, from rows to what the offsets cut them into; and the lengths of the batch's rows."""
    lengths, below = [], []
    for (signal, source), offset in zip(pieces, offsets, strict=True):
        assert offset is not None
        begin = offset[source].astype(np.int64)
        lengths.append(offset[source + 1] - begin)
        below.append((signal, flat_positions(begin, lengths[-1])))
    lengths_R = np.concatenate(lengths)
    if place_R is None:
        return below, None, lengths_R
    starts_R = starts_of(lengths_R)[place_R]
    lengths_R = lengths_R[place_R]
    return below, flat_positions(starts_R, lengths_R), lengths_R


def _gather(arrays: Sequence[Array | None], pieces: list[_Piece], place_R: Array | None) -> Array:
    first = arrays[0]
    assert first is not None
    stop = 0
    gathered = np.empty((sum(len(source) for _, source in pieces), *first.shape[1:]), first.dtype)
    for array, (_, source) in zip(arrays, pieces, strict=True):
        assert array is not None
        start, stop = stop, stop + len(source)
        # The rows were checked; "clip" lets NumPy write to the target directly.
        array.take(source, axis=0, out=gathered[start:stop], mode="clip")
    return gathered if place_R is None else gathered.take(place_R, axis=0)
