"""One worker's part of the capture: a shard of data through the teacher into the store.

Runs several shards at a time in threads: one shard is decoded, and another encoded and written, while a third is in
the model. Left out: which shard is whose turn (queue.py) and where workers run (pool.py).
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from limbeck.api.v1alpha1.data import Augmentation
from limbeck_runtime.data.batch import Labels
from limbeck_runtime.data.index import DataIndex
from limbeck_runtime.data.loader import BatchLoader
from limbeck_runtime.models.bundle import ModelBundle
from limbeck_runtime.models.tap import tap
from limbeck_runtime.store import (
    LOG_ZERO,
    Codec,
    EmbeddingCodec,
    FeatureCodec,
    Ragged,
    SampledCodec,
    TeacherStore,
    TopKCodec,
)
from limbeck_runtime.store.selection import sample_logits, top_k_logits
from limbeck_runtime.teacher.plan import CaptureTask

# Legend: N samples of a shard, B of a batch, T tokens, V vocabulary, L tokens of all samples of a batch.

FEATURE_PREFIX = "features."
# What one forward pass may take of a large vocabulary's logits.
_LOGIT_BYTES = 256 * 2**20


@dataclass(frozen=True)
class CaptureSettings:
    """All that a worker needs to know; picklable."""

    teacher: ModelBundle
    index: DataIndex
    augmentation: Augmentation
    seed: int
    codecs: Mapping[str, Codec]
    store: TeacherStore
    batch_size: int = 64
    num_threads: int | None = None


@dataclass(frozen=True)
class CaptureResult:
    """What came of one task."""

    identity: str
    num_samples: int
    num_bytes: int
    already_there: bool
    seconds: float


class Capturer:
    """The teacher in one process, ready to capture; `capture` may be called by several threads."""

    def __init__(self, settings: CaptureSettings) -> None:
        if settings.num_threads is not None:
            torch.set_num_threads(settings.num_threads)
        self._settings = settings
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._module = settings.teacher.module.eval().to(self._device)
        self._loader = BatchLoader(
            settings.index,
            settings.teacher.preprocessing,
            augmentation=settings.augmentation,
            seed=settings.seed,
            labels=Labels.NONE,
        )
        self._forward = threading.Lock()
        self._features = [name.removeprefix(FEATURE_PREFIX) for name in settings.codecs if _is_feature(name)]

    def capture(self, task: CaptureTask) -> CaptureResult:
        """Compute and store the outputs of one task, unless the store has them.

        Raises what the data, the teacher or the store raise.
        """
        started = time.monotonic()
        store = self._settings.store
        if store.has(task.identity):
            return CaptureResult(task.identity, task.num_samples, 0, True, 0.0)
        positions = np.stack(
            [np.full(task.num_samples, task.shard, np.int64), np.arange(task.num_samples, dtype=np.int64)], axis=1
        )
        parts: dict[str, list[np.ndarray | Ragged]] = defaultdict(list)
        for start in range(0, task.num_samples, self._settings.batch_size):
            batch = self._loader.batch(positions[start : start + self._settings.batch_size], task.view)
            for name, values in self._outputs(batch.inputs, task).items():
                parts[name].append(values)
        outputs = {name: _joined(name, values) for name, values in parts.items()}
        keys = self._settings.index.shards[task.shard].keys
        provenance = {"shard": self._settings.index.shards[task.shard].ref.uri, "view": task.view}
        written = store.write(task.identity, keys, outputs, provenance)
        return CaptureResult(
            task.identity, task.num_samples, written.bytes, written.already_there, time.monotonic() - started
        )

    def close(self) -> None:
        """End the decoding threads."""
        self._loader.close()

    def _outputs(self, inputs: Mapping[str, Tensor], task: CaptureTask) -> dict[str, np.ndarray | Ragged]:
        """What is stored of one batch, by the store's names."""
        on_device = {name: tensor.to(self._device, non_blocking=True) for name, tensor in inputs.items()}
        bf16 = self._device.type == "cuda"
        with (
            self._forward,
            torch.inference_mode(),
            torch.autocast("cuda", torch.bfloat16, enabled=bf16),
            tap(self._module, self._features) as features,
        ):
            outputs = dict(self._module(on_device))
            outputs |= {FEATURE_PREFIX + name: value for name, value in features.items()}
            wanted: dict[str, np.ndarray | Ragged] = {}
            for name, codec in self._settings.codecs.items():
                wanted |= _reduced(name, outputs[name], codec, on_device.get("attention_mask"), task)
        return wanted


def _reduced(
    name: str, values: Tensor, codec: Codec, mask_BT: Tensor | None, task: CaptureTask
) -> dict[str, np.ndarray | Ragged]:
    """One signal as its codec takes it; logits are reduced to the few that are kept where they are computed."""
    if isinstance(codec, EmbeddingCodec | FeatureCodec):
        return {name: values.float().cpu().numpy()}
    by_token = values.ndim == 3
    if by_token:
        assert mask_BT is not None
        rows_RV, lengths = values[mask_BT.bool()], mask_BT.sum(dim=1).cpu().numpy()
    else:
        rows_RV, lengths = values, None
    # A student with fewer classes, or with a vocabulary padded to another size, sees the part that both have.
    rows_RV = rows_RV[:, : codec.vocabulary]
    step = max(1, _LOGIT_BYTES // (4 * codec.vocabulary))
    pieces = [_select(rows_RV[start : start + step], codec, task) for start in range(0, len(rows_RV), step)]
    result: dict[str, np.ndarray | Ragged] = {}
    for part in pieces[0]:
        array = _stacked(part, [piece[part] for piece in pieces])
        result[f"{name}.{part}"] = array if lengths is None else Ragged(array, lengths)
    return result


def _select(rows_RV: Tensor, codec: TopKCodec | SampledCodec, task: CaptureTask) -> dict[str, np.ndarray]:
    if isinstance(codec, TopKCodec):
        kept = top_k_logits(rows_RV, codec.k)
    else:
        generator = torch.Generator(rows_RV.device).manual_seed(int(task.identity[:12], 16))
        kept = sample_logits(rows_RV, codec.num_samples, generator)
    return {part: values.cpu().numpy() for part, values in kept.items()}


def _joined(name: str, values: list[np.ndarray | Ragged]) -> np.ndarray | Ragged:
    """The batches of a shard, one after the other."""
    part = name.rpartition(".")[2]
    rows = _stacked(part, [value.values if isinstance(value, Ragged) else value for value in values])
    lengths = [value.lengths for value in values if isinstance(value, Ragged)]
    return Ragged(rows, np.concatenate(lengths)) if lengths else rows


def _stacked(part: str, arrays: list[np.ndarray]) -> np.ndarray:
    """Rows of several arrays. Draws are as wide as the row with most different ones, so some must be made wider."""
    widths = {array.shape[1] for array in arrays if array.ndim == 2}
    if len(widths) > 1:
        fill = 0 if part == "indices" else LOG_ZERO
        arrays = [np.pad(array, ((0, 0), (0, max(widths) - array.shape[1])), constant_values=fill) for array in arrays]
    return np.concatenate(arrays)


def _is_feature(name: str) -> bool:
    return name.startswith(FEATURE_PREFIX)
