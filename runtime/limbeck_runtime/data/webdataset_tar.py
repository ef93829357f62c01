"""Samples in a tar as the `webdataset` library lays them out: files of one name, one ending for each part.

`train/0001.jpg` and `train/0001.txt` are the parts `jpg` and `txt` of the sample `train/0001`. A column may name
several endings (`jpg;png`), or a field of the sample's `.json` part. Archives are read with bounds: only plain
files, none larger than 128 MiB, and links and devices are never followed.
"""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import IO

from limbeck.api.v1alpha1.data import Columns
from limbeck_runtime.data.compose import DEFAULT_KEY_COLUMN, compose_sample, key_from, parse_json
from limbeck_runtime.data.errors import BrokenShardError
from limbeck_runtime.data.samples import MAX_FIELD_BYTES, BadReason, BadSample, RawSample, SampleError
from limbeck_runtime.data.shard_file import open_shard
from limbeck_runtime.data.shard_ref import ShardRef

_JSON_ENDING = "json"
_BLOCK_BYTES = 512


def read_tar(
    ref: ShardRef, columns: Columns, storage_options: Mapping[str, str] | None = None
) -> Iterator[RawSample | BadSample]:
    """Yield the samples of one tar in its order, one sample in memory at a time.

    Raises:
        BrokenShardError: the tar is cut or damaged; what lies behind the damage would be lost unseen.
    """
    wanted = _wanted_endings(columns)
    after: str | None = None
    with open_shard(ref.uri, storage_options) as file:
        try:
            for tar_key, group in groupby(_parts(file, wanted), key=lambda part: part[0]):
                after = tar_key
                yield _sample(ref, tar_key, {ending: data for _, ending, data in group}, columns)
        except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
            raise BrokenShardError(ref.uri, after, str(error) or type(error).__name__) from error


def _sample(
    ref: ShardRef, tar_key: str, parts: dict[str, bytes | SampleError | None], columns: Columns
) -> RawSample | BadSample:
    fields: dict[str, object] = {}

    def lookup(column: str) -> object:
        for ending in _endings(column):
            value = parts.get(ending)
            if isinstance(value, SampleError):
                raise value
            if value is not None:
                return value
        if not fields and isinstance(described := parts.get(_JSON_ENDING), bytes):
            parsed = parse_json(described)
            if not isinstance(parsed, dict):
                raise SampleError(BadReason.INVALID_JSON, "the .json part must hold an object")
            fields.update(parsed)
        return fields.get(column)

    key = tar_key
    if columns.key != DEFAULT_KEY_COLUMN:
        try:
            key = key_from(lookup(columns.key))
        except SampleError as error:
            return error.of(ref.uri, tar_key)
    return compose_sample(ref.uri, key, lookup, columns, parts)


def _parts(file: IO[bytes], wanted: frozenset[str]) -> Iterator[tuple[str, str, bytes | SampleError | None]]:
    """Yield (key, ending, content) of each file; endings that nobody wants come without content."""
    tar = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115, the file is the caller's
    while (member := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # else each file seen leaves an entry in memory
        split = _split_name(member.name)
        if split is None or not member.isreg() or member.issparse():
            continue
        key, ending = split
        if ending not in wanted:
            yield key, ending, None
        elif member.size > MAX_FIELD_BYTES:
            found = f"the .{ending} part claims {member.size} bytes, at most {MAX_FIELD_BYTES}"
            yield key, ending, SampleError(BadReason.TOO_MANY_BYTES, found)
        else:
            content = tar.extractfile(member)
            assert content is not None
            yield key, ending, content.read()
    _check_end(file, tar.offset)


def _check_end(file: IO[bytes], offset: int) -> None:
    """The library takes a damaged header for the end, silently; a real end is a block of zeros, and then no more."""
    file.seek(offset)
    block = file.read(_BLOCK_BYTES)
    if len(block) < _BLOCK_BYTES:
        raise tarfile.ReadError(f"it ends at byte {offset} without tar's end mark")
    if any(block):
        raise tarfile.ReadError(f"the header at byte {offset} is damaged")
    while rest := file.read(1 << 16):
        if any(rest):
            raise tarfile.ReadError("there is data behind tar's end mark; several tars joined are not one tar")


def _split_name(name: str) -> tuple[str, str] | None:
    """Key and ending: the name is cut at the first dot of its last component. None for what is no part."""
    folder, slash, base = name.removeprefix("./").rpartition("/")
    stem, dot, ending = base.partition(".")
    if not dot or not stem or not ending or (stem.startswith("__") and stem.endswith("__")):
        return None
    return folder + slash + stem, ending.lower()


def _endings(column: str) -> list[str]:
    return [ending.strip().lower() for ending in column.split(";")]


def _wanted_endings(columns: Columns) -> frozenset[str]:
    named = [columns.key, columns.image, columns.text, columns.label, columns.audio, *columns.slices]
    return frozenset(ending for name in named if name is not None for ending in _endings(name)) | {_JSON_ENDING}
