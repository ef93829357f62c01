"""One sample as it lies in the data, whole or broken. Decoding it is another matter (`decode`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from pydantic import BaseModel, ConfigDict

# Larger parts are not read at all: nothing honest is that large, and a header can claim anything.
MAX_FIELD_BYTES = 128 * 2**20


class BadReason(StrEnum):
    """Why a sample is skipped."""

    MISSING_KEY = "MissingKey"
    MISSING_IMAGE = "MissingImage"
    MISSING_TEXT = "MissingText"
    MISSING_LABEL = "MissingLabel"
    MISSING_AUDIO = "MissingAudio"
    EMPTY_TEXT = "EmptyText"
    NOT_UTF8 = "NotUtf8"
    WRONG_TYPE = "WrongType"  # a number where a text is wanted, and the like
    INVALID_JSON = "InvalidJson"
    TOO_MANY_BYTES = "TooManyBytes"
    NOT_AN_IMAGE = "NotAnImage"
    TRUNCATED_IMAGE = "TruncatedImage"
    BROKEN_IMAGE = "BrokenImage"
    IMAGE_TOO_SMALL = "ImageTooSmall"
    IMAGE_TOO_LARGE = "ImageTooLarge"
    NOT_AUDIO = "NotAudio"
    UNKNOWN_LABEL = "UnknownLabel"


@dataclass(frozen=True)
class RawSample:
    """A sample with its parts still encoded. View v of it takes the wording texts[v % len(texts)]."""

    key: str
    image: bytes | None = None
    texts: tuple[str, ...] = ()
    label: str | None = None
    audio: bytes | None = None
    slices: Mapping[str, str] = field(default_factory=dict)


class BadSample(BaseModel):
    """A sample that is skipped: where it lies, why, and what exactly was found."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shard: str
    key: str
    reason: BadReason
    detail: str


class SampleError(ValueError):
    """Raised inside `limbeck_runtime.data` by what looks at one part of a sample; becomes a `BadSample`."""

    def __init__(self, reason: BadReason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def of(self, shard: str, key: str) -> BadSample:
        """The same as a record that names the sample."""
        return BadSample(shard=shard, key=key, reason=self.reason, detail=self.detail)
