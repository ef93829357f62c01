"""One entry for all formats: the samples of a shard, in its order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from limbeck.api.v1alpha1.data import Columns, DataFormat
from limbeck_runtime.data.image_folder import read_image_folder
from limbeck_runtime.data.json_lines import read_json_lines
from limbeck_runtime.data.parquet import read_parquet
from limbeck_runtime.data.samples import BadSample, RawSample
from limbeck_runtime.data.shard_ref import ShardRef
from limbeck_runtime.data.webdataset_tar import read_tar

_Reader = Callable[[ShardRef, Columns, Mapping[str, str] | None], Iterator[RawSample | BadSample]]
_READERS: dict[DataFormat, _Reader] = {
    DataFormat.WEB_DATASET: read_tar,
    DataFormat.PARQUET: read_parquet,
    DataFormat.JSON_LINES: read_json_lines,
    DataFormat.IMAGE_FOLDER: read_image_folder,
}


def read_shard(
    ref: ShardRef,
    columns: Columns,
    data_format: DataFormat,
    storage_options: Mapping[str, str] | None = None,
) -> Iterator[RawSample | BadSample]:
    """Yield each sample of a shard once, whole or bad; `columns` as `compose.effective_columns` gives them.

    The parts are still encoded: whether an image can be decoded is the index's question.

    Raises:
        BrokenShardError: the file cannot be read to its end.
    """
    return _READERS[data_format](ref, columns, storage_options)
