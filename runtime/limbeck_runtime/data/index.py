"""What a data set holds, found out once: every sample looked at, broken ones set aside, keys unique.

The index names samples by (shard, row), row being the place among the shard's good samples. It is plain data with a
JSON round trip, so that one process builds it and all others read it. It holds keys, labels and slice values,
not images or texts: about 40 bytes a sample.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from pydantic import BaseModel, ConfigDict

from limbeck.api.v1alpha1.data import Columns, DataFormat
from limbeck_runtime.data.audio import check_audio
from limbeck_runtime.data.compose import effective_columns
from limbeck_runtime.data.content_hash import ContentHash
from limbeck_runtime.data.decode import check_image
from limbeck_runtime.data.errors import DataError, DuplicateKeyError, TooManyBadSamplesError
from limbeck_runtime.data.read import read_shard
from limbeck_runtime.data.samples import BadReason, BadSample, RawSample, SampleError
from limbeck_runtime.data.shard_ref import ShardRef

# Whole numbers below this are class ids as they are, so that a pretrained model's classes keep their places.
_MAX_NUMERIC_CLASSES = 100_000
_MISSING = {
    BadReason.MISSING_KEY: "key",
    BadReason.MISSING_IMAGE: "image",
    BadReason.MISSING_TEXT: "text",
    BadReason.MISSING_LABEL: "label",
    BadReason.MISSING_AUDIO: "audio",
}


class ShardIndex(BaseModel):
    """The good samples of one shard."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ref: ShardRef
    # Over every sample read, good or not: tells whether the file is still the same, however it is packed.
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


def build_index(
    refs: Sequence[ShardRef],
    columns: Columns,
    data_format: DataFormat,
    *,
    max_bad_samples_percent: int = 1,
    num_threads: int = 2,
    classes: Sequence[str] | None = None,
    storage_options: Mapping[str, str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> DataIndex:
    """Look at every sample of all shards once; images are decoded to their end.

    `classes` fixes the class of each label (those of the training data, or of a pretrained model); without it they
    are the sorted labels found, or 0 up to the largest where all labels are class numbers (below 100,000).
    `progress` is called with (shards done, shards in all), in the caller's thread.

    Raises:
        BrokenShardError: a file cannot be read to its end.
        DuplicateKeyError: two samples have one key, in one shard or in two.
        TooManyBadSamplesError: more than `max_bad_samples_percent` of the samples are broken.
        DataError: there is no good sample at all.
    """
    columns = effective_columns(columns, data_format)
    scans: list[_Scan] = []
    owner_of_key: dict[str, str] = {}
    with ThreadPoolExecutor(max(1, num_threads), "limbeck-index") as pool:
        try:
            scanned = pool.map(lambda ref: _scan(ref, columns, data_format, storage_options), refs)
            for scan in scanned:
                for key in scan.all_keys:
                    if key in owner_of_key:
                        raise DuplicateKeyError(key, owner_of_key[key], scan.ref.uri)
                    owner_of_key[key] = scan.ref.uri
                if not scans and max_bad_samples_percent < 100:
                    _check_columns(scan, columns)
                scans.append(scan)
                if progress is not None:
                    progress(len(scans), len(refs))
        finally:
            pool.shutdown(cancel_futures=True)
    found = tuple(classes) if classes is not None else _classes({label for scan in scans for label in scan.labels})
    shards, bad = _with_classes(scans, found, columns)
    _check_share(bad, sum(scan.num_read for scan in scans), max_bad_samples_percent)
    if not any(shard.keys for shard in shards):
        raise DataError(f"there must be at least one good sample, got none in {len(refs)} shards")
    return DataIndex(
        data_format=data_format,
        columns=columns,
        shards=tuple(shard for shard in shards if shard.keys),
        classes=found if columns.label is not None else (),
        bad=tuple(bad),
    )


@dataclass
class _Scan:
    """What one pass over a shard has found."""

    ref: ShardRef
    content_sha256: str = ""
    num_read: int = 0
    all_keys: list[str] = field(default_factory=list)  # of good and bad samples
    keys: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    slices: dict[str, list[str]] = field(default_factory=dict)
    bad: list[BadSample] = field(default_factory=list)
    num_wordings: int = 0
    num_text_bytes: int = 0
    num_audio_bytes: int = 0

    def add(self, sample: RawSample) -> None:
        self.keys.append(sample.key)
        if sample.label is not None:
            self.labels.append(sample.label)
        for name, values in self.slices.items():
            values.append(sample.slices.get(name, ""))
        self.num_wordings += len(sample.texts)
        self.num_text_bytes += sum(len(text.encode()) for text in sample.texts)
        self.num_audio_bytes += len(sample.audio or b"")


def _scan(ref: ShardRef, columns: Columns, data_format: DataFormat, storage_options: Mapping[str, str] | None) -> _Scan:
    scan = _Scan(ref, slices={name: [] for name in columns.slices})
    content = ContentHash()
    for sample in read_shard(ref, columns, data_format, storage_options):
        scan.num_read += 1
        content.add(sample)
        scan.all_keys.append(sample.key)
        if isinstance(sample, BadSample):
            scan.bad.append(sample)
            continue
        try:
            if sample.image is not None:
                check_image(sample.image)
            if sample.audio is not None:
                check_audio(sample.audio)
        except SampleError as error:
            scan.bad.append(error.of(ref.uri, sample.key))
            continue
        scan.add(sample)
    scan.content_sha256 = content.hexdigest()
    return scan


def _classes(labels: set[str]) -> tuple[str, ...]:
    if labels and all(label.isdecimal() and label.isascii() and str(int(label)) == label for label in labels):
        largest = max(int(label) for label in labels)
        if largest < _MAX_NUMERIC_CLASSES:
            return tuple(str(number) for number in range(largest + 1))
    return tuple(sorted(labels))


def _with_classes(
    scans: Sequence[_Scan], classes: tuple[str, ...], columns: Columns
) -> tuple[list[ShardIndex], list[BadSample]]:
    """Labels become class ids; a label that is no class makes its sample bad."""
    id_of_class = {name: number for number, name in enumerate(classes)}
    shards, bad = [], []
    for scan in scans:
        bad += scan.bad
        rows_known = list(range(len(scan.keys)))
        class_ids: tuple[int, ...] | None = None
        if columns.label is not None:
            rows_known = []
            for row, label in enumerate(scan.labels):
                if label in id_of_class:
                    rows_known.append(row)
                else:
                    detail = f"'{label}' is none of the {len(classes)} classes"
                    error = SampleError(BadReason.UNKNOWN_LABEL, detail)
                    bad.append(error.of(scan.ref.uri, scan.keys[row]))
            class_ids = tuple(id_of_class.get(label, -1) for label in scan.labels)
        shard = ShardIndex(
            ref=scan.ref,
            content_sha256=scan.content_sha256,
            keys=tuple(scan.keys),
            class_ids=class_ids,
            slices={name: tuple(values) for name, values in scan.slices.items()},
            num_wordings=scan.num_wordings,
            num_text_bytes=scan.num_text_bytes,
            num_audio_bytes=scan.num_audio_bytes,
        )
        shards.append(shard if len(rows_known) == len(shard.keys) else shard.with_rows(rows_known))
    return shards, bad


def _check_columns(first: _Scan, columns: Columns) -> None:
    """A misspelt column breaks every sample: say so after one shard and not after the last."""
    reasons = {sample.reason for sample in first.bad}
    if len(first.bad) < first.num_read or len(reasons) != 1 or (reason := reasons.pop()) not in _MISSING:
        return
    part = _MISSING[reason]
    sample = first.bad[0]
    raise TooManyBadSamplesError(
        f"`spec.data.columns.{part}` must name what the samples hold, got '{getattr(columns, part)}', which none of "
        f"the {first.num_read} samples of shard '{first.ref.uri}' has; the first is '{sample.key}': {sample.detail}; "
        "correct the column",
        sample.shard,
        sample.key,
    )


def _check_share(bad: Sequence[BadSample], num_read: int, max_percent: int) -> None:
    if len(bad) * 100 <= max_percent * num_read:
        return
    sample = bad[0]
    raise TooManyBadSamplesError(
        f"at most {max_percent} % of the samples may be broken (`spec.data.maxBadSamplesPercent`), got {len(bad)} of "
        f"{num_read} ({100 * len(bad) / num_read:.1f} %); the first is '{sample.key}' in shard '{sample.shard}': "
        f"{sample.reason.value}, {sample.detail}; correct the samples or raise the limit",
        sample.shard,
        sample.key,
    )
