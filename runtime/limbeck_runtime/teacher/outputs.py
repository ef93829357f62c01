"""From what a teacher's forward pass gives to what is stored of it, a batch at a time, joined for the shard.

Logits over many classes are reduced on the teacher's device to the few that are kept. What comes by token is kept
without its padding. Left out: the stored bytes (store/codec.py).

Shapes: N samples of a shard, B of a batch, T tokens, V vocabulary, R rows (samples or tokens).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from limbeck_runtime.store import LOG_ZERO, Codec, Ragged, SampledCodec, TopKCodec
from limbeck_runtime.store.selection import sample_logits, top_k_logits

# Of how many bytes of a large vocabulary's logits a float32 copy is made at once.
_LOGIT_BYTES = 256 * 2**20


class ShardOutputs:
    """The outputs of one shard, collected batch by batch in the shard's order."""

    def __init__(self, identity: str, codecs: Mapping[str, Codec]) -> None:
        self._codecs = codecs
        self._parts: dict[str, list[np.ndarray]] = defaultdict(list)
        self._lengths: dict[str, list[np.ndarray | None]] = defaultdict(list)
        # The same shard gets the same draws, whoever computes it.
        self._seed = int(identity[:12], 16)
        self._generator: torch.Generator | None = None

    def add(self, outputs: Mapping[str, Tensor], mask_BT: Tensor | None) -> None:
        """Take in one batch. Raises KeyError if the teacher does not give what is to be stored."""
        for name, codec in self._codecs.items():
            values = outputs[name]
            by_token = mask_BT is not None and values.ndim == 3 and values.shape[:2] == mask_BT.shape
            if isinstance(codec, TopKCodec | SampledCodec):
                rows_RV = values[mask_BT != 0] if by_token and mask_BT is not None else values
                for part, kept in self._reduced(rows_RV, codec).items():
                    self._parts[f"{name}.{part}"].append(kept)
            else:
                # Padding goes when the shard is whole: only then it is sure that these are tokens and not patches.
                self._parts[name].append(values.float().cpu().numpy())
            lengths = mask_BT.ne(0).sum(1).cpu().numpy() if by_token and mask_BT is not None else None
            self._lengths[name].append(lengths)

    def joined(self) -> dict[str, np.ndarray | Ragged]:
        """All batches, by the store's names."""
        joined: dict[str, np.ndarray | Ragged] = {}
        for name, codec in self._codecs.items():
            lengths = [batch for batch in self._lengths[name] if batch is not None]
            by_token = len(lengths) == len(self._lengths[name])
            if isinstance(codec, TopKCodec | SampledCodec):
                for part in codec.parts:
                    rows = _stacked(part, self._parts[f"{name}.{part}"])
                    joined[f"{name}.{part}"] = Ragged(rows, np.concatenate(lengths)) if by_token else rows
            elif by_token:
                batches = zip(self._parts[name], lengths, strict=True)
                joined[name] = Ragged.concatenate([Ragged.from_padded(*batch) for batch in batches])
            else:
                joined[name] = np.concatenate(self._parts[name])
        return joined

    def _reduced(self, rows_RV: Tensor, codec: TopKCodec | SampledCodec) -> dict[str, np.ndarray]:
        # A student with fewer classes, or with a vocabulary padded to another size, sees the part that both have.
        rows_RV = rows_RV[:, : codec.vocabulary]
        step = max(1, _LOGIT_BYTES // (4 * codec.vocabulary))
        pieces = [self._select(rows_RV[start : start + step], codec) for start in range(0, len(rows_RV), step)]
        return {part: _stacked(part, [piece[part] for piece in pieces]) for part in codec.parts}

    def _select(self, rows_RV: Tensor, codec: TopKCodec | SampledCodec) -> dict[str, np.ndarray]:
        if isinstance(codec, TopKCodec):
            kept = top_k_logits(rows_RV, codec.k)
        else:
            if self._generator is None:
                self._generator = torch.Generator(rows_RV.device).manual_seed(self._seed)
            kept = sample_logits(rows_RV, codec.num_samples, self._generator)
        return {part: values.cpu().numpy() for part, values in kept.items()}


def _stacked(part: str, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Rows of several arrays. Draws are as wide as the row with most different ones, so some must be made wider."""
    widths = {array.shape[1] for array in arrays if array.ndim == 2}
    if len(widths) > 1:
        fill = 0 if part == "indices" else LOG_ZERO
        arrays = [np.pad(array, ((0, 0), (0, max(widths) - array.shape[1])), constant_values=fill) for array in arrays]
    return np.concatenate(arrays)
