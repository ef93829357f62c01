"""Building the index: every sample looked at once, broken ones set aside, keys unique, labels numbered."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from limbeck.api.v1alpha1.data import Columns, DataFormat
from limbeck_runtime.data.audio import check_audio
from limbeck_runtime.data.compose import effective_columns
from limbeck_runtime.data.content_hash import ContentHash
from limbeck_runtime.data.decode import check_image
from limbeck_runtime.data.errors import DataError, DuplicateKeyError, TooManyBadSamplesError
from limbeck_runtime.data.index_records import DataIndex, ShardIndex, held_out
from limbeck_runtime.data.read import read_shard
from limbeck_runtime.data.samples import BadReason, BadSample, RawSample, SampleError
from limbeck_runtime.data.shard_ref import ShardRef

__all__ = ["DataIndex", "ShardIndex", "build_index", "held_out"]

# Whole numbers below this are class ids as they are, so that a pretrained model's classes keep their places.
_MAX_NUMERIC_CLASSES = 100_000
_MISSING = {
    BadReason.MISSING_KEY: "key",
    BadReason.MISSING_IMAGE: "image",
    BadReason.MISSING_TEXT: "text",
    BadReason.MISSING_LABEL: "label",
    BadReason.MISSING_AUDIO: "audio",
}


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
    stopped = threading.Event()
    with ThreadPoolExecutor(max(1, num_threads), "limbeck-index") as pool:
        try:
            scanned = pool.map(lambda ref: _scan(ref, columns, data_format, storage_options, stopped), refs)
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
            stopped.set()
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


def _scan(
    ref: ShardRef,
    columns: Columns,
    data_format: DataFormat,
    storage_options: Mapping[str, str] | None,
    stopped: threading.Event,
) -> _Scan:
    scan = _Scan(ref, slices={name: [] for name in columns.slices})
    content = ContentHash()
    for sample in read_shard(ref, columns, data_format, storage_options):
        if stopped.is_set():
            break  # another shard has failed: nobody will read this result
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
