"""From the fields of one record, whatever file they come from, to a `RawSample`: one set of rules for all formats.

A field is bytes (a file in a tar, a binary column), a str, a number, a list, or a mapping with `bytes`
(an image as `datasets` writes it to Parquet).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping

from limbeck.api.v1alpha1.data import Columns, DataFormat
from limbeck_runtime.data.samples import MAX_FIELD_BYTES, BadReason, BadSample, RawSample, SampleError

# The column of an image folder that holds the name of an image's first folder.
FOLDER_COLUMN = "folder"
IMAGE_ENDINGS = ("png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff")
DEFAULT_KEY_COLUMN = "__key__"

_MISSING = (
    BadReason.MISSING_IMAGE,
    BadReason.MISSING_TEXT,
    BadReason.MISSING_LABEL,
    BadReason.MISSING_AUDIO,
)
_MAX_NAMES_SHOWN = 12

# Looks a column up in a record; None where the record lacks it. May raise SampleError.
Lookup = Callable[[str], object]


def effective_columns(columns: Columns, data_format: DataFormat) -> Columns:
    """The columns with what the format implies: an image folder holds images, and its folders are their classes.

    Raises:
        ValueError: no part of a sample is named.
    """
    if data_format is DataFormat.IMAGE_FOLDER:
        implied: dict[str, str] = {}
        if columns.image is None:
            implied["image"] = ";".join(IMAGE_ENDINGS)
        if columns.label is None and columns.text is None:
            implied["label"] = FOLDER_COLUMN
        return columns.model_copy(update=implied)
    if columns.image is columns.text is columns.audio is None:
        raise ValueError(
            "`spec.data.columns` must name at least one of `image`, `text` and `audio`, got none; "
            "set them to the columns or file endings of your data, e.g. {image: jpg, text: txt}"
        )
    return columns


def compose_sample(
    shard: str, key: str, lookup: Lookup, columns: Columns, present: Iterable[str]
) -> RawSample | BadSample:
    """Build the sample named `key` from the columns that are asked for; the first fault found makes it bad.

    `present` names what the record holds, for the message where a column is missing.
    """
    try:
        _check_key(key)
        return RawSample(
            key=key,
            image=None if columns.image is None else _binary(lookup(columns.image), BadReason.MISSING_IMAGE),
            texts=() if columns.text is None else _wordings(lookup(columns.text)),
            label=None if columns.label is None else _label(lookup(columns.label)),
            audio=None if columns.audio is None else _binary(lookup(columns.audio), BadReason.MISSING_AUDIO),
            slices=_slices(lookup, columns.slices),
        )
    except SampleError as error:
        if error.reason in _MISSING:
            names = sorted(present)[:_MAX_NAMES_SHOWN]
            error = SampleError(error.reason, f"{error.detail}; the sample has {', '.join(names) or 'nothing'}")
        return error.of(shard, key.encode("utf-8", "backslashreplace").decode())


def key_from(value: object) -> str:
    """A sample's key from its key column: a text or a whole number."""
    if value is None:
        raise SampleError(BadReason.MISSING_KEY, "the key column is missing or null")
    if isinstance(value, bool) or not isinstance(value, bytes | str | int):
        raise SampleError(BadReason.WRONG_TYPE, f"the key must be a text or a whole number, got {_kind(value)}")
    key = str(value) if isinstance(value, int) else _text(value)
    if not key:
        raise SampleError(BadReason.MISSING_KEY, "the key is empty")
    return key


def parse_json(data: bytes | str) -> object:
    """Parse one JSON value; the fault is told apart from bytes that are no UTF-8."""
    text = _text(data)
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise SampleError(BadReason.INVALID_JSON, str(error)) from None


def _check_key(key: str) -> None:
    """File names need not be UTF-8; Python then hands them over with surrogates, which nothing else takes."""
    try:
        key.encode()
    except UnicodeEncodeError as error:
        raise SampleError(BadReason.NOT_UTF8, f"the sample's name: {error}"[:200]) from None


def _binary(value: object, missing: BadReason) -> bytes:
    if isinstance(value, Mapping):
        value = value.get("bytes")
    if value is None:
        raise SampleError(missing, "there is none")
    if not isinstance(value, bytes):
        raise SampleError(BadReason.WRONG_TYPE, f"must be bytes, got {_kind(value)}")
    if len(value) > MAX_FIELD_BYTES:
        raise SampleError(BadReason.TOO_MANY_BYTES, f"{len(value)} bytes, at most {MAX_FIELD_BYTES}")
    return value


def _wordings(value: object) -> tuple[str, ...]:
    """One text, or a list of wordings (also as JSON inside of a text)."""
    if value is None:
        raise SampleError(BadReason.MISSING_TEXT, "there is none")
    if isinstance(value, bytes | str):
        text = _text(value)
        value = [text]
        if text.startswith("[") and text.endswith("]"):
            try:
                parsed = json.loads(text)
            except (json.JSONDecodeError, RecursionError):
                parsed = None  # a text in brackets, no list
            if isinstance(parsed, list):
                value = parsed
    if not isinstance(value, list):
        raise SampleError(BadReason.WRONG_TYPE, f"must be a text or a list of texts, got {_kind(value)}")
    for item in value:
        if not isinstance(item, bytes | str):
            raise SampleError(BadReason.WRONG_TYPE, f"each wording must be a text, got {_kind(item)}")
    texts = tuple(_text(item) for item in value)
    if not texts or not all(texts):
        raise SampleError(BadReason.EMPTY_TEXT, "the text is empty" if texts else "the list of wordings is empty")
    return texts


def _label(value: object) -> str:
    if value is None:
        raise SampleError(BadReason.MISSING_LABEL, "there is none")
    label = _scalar(value)
    if label is None:
        raise SampleError(BadReason.WRONG_TYPE, f"must be a text or a whole number, got {_kind(value)}")
    if not label:
        raise SampleError(BadReason.MISSING_LABEL, "it is empty")
    return label


def _slices(lookup: Lookup, names: list[str]) -> dict[str, str]:
    """Values of the slice columns; an absent one is left out and does not break the sample."""
    found = {name: lookup(name) for name in names}
    return {name: text for name, value in found.items() if (text := _scalar(value))}


def _scalar(value: object) -> str | None:
    if isinstance(value, bytes | str):
        return _text(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    # Whole numbers with gaps come out of data frames as floats.
    return str(int(value)) if float(value).is_integer() else str(value)


def _text(value: bytes | str) -> str:
    """UTF-8 without surrounding white space; a lone surrogate out of JSON is no UTF-8 either."""
    if len(value) > MAX_FIELD_BYTES:
        raise SampleError(BadReason.TOO_MANY_BYTES, f"{len(value)} bytes, at most {MAX_FIELD_BYTES}")
    try:
        text = value.decode() if isinstance(value, bytes) else value
        text.encode()
    except UnicodeError as error:
        raise SampleError(BadReason.NOT_UTF8, str(error)[:200]) from None
    return text.strip()


def _kind(value: object) -> str:
    return type(value).__name__
