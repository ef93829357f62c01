"""Samples as one JSON object a line. An image or sound is base64 text, or a path beside the file.

A path is told from base64 by its dot. Paths that leave the file's folder are refused.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Iterator, Mapping
from typing import IO

from limbeck.api.v1alpha1.data import Columns
from limbeck_runtime.data.compose import DEFAULT_KEY_COLUMN, compose_sample, key_from, parse_json
from limbeck_runtime.data.errors import BrokenShardError
from limbeck_runtime.data.samples import MAX_FIELD_BYTES, BadReason, BadSample, RawSample, SampleError
from limbeck_runtime.data.shard_file import open_shard, split_uri
from limbeck_runtime.data.shard_ref import ShardRef
from limbeck_runtime.storage import NotFoundError, Storage

# Base64 takes four characters for three bytes; the rest of the line is text.
_MAX_LINE_BYTES = 2 * MAX_FIELD_BYTES


def read_json_lines(
    ref: ShardRef, columns: Columns, storage_options: Mapping[str, str] | None = None
) -> Iterator[RawSample | BadSample]:
    """Yield the samples of one file in its order; a line that is no JSON object is one bad sample.

    Raises:
        BrokenShardError: the file is missing, or its packing is damaged.
    """
    folder = Storage.open(split_uri(ref.uri)[0], options=storage_options)
    after: str | None = None
    with open_shard(ref.uri, storage_options) as file:
        try:
            for number, line in _lines(file):
                sample = _sample(ref, f"{ref.name}#{number}", line, columns, folder)
                yield sample
                after = sample.key
        except (EOFError, OSError, zlib.error) as error:
            raise BrokenShardError(ref.uri, after, str(error) or type(error).__name__) from error


def _lines(file: IO[bytes]) -> Iterator[tuple[int, bytes | SampleError]]:
    """Lines that are not blank, each within bounds, with their numbers from 0."""
    number = -1
    while line := file.readline(_MAX_LINE_BYTES):
        number += 1
        if len(line) == _MAX_LINE_BYTES and not line.endswith(b"\n"):
            while (rest := file.readline(1 << 20)) and not rest.endswith(b"\n"):
                pass
            yield number, SampleError(BadReason.TOO_MANY_BYTES, f"a line of more than {_MAX_LINE_BYTES} bytes")
        elif line.strip():
            yield number, line


def _sample(
    ref: ShardRef, place: str, line: bytes | SampleError, columns: Columns, folder: Storage
) -> RawSample | BadSample:
    key = place
    try:
        if isinstance(line, SampleError):
            raise line
        record = parse_json(line)
        if not isinstance(record, dict):
            raise SampleError(BadReason.INVALID_JSON, f"a line must hold an object, got {type(record).__name__}")
        if columns.key != DEFAULT_KEY_COLUMN or columns.key in record:
            key = key_from(record.get(columns.key))
    except SampleError as error:
        return error.of(ref.uri, place)

    def lookup(column: str) -> object:
        value = record.get(column)
        if isinstance(value, str) and column in (columns.image, columns.audio):
            missing = BadReason.MISSING_IMAGE if column == columns.image else BadReason.MISSING_AUDIO
            return _bytes(value, folder, missing)
        return value

    return compose_sample(ref.uri, key, lookup, columns, record)


def _bytes(text: str, folder: Storage, missing: BadReason) -> bytes:
    if text.startswith("data:"):
        text = text.partition(",")[2]
    elif "." in text:
        return _file(text, folder, missing)
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise SampleError(BadReason.WRONG_TYPE, f"neither base64 nor a path: {error}") from None


def _file(path: str, folder: Storage, missing: BadReason) -> bytes:
    try:
        info = folder.head(path)
        if info is None:
            raise SampleError(missing, f"there is no file '{path}' beside the shard")
        if info.size > MAX_FIELD_BYTES:
            raise SampleError(BadReason.TOO_MANY_BYTES, f"{info.size} bytes, at most {MAX_FIELD_BYTES}")
        return folder.get(path)
    except NotFoundError as error:
        raise SampleError(missing, str(error)) from None
    except SampleError:
        raise
    except ValueError as error:  # an absolute path, or one with ..
        raise SampleError(BadReason.WRONG_TYPE, str(error)) from None
