"""The index of a data set as plain data: what is where, and what was broken.

The index names samples by (shard, row), row being the place among the shard's good samples. One process builds it
(`index.build_index`) and all others read it, as JSON. It holds keys, labels and slice values, not images or texts:
about 40 bytes a sample.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
from pydantic import BaseModel, ConfigDict

from limbeck.api.v1alpha1.data import Columns, DataFormat
from limbeck_runtime.data.samples import BadSample
from limbeck_runtime.data.shard_ref import ShardRef


class ShardIndex(BaseModel):
    """The good samples of one shard."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ref: ShardRef
    # Over what models read of every sample, good or not: tells whether the data is still the same, however it is
    # packed. Labels and slices are not in it: they stand here, and outputs of a teacher do not depend on them.
    content_sha256: str
    keys: tuple[str, ...]
    # Class of each sample; None where the data has no labels.
    class_ids: tuple[int, ...] | None = None
    # Slice column to each sample's value, "" where it has none.
    slices: dict[str, tuple[str, ...]] = {}
    # Bounds what decoded texts and sounds can take.
    num_wordings: int = 0
    num_text_bytes: int = 0
    num_audio_bytes: int = 0

    @cached_property
    def identity(self) -> str:
        """Hex sha256 of the shard's content and of which of its samples count; equal wherever the file lies."""
        record = [self.content_sha256, list(self.keys)]
        return hashlib.sha256(json.dumps(record, separators=(",", ":")).encode()).hexdigest()

    def with_rows(self, rows: Sequence[int]) -> ShardIndex:
        """The same shard with fewer samples."""
        return ShardIndex(
            ref=self.ref,
            content_sha256=self.content_sha256,
            keys=tuple(self.keys[row] for row in rows),
            class_ids=None if self.class_ids is None else tuple(self.class_ids[row] for row in rows),
            slices={name: tuple(values[row] for row in rows) for name, values in self.slices.items()},
            num_wordings=self.num_wordings,
            num_text_bytes=self.num_text_bytes,
            num_audio_bytes=self.num_audio_bytes,
        )


class DataIndex(BaseModel):
    """All good samples of a data source, shard by shard, and the broken ones by name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data_format: DataFormat
    columns: Columns
    shards: tuple[ShardIndex, ...]
    classes: tuple[str, ...] = ()
    bad: tuple[BadSample, ...] = ()

    @property
    def num_samples(self) -> int:
        """Good samples in all shards."""
        return sum(len(shard.keys) for shard in self.shards)

    @property
    def shard_sizes(self) -> np.ndarray:
        """Good samples of each shard, int64 (num_shards,)."""
        return np.array([len(shard.keys) for shard in self.shards], dtype=np.int64)

    def positions(self) -> np.ndarray:
        """All (shard, row) in order, int64 (num_samples, 2)."""
        sizes = self.shard_sizes
        shards = np.repeat(np.arange(len(sizes)), sizes)
        rows = np.concatenate([np.arange(size) for size in sizes]) if len(sizes) else np.empty(0, np.int64)
        return np.stack([shards, rows], axis=1).astype(np.int64)

    def keys(self, positions: np.ndarray) -> tuple[str, ...]:
        """Keys of the samples at (shard, row)."""
        return tuple(self.shards[shard].keys[row] for shard, row in positions.tolist())

    def slice_values(self, column: str, positions: np.ndarray) -> tuple[str, ...]:
        """Values of a slice column at (shard, row), "" where a sample has none."""
        return tuple(self.shards[shard].slices[column][row] for shard, row in positions.tolist())

    def split(self, validation_percent: int) -> tuple[DataIndex, DataIndex]:
        """Training and validation part; which one a sample falls into depends on its key alone.

        Broken samples stay with the training part, so that they are reported once.

        Raises:
            ValueError: one of the two would be empty.
        """
        train = self._select(lambda key: not held_out(key, validation_percent), self.bad)
        validation = self._select(lambda key: held_out(key, validation_percent), ())
        for name, part in (("training", train), ("validation", validation)):
            if not part.num_samples:
                raise ValueError(
                    f"`spec.data.validationPercent` must leave samples on both sides, got {validation_percent} of "
                    f"{self.num_samples} samples, which leaves none for {name}; change it or give `validation`"
                )
        return train, validation

    def _select(self, wanted: Callable[[str], bool], bad: tuple[BadSample, ...]) -> DataIndex:
        shards = []
        for shard in self.shards:
            rows = [row for row, key in enumerate(shard.keys) if wanted(key)]
            if rows:
                shards.append(shard.with_rows(rows))
        return self.model_copy(update={"shards": tuple(shards), "bad": bad})

    def to_json(self) -> str:
        """The whole index as one line of JSON."""
        return self.model_dump_json()

    @classmethod
    def from_json(cls, text: str | bytes) -> DataIndex:
        """Inverse of `to_json`; raises pydantic's ValidationError (a ValueError) on anything else."""
        return cls.model_validate_json(text)


def held_out(key: str, validation_percent: int) -> bool:
    """Whether a sample belongs to the validation part; a pure function of its key."""
    digest = hashlib.sha256(b"validation\0" + key.encode()).digest()
    return int.from_bytes(digest[:8], "big") * 100 < validation_percent << 64
