"""A shard decoded to plain arrays, so that a batch is fancy indexing.

N: samples of the shard, H, W: the model's image size, L: all texts or sounds of the shard end to end.

Left out: labels and keys, which the index holds, and normalised pixels, which would take four times the memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from limbeck_runtime.data.audio import decode_audio
from limbeck_runtime.data.content_hash import ContentHash
from limbeck_runtime.data.decode import decode_image
from limbeck_runtime.data.errors import DataError, ShardChangedError
from limbeck_runtime.data.index_records import DataIndex, ShardIndex
from limbeck_runtime.data.read import read_shard
from limbeck_runtime.data.samples import RawSample, SampleError
from limbeck_runtime.models.preprocessing import Preprocessing, TextPreprocessing

_SAMPLES_PER_TASK = 32
_TASKS_AHEAD = 8
# A token comes of at least one byte of text, but for the few that tokenizers put around it.
_SPECIAL_TOKENS = 8


@dataclass(frozen=True)
class Ragged:
    """Rows of different lengths end to end: row r is values[starts[r]:starts[r + 1]]."""

    values: np.ndarray  # (L,)
    starts: np.ndarray  # int64 (rows + 1,)

    @classmethod
    def of(cls, rows: Sequence[np.ndarray], dtype: type[np.generic]) -> Ragged:
        """Put rows end to end."""
        starts = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum([len(row) for row in rows], out=starts[1:])
        values = np.empty(int(starts[-1]), dtype=dtype)
        for row, start in zip(rows, starts.tolist(), strict=False):
            values[start : start + len(row)] = row
        return cls(values, starts)

    def row(self, row: int) -> np.ndarray:
        """One row, a view."""
        return self.values[self.starts[row] : self.starts[row + 1]]

    def padded(self, rows: np.ndarray, fill: int) -> tuple[np.ndarray, np.ndarray]:
        """The given rows side by side (len(rows), longest) and their lengths; `fill` stands behind their ends."""
        starts = self.starts[rows]
        lengths = self.starts[rows + 1] - starts
        places = np.arange(int(lengths.max(initial=0)))
        inside = places[None, :] < lengths[:, None]
        found = self.values[np.minimum(starts[:, None] + places[None, :], max(0, len(self.values) - 1))]
        return np.where(inside, found, self.values.dtype.type(fill)), lengths

    @property
    def num_bytes(self) -> int:
        """Memory of both arrays."""
        return self.values.nbytes + self.starts.nbytes


@dataclass(frozen=True)
class DecodedShard:
    """The good samples of one shard in the index's order."""

    images: np.ndarray | None  # uint8 (N, 3, H, W)
    tokens: Ragged | None  # int32, a row for each wording
    wordings: np.ndarray | None  # int64 (N + 1,): sample n has the wordings from [n] up to [n + 1]
    audio: Ragged | None  # int16, a row for each sample

    @property
    def num_bytes(self) -> int:
        """Memory that the shard takes."""
        ragged = sum(part.num_bytes for part in (self.tokens, self.audio) if part is not None)
        plain = sum(part.nbytes for part in (self.images, self.wordings) if part is not None)
        return ragged + plain


def estimate_bytes(shard: ShardIndex, preprocessing: Preprocessing) -> int:
    """The most that a shard can take once decoded, from the index alone."""
    total = 0
    num_samples = len(shard.keys)
    if preprocessing.image is not None:
        total += num_samples * 3 * preprocessing.image.size**2
    if (text := preprocessing.text) is not None:
        around = text.num_image_tokens + _SPECIAL_TOKENS
        tokens = min(shard.num_text_bytes + around * shard.num_wordings, text.max_length * shard.num_wordings)
        total += 4 * tokens + 8 * (num_samples + shard.num_wordings + 2)
    if (audio := preprocessing.audio) is not None:
        total += num_samples * (2 * round(audio.chunk_seconds * audio.sampling_rate) + 8) + 8
    return total


class ShardDecoder:
    """Reads and decodes whole shards of one index for one preprocessing; safe to use from several threads."""

    def __init__(
        self,
        index: DataIndex,
        preprocessing: Preprocessing,
        pool: Executor,
        storage_options: Mapping[str, str] | None,
        stopped: Callable[[], bool],
    ) -> None:
        self._index = index
        self._preprocessing = preprocessing
        self._pool = pool
        self._storage_options = storage_options
        self._stopped = stopped
        self._tokenizer = None if preprocessing.text is None else preprocessing.text.build_tokenizer()

    def decode(self, shard_number: int) -> DecodedShard:
        """Decode one shard, a few tasks ahead of the reading, and check that it is what the index was built from.

        Raises:
            ShardChangedError: the shard holds other samples than it did.
        """
        shard = self._index.shards[shard_number]
        size = self._preprocessing.image.size if self._preprocessing.image is not None else None
        images = None if size is None else np.empty((len(shard.keys), 3, size, size), dtype=np.uint8)
        tokens: list[np.ndarray] = []
        num_wordings: list[int] = []
        audio: list[np.ndarray] = []
        content = ContentHash()
        for part in self._decoded(self._samples(shard, content), images):
            tokens += part.tokens
            num_wordings += part.num_wordings
            audio += part.audio
        if content.hexdigest() != shard.content_sha256:
            raise ShardChangedError(shard.ref.uri)
        has_text = self._preprocessing.text is not None
        return DecodedShard(
            images=images,
            tokens=Ragged.of(tokens, np.int32) if has_text else None,
            wordings=np.concatenate([[0], np.cumsum(num_wordings, dtype=np.int64)]) if has_text else None,
            audio=Ragged.of(audio, np.int16) if self._preprocessing.audio is not None else None,
        )

    def _samples(self, shard: ShardIndex, content: ContentHash) -> Iterator[RawSample]:
        """The shard's samples that the index counts; `content` takes in all that are read."""
        row = 0
        for sample in read_shard(shard.ref, self._index.columns, self._index.data_format, self._storage_options):
            content.add(sample)
            if row < len(shard.keys) and sample.key == shard.keys[row]:
                if not isinstance(sample, RawSample):
                    raise ShardChangedError(shard.ref.uri)
                row += 1
                yield sample
        if row < len(shard.keys):
            raise ShardChangedError(shard.ref.uri)

    def _decoded(self, samples: Iterator[RawSample], images: np.ndarray | None) -> Iterator[_Part]:
        """Decode in tasks of a few samples; at most `_TASKS_AHEAD` of them hold encoded samples at a time."""
        ahead: deque[Future[_Part]] = deque()
        first_row = 0
        try:
            while chunk := list(islice(samples, _SAMPLES_PER_TASK)):
                if self._stopped():
                    raise RuntimeError("the data loader is closed")
                out = None if images is None else images[first_row : first_row + len(chunk)]
                ahead.append(self._pool.submit(self._decode_chunk, chunk, out))
                first_row += len(chunk)
                if len(ahead) == _TASKS_AHEAD:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for task in ahead:
                task.cancel()

    def _decode_chunk(self, samples: list[RawSample], images: np.ndarray | None) -> _Part:
        part = _Part([], [], [])
        for row, sample in enumerate(samples):
            try:
                if self._preprocessing.image is not None and images is not None and sample.image is not None:
                    images[row] = decode_image(sample.image, self._preprocessing.image)
                if self._preprocessing.audio is not None and sample.audio is not None:
                    part.audio.append(decode_audio(sample.audio, self._preprocessing.audio))
            except SampleError as error:
                raise DataError(
                    f"sample '{sample.key}' was whole when the run indexed it and cannot be decoded now: {error}; "
                    "start a new run on the new data"
                ) from error
        if (text := self._preprocessing.text) is not None:
            texts = [wording for sample in samples for wording in sample.texts]
            part.tokens.extend(_encode(text, self._tokenizer, texts))
            part.num_wordings.extend(len(sample.texts) for sample in samples)
        return part


@dataclass
class _Part:
    """Texts and sounds of some samples; images went to their place already."""

    tokens: list[np.ndarray]
    num_wordings: list[int]
    audio: list[np.ndarray]


def _encode(text: TextPreprocessing, tokenizer: Any, texts: list[str]) -> list[np.ndarray]:
    return [np.array(ids, dtype=np.int32) for ids in text.encode(tokenizer, texts)] if texts else []
