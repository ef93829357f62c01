"""Samples as rows of a Parquet file; images are binary, or a struct with `bytes`. Rows are read in small batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from limbeck.api.v1alpha1.data import Columns
from limbeck_runtime.data.compose import DEFAULT_KEY_COLUMN, compose_sample, key_from
from limbeck_runtime.data.errors import BrokenShardError
from limbeck_runtime.data.samples import BadSample, RawSample, SampleError
from limbeck_runtime.data.shard_file import open_shard
from limbeck_runtime.data.shard_ref import ShardRef

_ROWS_PER_READ = 64


def read_parquet(
    ref: ShardRef, columns: Columns, storage_options: Mapping[str, str] | None = None
) -> Iterator[RawSample | BadSample]:
    """Yield the rows of one file in its order; only the columns that are asked for are read.

    Raises:
        BrokenShardError: the file is missing, cut or damaged.
    """
    import pyarrow as pa
    from pyarrow import parquet

    named = [columns.key, columns.image, columns.text, columns.label, columns.audio, *columns.slices]
    number = 0
    after: str | None = None
    with open_shard(ref.uri, storage_options) as file:
        try:
            table = parquet.ParquetFile(file, pre_buffer=False)
            present: list[str] = [name for name in table.schema_arrow.names if name in named]
            for batch in table.iter_batches(batch_size=_ROWS_PER_READ, columns=present, use_threads=False):
                values = {name: _values(batch.column(name)) for name in present}
                for row in range(batch.num_rows):
                    record = {name: column[row] for name, column in values.items()}
                    sample = _sample(ref, f"{ref.name}#{number}", record, columns)
                    yield sample
                    after = sample.key
                    number += 1
        except (pa.ArrowException, OSError) as error:
            raise BrokenShardError(ref.uri, after, str(error)) from error


def _sample(ref: ShardRef, place: str, record: dict[str, object], columns: Columns) -> RawSample | BadSample:
    key = place
    if columns.key != DEFAULT_KEY_COLUMN or columns.key in record:
        try:
            key = key_from(record.get(columns.key))
        except SampleError as error:
            return error.of(ref.uri, place)
    return compose_sample(ref.uri, key, record.get, columns, record)


def _values(column: Any) -> list[object]:
    """Python values of an Arrow array; texts come as bytes, because one that is no UTF-8 must not stop the rest."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = column.type
    if _is_text(kind):
        column = column.cast(pa.large_binary())
    elif (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and _is_text(kind.value_type):
        column = column.cast(pa.large_list(pa.large_binary()))
    values: list[object] = column.to_pylist()
    return values


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))
