"""What a shard looks like: one object, self-describing, with its own hash.

    shards/<first two letters of id>/<id>.arrow
        Arrow IPC stream: one record batch; a column `key`, and for each signal a struct of its codec's columns, in a
        list per sample where the signal is per token. The schema's metadata holds codecs, shapes, provenance (JSON).
        trailer of 40 bytes: the mark LIMBECK1 and the SHA-256 of all before it. Arrow readers stop before it.

Arrow IPC and not Parquet, by measurement (benchmarks/store_format.py; bytes a row, ms to open a shard and get one row):
                                  fp16 embedding   int8 embedding   packed top 20
    Arrow, mapped                  768   0.13       388   0.10       67.1   0.09
    Arrow, zstd                    707   7.1        356   1.3        64.9   0.41
    Arrow, zstd, 64 rows a batch   710   0.18       362   0.19       73.2   0.22
    Parquet, zstd                  708   9.0        357   1.6        64.9   0.55
    Parquet, zstd, 64 rows a group 758   0.32       386   0.38       77.7   0.66
Packed columns leave zstd 3 to 8 %, and Parquet gains nothing over Arrow. So a shard is uncompressed where it is read:
on a local disk it is mapped where it lies, and any sample is an address. Compression pays only on the way to a cloud
and for the space there, so there the same stream goes with zstd, level 1, and the cache unpacks it once.

Left out: an index of keys (a shard's keys fit in memory), partial verification, appending.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from limbeck_runtime.storage import StorageError
from limbeck_runtime.store.codec import Array, Codec, codec_from_json, codec_to_json

LAYOUT_VERSION = 1
MARK = b"LIMBECK1"
TRAILER_BYTES = len(MARK) + 32
METADATA_KEY = b"limbeck"
KEY_COLUMN = "key"
_SLOTS = "slots"

Compression = Literal["none", "zstd"]

# What a shard's id must tell apart: anything that changes the outputs or their bytes.
ID_FIELDS = ("data", "teacher", "preprocessing", "view", "signals", "codec")


class CorruptShardError(StorageError):
    """A shard is not what was written; discard it and compute it again."""


@dataclass(frozen=True)
class Signal:
    """One signal of a shard. Rows are samples, or, where there are `token_offsets`, all samples' tokens in order.

    Offsets have one element more than what they cut up: samples into tokens, rows into slots.
    """

    codec: Codec
    shape: tuple[int, ...]
    columns: Mapping[str, Array]
    token_offsets: Array | None = None
    slots: Array | None = None
    slot_offsets: Array | None = None


@dataclass(frozen=True)
class Shard:
    """A shard's whole content; arrays are views of the file where it was read from one."""

    shard_id: str
    keys: pa.StringArray
    signals: Mapping[str, Signal]
    provenance: Mapping[str, Any]


def shard_id(fields: Mapping[str, Any]) -> str:
    """SHA-256 over the canonical JSON of what determines a shard's content. Raises ValueError if a field is missing."""
    missing = [name for name in ID_FIELDS if name not in fields]
    if missing:
        raise ValueError(f"a shard's id must be made from {ID_FIELDS}, {missing} is missing")
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def shard_path(identity: str) -> str:
    """Where a shard lies in its storage."""
    return f"shards/{identity[:2]}/{identity}.arrow"


def serialize(shard: Shard, compression: Compression) -> bytes:
    """The object's bytes, trailer included."""
    metadata = {
        "layout": LAYOUT_VERSION,
        "shard": shard.shard_id,
        "signals": {
            name: {"codec": codec_to_json(signal.codec), "shape": list(signal.shape)}
            for name, signal in shard.signals.items()
        },
        "provenance": shard.provenance,
    }
    arrays = [shard.keys, *(_to_arrow(signal) for signal in shard.signals.values())]
    schema = pa.schema(
        [pa.field(name, array.type) for name, array in zip([KEY_COLUMN, *shard.signals], arrays, strict=True)],
        metadata={METADATA_KEY: json.dumps(metadata).encode()},
    )
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=pa.Codec("zstd", 1) if compression == "zstd" else None)
    with pa.ipc.new_stream(sink, schema, options=options) as writer:
        writer.write_batch(pa.record_batch(arrays, schema=schema))
    body = sink.getvalue()
    return b"".join((body, MARK, hashlib.sha256(body).digest()))


def verify(content: bytes | pa.Buffer, origin: str) -> None:
    """Raise CorruptShardError unless the bytes are those that were written. `origin` names them in the message."""
    data = memoryview(content).cast("B")
    if len(data) < TRAILER_BYTES or data[-TRAILER_BYTES : -TRAILER_BYTES + len(MARK)] != MARK:
        raise CorruptShardError(f"{origin} is cut short or not a shard ({len(data)} bytes)")
    if hashlib.sha256(data[:-TRAILER_BYTES]).digest() != data[-32:]:
        raise CorruptShardError(f"{origin} has another hash than when it was written")


def parse(buffer: pa.Buffer, identity: str, origin: str) -> Shard:
    """The content of verified bytes, without copying where they are not compressed."""
    with pa.ipc.open_stream(buffer) as stream:
        batch = stream.read_next_batch()
    metadata = json.loads(batch.schema.metadata[METADATA_KEY])
    if metadata["layout"] != LAYOUT_VERSION:
        raise StorageError(f"{origin} has layout {metadata['layout']}, known is {LAYOUT_VERSION}; upgrade limbeck")
    if metadata["shard"] != identity:
        raise CorruptShardError(f"{origin} holds shard {metadata['shard']}")
    signals = {
        name: _from_arrow(batch.column(name), codec_from_json(record["codec"]), tuple(record["shape"]))
        for name, record in metadata["signals"].items()
    }
    return Shard(identity, batch.column(KEY_COLUMN), signals, metadata["provenance"])


# Arrays go to Arrow and back by their buffers: `pa.array` would import pandas where it is installed, half a second.


def keys_to_arrow(keys: Sequence[str]) -> pa.StringArray:
    """A column of strings."""
    encoded = [key.encode() for key in keys]
    offsets = np.zeros(len(keys) + 1, np.int32)
    np.cumsum([len(key) for key in encoded], out=offsets[1:])
    return pa.StringArray.from_buffers(len(keys), pa.py_buffer(offsets), pa.py_buffer(b"".join(encoded)))


def _to_arrow(signal: Signal) -> pa.Array:
    columns = {name: _column_to_arrow(array) for name, array in signal.columns.items()}
    if signal.slots is not None:
        columns[_SLOTS] = _cut_to_arrow(signal.slot_offsets, _column_to_arrow(signal.slots))
    rows = pa.StructArray.from_arrays(list(columns.values()), list(columns))
    return rows if signal.token_offsets is None else _cut_to_arrow(signal.token_offsets, rows)


def _cut_to_arrow(offsets: Array | None, values: pa.Array) -> pa.Array:
    assert offsets is not None
    return pa.ListArray.from_arrays(_column_to_arrow(offsets), values)


def _column_to_arrow(array: Array) -> pa.Array:
    width = 1 if array.ndim == 1 else array.shape[1]
    buffers = [None, pa.py_buffer(np.ascontiguousarray(array))]
    if array.dtype == np.uint8:
        return pa.Array.from_buffers(pa.binary(width), len(array), buffers)
    flat = pa.Array.from_buffers(pa.from_numpy_dtype(array.dtype), array.size, buffers)
    return flat if array.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, width)


def _from_arrow(array: pa.Array, codec: Codec, shape: tuple[int, ...]) -> Signal:
    token_offsets = None
    if pa.types.is_list(array.type):
        token_offsets, array = _column_from_arrow(array.offsets), array.values
    fields = {field.name: array.field(field.name) for field in array.type}
    slots = fields.pop(_SLOTS, None)
    columns = {name: _column_from_arrow(column) for name, column in fields.items()}
    if slots is None:
        return Signal(codec, shape, columns, token_offsets)
    return Signal(
        codec, shape, columns, token_offsets, _column_from_arrow(slots.values), _column_from_arrow(slots.offsets)
    )


def _column_from_arrow(array: pa.Array) -> Array:
    if pa.types.is_fixed_size_binary(array.type):
        return _flat_from_arrow(array, np.uint8, array.type.byte_width).reshape(len(array), array.type.byte_width)
    if pa.types.is_fixed_size_list(array.type):
        width = array.type.list_size
        return _flat_from_arrow(array.values, array.type.value_type.to_pandas_dtype()).reshape(len(array), width)
    return _flat_from_arrow(array, array.type.to_pandas_dtype())


def _flat_from_arrow(array: pa.Array, dtype: npt.DTypeLike, width: int = 1) -> Array:
    values: Array = np.frombuffer(array.buffers()[1] or b"", dtype)[: len(array) * width]
    return values
