"""A hash of what models read of a shard's samples: equal for equal content, however it is packed."""

from __future__ import annotations

import hashlib

from limbeck_runtime.data.samples import BadSample, RawSample


class ContentHash:
    """SHA-256 over samples in order; every part is preceded by its length, so no two contents read alike."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, sample: RawSample | BadSample) -> None:
        """Take in one sample; of a bad one its key and fault."""
        if isinstance(sample, BadSample):
            self._take(b"bad", sample.key.encode("utf-8", "surrogatepass"), sample.reason.encode())
            return
        self._take(
            b"good",
            sample.key.encode(),
            sample.image,
            sample.audio,
            *(text.encode() for text in sample.texts),
        )

    def hexdigest(self) -> str:
        """The hash so far."""
        return self._digest.hexdigest()

    def _take(self, *parts: bytes | None) -> None:
        self._digest.update(len(parts).to_bytes(4, "big"))
        for part in parts:
            self._digest.update(b"-" if part is None else b"+%d:" % len(part))
            if part is not None:
                self._digest.update(part)
