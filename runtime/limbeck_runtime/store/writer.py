"""From arrays that a teacher gave to the bytes of a shard.

Outputs are named by signal and part, as the reader gives them back: `image_embedding`, `logits.indices`. Samples of
different lengths come as Ragged, or padded with `<signal>.lengths`.

Shapes: N samples, R rows (samples or tokens).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from limbeck_runtime.store.codec import Array, Arrays, Codec, Encoded
from limbeck_runtime.store.layout import Compression, Shard, Signal, keys_to_arrow, serialize
from limbeck_runtime.store.ragged import Ragged

Outputs = Mapping[str, Array | Ragged]

# Rows that are encoded at once: few enough that all steps on k = 20 values stay in a core's cache.
_BLOCK_ROWS = 4096


def part_name(signal: str, part: str) -> str:
    """How an output is called in what goes in and what comes out."""
    return f"{signal}.{part}" if part else signal


def lengths_name(signal: str) -> str:
    """How the lengths of a signal's samples are called."""
    return f"{signal}.lengths"


def encode_shard(
    identity: str,
    keys: Sequence[str],
    outputs: Outputs,
    codecs: Mapping[str, Codec],
    provenance: Mapping[str, Any],
    compression: Compression,
) -> bytes:
    """The bytes of a shard. Raises ValueError if outputs, keys and codecs do not fit each other."""
    if len(set(keys)) != len(keys):
        twice = next(key for index, key in enumerate(keys) if key in keys[:index])
        raise ValueError(f"keys of a shard must be unique, got {twice!r} twice")
    known = {part_name(name, part) for name, codec in codecs.items() for part in (*codec.parts, "lengths")}
    unknown = sorted(set(outputs) - known)
    if unknown:
        raise ValueError(f"outputs must be those of the signals {sorted(codecs)}, got {unknown} too")
    signals = {name: _encode_signal(name, codec, outputs, len(keys)) for name, codec in codecs.items()}
    shard = Shard(identity, keys_to_arrow(keys), signals, provenance)
    return serialize(shard, compression)


def _encode_signal(name: str, codec: Codec, outputs: Outputs, num_samples: int) -> Signal:
    parts: dict[str, Array] = {}
    lengths: Array | None = None
    for part in codec.parts:
        array, part_lengths = _rows_of(name, part, codec, outputs)
        if part != codec.parts[0] and not _same(lengths, part_lengths):
            raise ValueError(f"all parts of {name} must have the same lengths, {part_name(name, part)} differs")
        parts[part], lengths = array, part_lengths
    num_rows = num_samples if lengths is None else int(lengths.sum())
    for part, array in parts.items():
        if len(array) != num_rows or (lengths is not None and len(lengths) != num_samples):
            given = len(array) if lengths is None else len(lengths)
            raise ValueError(f"{part_name(name, part)} must have one entry for each of {num_samples} keys, got {given}")
    try:
        encoded = _encode_in_blocks(codec, parts, num_rows)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    shape = parts[codec.parts[0]].shape[1:] if len(codec.parts) == 1 else ()
    return Signal(
        codec,
        shape,
        encoded.columns,
        None if lengths is None else _offsets(lengths),
        encoded.slots,
        None if encoded.slot_counts is None else _offsets(encoded.slot_counts),
    )


def _rows_of(name: str, part: str, codec: Codec, outputs: Outputs) -> tuple[Array, Array | None]:
    """A part as rows, and how many of them each sample has if they are tokens."""
    output = outputs.get(part_name(name, part))
    if output is None:
        raise ValueError(f"outputs must hold {part_name(name, part)}, got {sorted(outputs)}")
    lengths = outputs.get(lengths_name(name))
    dims = codec.part_dims[part]
    if not isinstance(output, Ragged):
        output = np.asarray(output)
        if lengths is not None:
            output = Ragged.from_padded(output, np.asarray(lengths))
        elif dims is not None and output.ndim == dims + 1:
            output = Ragged.from_padded(output, np.full(len(output), output.shape[1]))
    rows = output.values if isinstance(output, Ragged) else output
    if dims is not None and rows.ndim != dims:
        raise ValueError(
            f"{part_name(name, part)} must have {dims} dimensions, {dims + 1} if by token, got {rows.shape}"
        )
    return rows, output.lengths if isinstance(output, Ragged) else None


def _encode_in_blocks(codec: Codec, parts: Arrays, num_rows: int) -> Encoded:
    starts = range(0, max(num_rows, 1), _BLOCK_ROWS)
    blocks = [
        codec.encode({part: array[start : start + _BLOCK_ROWS] for part, array in parts.items()}) for start in starts
    ]
    if len(blocks) == 1:
        return blocks[0]
    columns = {name: np.concatenate([block.columns[name] for block in blocks]) for name in blocks[0].columns}
    if blocks[0].slots is None:
        return Encoded(columns)
    return Encoded(
        columns,
        np.concatenate([block.slots for block in blocks if block.slots is not None]),
        np.concatenate([block.slot_counts for block in blocks if block.slot_counts is not None]),
    )


def _offsets(lengths: Array) -> Array:
    if lengths.sum() >= 2**31:
        raise ValueError(f"a shard must have less than 2**31 rows, got {lengths.sum()}; use smaller data shards")
    offsets = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def _same(left: Array | None, right: Array | None) -> bool:
    if left is None or right is None:
        return left is right
    return np.array_equal(left, right)
