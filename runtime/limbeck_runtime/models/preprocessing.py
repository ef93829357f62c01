"""What a model wants done to raw images, texts and sounds first: plain, frozen, JSON round trip.

Left out on purpose: the doing. Decoding, resizing and batching are `limbeck_runtime.data`'s; only the
tokenizer is built here, so that every part cuts and wraps a text in the same way.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, model_validator

PREPROCESSING_FILE = "preprocessing.json"
TOKENIZER_FILE = "tokenizer.json"


class Interpolation(StrEnum):
    """How pixels are resampled; always with antialiasing."""

    BILINEAR = "Bilinear"
    BICUBIC = "Bicubic"


class Fit(StrEnum):
    """How an image that is not square becomes one."""

    STRETCH = "Stretch"  # both sides to `size`, as SigLIP does
    CENTER_CROP = "CenterCrop"  # the short side to `size`, then the middle, as CLIP does


class Padding(StrEnum):
    """How far the texts of a batch are padded."""

    LONGEST = "Longest"  # to the longest of the batch
    MAX_LENGTH = "MaxLength"  # always to `max_length`; SigLIP was trained so, without an attention mask


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    def to_json(self) -> str:
        """The whole record as one line of JSON; equal records give equal text."""
        return self.model_dump_json()

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Inverse of `to_json`; raises pydantic's ValidationError (a ValueError) on anything else."""
        return cls.model_validate_json(text)

    def identity(self) -> str:
        """Hex sha256 of the record."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


class ImagePreprocessing(_Record):
    """Square RGB images: fit to `size` by `size`, scale to 0..1, then (x - mean) / std for each channel.

    With `crop_percent` below 100 the image is first resized to `resized_size`, of which the middle is kept.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Interpolation = Interpolation.BICUBIC
    fit: Fit = Fit.CENTER_CROP
    crop_percent: float = 100.0

    @property
    def resized_size(self) -> int:
        """Pixels of the short side (of both when stretched) before the middle `size` by `size` is cut out."""
        return max(self.size, math.floor(self.size * 100 / self.crop_percent + 1e-6))

    @model_validator(mode="after")
    def _usable(self) -> Self:
        if self.size < 1:
            raise ValueError(f"`size` must be at least 1 pixel, got {self.size}")
        if not 10 <= self.crop_percent <= 100:
            raise ValueError(f"`crop_percent` must lie in 10..100, got {self.crop_percent}")
        if min(self.std) <= 0:
            raise ValueError(f"`std` must be positive, got {self.std}")
        return self


class TextPreprocessing(_Record):
    """Texts to token ids.

    A text is encoded as `image_token * num_image_tokens + text`, special tokens as the tokenizer's own
    post-processor adds them, cut to `max_length`, then `eos_id` where `append_eos` (counted in `max_length`).
    """

    tokenizer_json: str
    max_length: int
    pad_id: int
    padding: Padding = Padding.LONGEST
    eos_id: int | None = None
    append_eos: bool = False
    image_token: str | None = None
    image_token_id: int | None = None
    num_image_tokens: int = 0

    @model_validator(mode="after")
    def _usable(self) -> Self:
        if self.append_eos and self.eos_id is None:
            raise ValueError("`eos_id` must be given when `append_eos` is true, got nothing")
        if self.num_image_tokens and (self.image_token is None or self.image_token_id is None):
            raise ValueError("`image_token` and `image_token_id` must be given when `num_image_tokens` is not 0")
        if self.max_length <= self.num_image_tokens + self.append_eos:
            raise ValueError(
                f"`max_length` must leave room for text beside {self.num_image_tokens} image tokens, "
                f"got {self.max_length}"
            )
        return self

    def build_tokenizer(self) -> Any:
        """A `tokenizers.Tokenizer`, cut to `max_length`, never padding. Costs tens of ms: keep it."""
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_str(self.tokenizer_json)
        tokenizer.no_padding()
        tokenizer.enable_truncation(self.max_length - int(self.append_eos))
        return tokenizer

    def encode(self, tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, of different lengths, none longer than `max_length`."""
        prefix = (self.image_token or "") * self.num_image_tokens
        encodings = tokenizer.encode_batch_fast([prefix + text for text in texts])
        suffix = [self.eos_id] if self.append_eos and self.eos_id is not None else []
        return [[*encoding.ids, *suffix] for encoding in encodings]

    @property
    def vocabulary_size(self) -> int:
        """Entries of the tokenizer, added ones too; the model's may be larger where it is padded."""
        return int(self.build_tokenizer().get_vocab_size(with_added_tokens=True))


class AudioPreprocessing(_Record):
    """Mono sound at `sampling_rate` to log-mel features (num_mel_bins, frames) of `chunk_seconds`."""

    sampling_rate: int = 16_000
    num_mel_bins: int = 80
    fft_size: int = 400
    hop_length: int = 160
    chunk_seconds: float = 30.0


class Preprocessing(_Record):
    """All that a model wants done to its inputs; `identity()` goes into the key of teacher outputs."""

    image: ImagePreprocessing | None = None
    text: TextPreprocessing | None = None
    audio: AudioPreprocessing | None = None

    def to_files(self) -> dict[str, str]:
        """File name to text: preprocessing.json, and the tokenizer in the form its library reads."""
        if self.text is None:
            return {PREPROCESSING_FILE: self.to_json()}
        without = self.model_copy(update={"text": self.text.model_copy(update={"tokenizer_json": ""})})
        return {PREPROCESSING_FILE: without.to_json(), TOKENIZER_FILE: self.text.tokenizer_json}

    @classmethod
    def from_files(cls, files: Mapping[str, str]) -> Preprocessing:
        """Inverse of `to_files`; raises ValueError where tokenizer.json is needed and absent."""
        record = cls.from_json(files[PREPROCESSING_FILE])
        if record.text is None:
            return record
        if TOKENIZER_FILE not in files:
            raise ValueError(f"{PREPROCESSING_FILE} names a text model, but {TOKENIZER_FILE} is missing beside it")
        text = record.text.model_copy(update={"tokenizer_json": files[TOKENIZER_FILE]})
        return record.model_copy(update={"text": text})
