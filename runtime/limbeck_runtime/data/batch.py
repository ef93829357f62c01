"""One batch: the tensors that a model reads, and which samples they came from.

B: batch, H, W: image size, T: tokens of the longest text, M: mel bins, F: frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import torch
from torch import Tensor

from limbeck.api.v1alpha1.data import Augmentation
from limbeck_runtime.data.audio import FULL_SCALE, log_mel
from limbeck_runtime.data.augment import apply_views, is_identity, view_parameters
from limbeck_runtime.data.cache import ShardCache
from limbeck_runtime.data.decoded import DecodedShard
from limbeck_runtime.data.index_records import DataIndex
from limbeck_runtime.models.preprocessing import Padding, Preprocessing, TextPreprocessing

# What a token that is no target has in `labels`, as torch's cross entropy leaves it out.
IGNORED_LABEL = -100


class Labels(StrEnum):
    """What the `labels` of a batch are."""

    NONE = "None"
    CLASSES = "Classes"  # int64 (B,), the index's class ids
    TOKENS = "Tokens"  # int64 (B, T), the input ids themselves, -100 at padding and image tokens


@dataclass(frozen=True)
class Batch:
    """Inputs by name: pixel_values float32 (B, 3, H, W); input_ids, attention_mask int64 (B, T); input_features
    float32 (B, M, F); labels as `Labels` says. `shards` and `rows` are the samples' places in the index."""

    inputs: dict[str, Tensor]
    keys: tuple[str, ...]
    shards: np.ndarray
    rows: np.ndarray
    view: int

    @property
    def num_bytes(self) -> int:
        """Memory of all tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.inputs.values())

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True)
class BatchAssembler:
    """Makes batches out of cached shards; a pure function of positions and view."""

    index: DataIndex
    preprocessing: Preprocessing
    cache: ShardCache
    augmentation: Augmentation | None
    seed: int
    labels: Labels

    def assemble(self, positions: np.ndarray, view: int) -> Batch:
        """The batch of the samples at (shard, row), int64 (B, 2), each in view number `view`."""
        shards, rows = positions[:, 0], positions[:, 1]
        parts = _Parts(len(positions), self.preprocessing)
        for shard in np.unique(shards).tolist():
            places = np.flatnonzero(shards == shard)
            with self.cache.holding(shard) as decoded:
                parts.take(decoded, places, rows[places], view)
        keys = self.index.keys(positions)
        inputs: dict[str, Tensor] = {}
        if parts.images is not None:
            inputs["pixel_values"] = self._pixels(torch.from_numpy(parts.images), keys, view)
        if (text := self.preprocessing.text) is not None:
            inputs |= _texts(parts.tokens, len(positions), text)
            if self.labels is Labels.TOKENS:
                inputs["labels"] = _token_labels(inputs, text)
        if (audio := self.preprocessing.audio) is not None:
            assert parts.waveforms is not None
            inputs["input_features"] = log_mel(torch.from_numpy(parts.waveforms), audio)
        if self.labels is Labels.CLASSES:
            inputs["labels"] = torch.tensor(self._class_ids(shards, rows), dtype=torch.int64)
        return Batch(inputs, keys, shards.copy(), rows.copy(), view)

    def _pixels(self, images_B3HW: Tensor, keys: Sequence[str], view: int) -> Tensor:
        assert self.preprocessing.image is not None
        if self.augmentation is None or is_identity(self.augmentation):
            pixels_B3HW = images_B3HW.float()
        else:
            pixels_B3HW = apply_views(images_B3HW, view_parameters(self.augmentation, self.seed, keys, view))
        mean = torch.tensor(self.preprocessing.image.mean)[:, None, None]
        std = torch.tensor(self.preprocessing.image.std)[:, None, None]
        return pixels_B3HW.mul_(1 / (255 * std)).sub_(mean / std)

    def _class_ids(self, shards: np.ndarray, rows: np.ndarray) -> list[int]:
        ids = []
        for shard, row in zip(shards.tolist(), rows.tolist(), strict=True):
            of_shard = self.index.shards[shard].class_ids
            assert of_shard is not None
            ids.append(of_shard[row])
        return ids


class _Parts:
    """Rows copied out of shards, images into their place in the batch at once."""

    def __init__(self, num_samples: int, preprocessing: Preprocessing) -> None:
        size = 0 if preprocessing.image is None else preprocessing.image.size
        self.images = np.empty((num_samples, 3, size, size), np.uint8) if size else None
        self.tokens: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self.waveforms: np.ndarray | None = None
        if (audio := preprocessing.audio) is not None:
            self.waveforms = np.zeros((num_samples, round(audio.chunk_seconds * audio.sampling_rate)), np.float32)

    def take(self, decoded: DecodedShard, places: np.ndarray, rows: np.ndarray, view: int) -> None:
        """Copy `rows` of a shard to `places` of the batch."""
        if self.images is not None and decoded.images is not None:
            if len(places) == len(self.images):
                np.take(decoded.images, rows, axis=0, out=self.images, mode="clip")
            else:
                self.images[places] = decoded.images[rows]
        if decoded.tokens is not None and decoded.wordings is not None:
            first = decoded.wordings[rows]
            chosen = first + view % (decoded.wordings[rows + 1] - first)
            self.tokens.append((places, *decoded.tokens.padded(chosen, 0)))
        if self.waveforms is not None and decoded.audio is not None:
            for place, row in zip(places.tolist(), rows.tolist(), strict=True):
                sound = decoded.audio.row(row)
                self.waveforms[place, : len(sound)] = sound / np.float32(FULL_SCALE)


def _texts(
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]], num_samples: int, text: TextPreprocessing
) -> dict[str, Tensor]:
    longest = max((ids.shape[1] for _, ids, _ in parts), default=0)
    width = text.max_length if text.padding is Padding.MAX_LENGTH else longest
    ids_BT = np.full((num_samples, width), text.pad_id, np.int64)
    mask_BT = np.zeros((num_samples, width), np.int64)
    for places, ids, lengths in parts:
        inside = np.arange(ids.shape[1])[None, :] < lengths[:, None]
        ids_BT[places, : ids.shape[1]] = np.where(inside, ids, text.pad_id)
        mask_BT[places, : ids.shape[1]] = inside
    return {"input_ids": torch.from_numpy(ids_BT), "attention_mask": torch.from_numpy(mask_BT)}


def _token_labels(inputs: dict[str, Tensor], text: TextPreprocessing) -> Tensor:
    ids_BT = inputs["input_ids"]
    ignored_BT = inputs["attention_mask"] == 0
    if text.num_image_tokens:
        ignored_BT = ignored_BT | (ids_BT == text.image_token_id)
    return ids_BT.masked_fill(ignored_BT, IGNORED_LABEL)
