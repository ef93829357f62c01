"""Texts to a model's inputs, for the few texts that do not come from the data: names of classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from limbeck_runtime.models.preprocessing import Padding, TextPreprocessing


def text_inputs(text: TextPreprocessing, tokenizer: Any, texts: Sequence[str]) -> dict[str, torch.Tensor]:
    """input_ids and attention_mask, int64 (B, T), padded as the model wants it."""
    rows = text.encode(tokenizer, texts)
    width = text.max_length if text.padding is Padding.MAX_LENGTH else max(map(len, rows))
    ids_BT = torch.full((len(rows), width), text.pad_id, dtype=torch.int64)
    mask_BT = torch.zeros((len(rows), width), dtype=torch.int64)
    for row, ids in enumerate(rows):
        ids_BT[row, : len(ids)] = torch.tensor(ids, dtype=torch.int64)
        mask_BT[row, : len(ids)] = 1
    return {"input_ids": ids_BT, "attention_mask": mask_BT}
