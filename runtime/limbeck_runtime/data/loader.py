"""Batches of a data set by position: from memory where the shard is decoded, decoding ahead where batches stream."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

import numpy as np

from limbeck.api.v1alpha1.data import Augmentation, Columns
from limbeck_runtime.data.batch import Batch, BatchAssembler, Labels
from limbeck_runtime.data.cache import CacheStats, ShardCache
from limbeck_runtime.data.decoded import ShardDecoder, estimate_bytes
from limbeck_runtime.data.index_records import DataIndex
from limbeck_runtime.data.read import read_shard
from limbeck_runtime.data.samples import RawSample
from limbeck_runtime.data.stream import BatchStream
from limbeck_runtime.models.preprocessing import Preprocessing

# Share of the budget that finished batches may take while they wait for the consumer.
_READY_SHARE = 8
# Shards decoded at the same time ahead of the consumer; each is spread over the decoding threads.
_NUM_SHARDS_AHEAD = 2


class BatchLoader:
    """Makes batches of one index for one preprocessing.

    What a batch holds depends on positions, view, seed and settings only, never on threads, cache or order.

    Args:
        augmentation: random views; None shows every image as it is, as for validation.
        cache_bytes: the most that decoded shards and waiting batches take together.
        num_threads: threads that decode.
        labels: what a batch's `labels` are; by default class ids where the data has labels, else none.

    Raises:
        ValueError: the preprocessing wants a part that the data lacks, or a shard alone exceeds the budget.
    """

    def __init__(
        self,
        index: DataIndex,
        preprocessing: Preprocessing,
        *,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        cache_bytes: int = 2**30,
        num_threads: int = 2,
        labels: Labels | None = None,
        storage_options: Mapping[str, str] | None = None,
    ) -> None:
        self.index = index
        self.preprocessing = preprocessing
        if labels is None:
            labels = Labels.CLASSES if index.columns.label is not None else Labels.NONE
        _check_columns(index.columns, preprocessing, labels)
        self._storage_options = storage_options
        self._ready_bytes = cache_bytes // _READY_SHARE
        self._shard_bytes = cache_bytes - self._ready_bytes
        self.decoded_bytes = np.array([estimate_bytes(shard, preprocessing) for shard in index.shards], np.int64)
        _check_budget(index, self.decoded_bytes, self._shard_bytes)
        self._decode_pool = ThreadPoolExecutor(max(1, num_threads), "limbeck-decode")
        self._shard_pool = ThreadPoolExecutor(_NUM_SHARDS_AHEAD, "limbeck-shards")
        self._closing = threading.Event()
        decoder = ShardDecoder(index, preprocessing, self._decode_pool, storage_options, self._closing.is_set)
        self._cache = ShardCache(
            decoder.decode, lambda shard: int(self.decoded_bytes[shard]), self._shard_bytes, self._shard_pool
        )
        self._assembler = BatchAssembler(index, preprocessing, self._cache, augmentation, seed, labels)
        self._streams: list[BatchStream] = []

    def batch(self, positions: np.ndarray, view: int = 0) -> Batch:
        """The samples at (shard, row), int64 (B, 2), in view number `view`, decoding shards that are not cached."""
        return self._assembler.assemble(positions, view)

    def stream(self, plan: Iterable[tuple[np.ndarray, int]]) -> BatchStream:
        """The batches of (positions, view) in order, made ahead of the consumer in the background.

        The plan is read up to 64 items ahead, in a thread of the stream; it may block, for instance until a shard's
        teacher outputs are there. Close the stream (or use it in a `with` block) to join its threads.
        """
        stream = BatchStream(self._assembler, self._cache, plan, self._ready_bytes)
        self._streams = [*(open_one for open_one in self._streams if not open_one.closed), stream]
        return stream

    def raw(self, positions: np.ndarray) -> list[RawSample]:
        """The encoded samples at (shard, row), for showing them to people: reads each shard up to the sample."""
        found: dict[tuple[int, int], RawSample] = {}
        for shard in np.unique(positions[:, 0]).tolist():
            of_shard = self.index.shards[shard]
            row_of_key = {of_shard.keys[row]: row for row in positions[positions[:, 0] == shard, 1].tolist()}
            for sample in read_shard(of_shard.ref, self.index.columns, self.index.data_format, self._storage_options):
                if isinstance(sample, RawSample) and sample.key in row_of_key:
                    found[shard, row_of_key.pop(sample.key)] = sample
                    if not row_of_key:
                        break
        return [found[shard, row] for shard, row in positions.tolist()]

    @property
    def largest_window(self) -> int:
        """How many shards fit into the cache at once, whichever they are; at least 1."""
        fitting = np.cumsum(np.sort(self.decoded_bytes)[::-1]) <= self._shard_bytes
        return max(1, int(fitting.sum()))

    @property
    def stats(self) -> CacheStats:
        """Hits, misses and bytes of the decoded shards."""
        return self._cache.stats

    def close(self) -> None:
        """End all streams and threads, breaking off what they decode."""
        self._closing.set()
        self._cache.close()
        for stream in self._streams:
            stream.close()
        self._shard_pool.shutdown()
        self._decode_pool.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _check_columns(columns: Columns, preprocessing: Preprocessing, labels: Labels) -> None:
    wanted = {
        "image": (preprocessing.image is not None, columns.image),
        "text": (preprocessing.text is not None or labels is Labels.TOKENS, columns.text),
        "audio": (preprocessing.audio is not None, columns.audio),
        "label": (labels is Labels.CLASSES, columns.label),
    }
    for name, (needed, column) in wanted.items():
        if needed and column is None:
            raise ValueError(
                f"`spec.data.columns.{name}` must be given for this model, got nothing; "
                f"name the column or file ending that holds each sample's {name}"
            )


def _check_budget(index: DataIndex, decoded_bytes: np.ndarray, shard_bytes: int) -> None:
    largest = int(decoded_bytes.argmax())
    if decoded_bytes[largest] > shard_bytes:
        shard = index.shards[largest]
        raise ValueError(
            f"the cache must hold a whole decoded shard, got {shard_bytes} bytes for '{shard.ref.uri}' with "
            f"{len(shard.keys)} samples and {decoded_bytes[largest]} bytes; "
            "write smaller shards or give the data cache more memory"
        )
