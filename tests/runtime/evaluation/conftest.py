"""Bundles whose answers are chosen, not computed, and batches for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from limbeck_runtime.data.batch import Batch
from limbeck_runtime.models.bundle import Architecture, ModelBundle
from limbeck_runtime.models.preprocessing import Preprocessing, TextPreprocessing

WORDS = ("[PAD]", "[UNK]", "a", "picture", "of", "red", "apple", "green", "pear", "blue", "car", "fruit", "thing")


class Lookup(nn.Module):
    """Gives each sample the row of a table that its `row` input names."""

    def __init__(self, outputs: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self.outputs = dict(outputs)
        self.seen_training: list[bool] = []

    def forward(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        self.seen_training.append(self.training)
        return {name: table[inputs["row"]] for name, table in self.outputs.items()}


class ChosenDualEncoder(Lookup):
    """Images from a table; texts by the tokens they hold, each token a direction of its own."""

    def __init__(self, images: torch.Tensor, num_words: int, scale: float = 5.0) -> None:
        super().__init__({})
        self.images = images
        self.directions = torch.eye(num_words)
        self.scale = scale

    def forward(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {
            "image_embedding": nn.functional.normalize(self.images[inputs["row"]], dim=-1),
            "text_embedding": self.encode_text(inputs),
            "logit_scale": torch.tensor(self.scale),
        }

    def encode_text(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        mask = inputs["attention_mask"].unsqueeze(-1)
        return nn.functional.normalize((self.directions[inputs["input_ids"]] * mask).sum(1), dim=-1)


@pytest.fixture(scope="session")
def lookup() -> Callable[..., ModelBundle]:
    def make(task: str, **outputs: torch.Tensor) -> ModelBundle:
        return ModelBundle(Lookup(outputs), Architecture("test"), Preprocessing(), task)

    return make


@pytest.fixture(scope="session")
def text() -> TextPreprocessing:
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {word: number for number, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return TextPreprocessing(tokenizer_json=tokenizer.to_str(), max_length=8, pad_id=0)


@pytest.fixture(scope="session")
def dual(text: TextPreprocessing) -> Callable[[torch.Tensor], ModelBundle]:
    def make(images: torch.Tensor) -> ModelBundle:
        module = ChosenDualEncoder(images, len(WORDS))
        return ModelBundle(module, Architecture("test"), Preprocessing(text=text), "ImageText")

    return make


@pytest.fixture(scope="session")
def direction() -> Callable[..., torch.Tensor]:
    """The text direction of some words."""

    def make(*words: str) -> torch.Tensor:
        return torch.eye(len(WORDS))[[WORDS.index(word) for word in words]].sum(0)

    return make


@pytest.fixture(scope="session")
def batches(text: TextPreprocessing) -> Callable[..., list[Batch]]:
    """Batches of two over `count` samples; `texts` and `labels` by sample."""

    def make(count: int, texts: Sequence[str] | None = None, labels: Any = None, size: int = 2) -> list[Batch]:
        made = []
        for start in range(0, count, size):
            rows = list(range(start, min(start + size, count)))
            inputs = {"row": torch.tensor(rows)}
            if texts is not None:
                ids = text.encode(text.build_tokenizer(), [texts[row] for row in rows])
                width = max(map(len, ids))
                inputs["input_ids"] = torch.tensor([row + [0] * (width - len(row)) for row in ids])
                inputs["attention_mask"] = (inputs["input_ids"] != 0).long()
            if labels is not None:
                inputs["labels"] = torch.as_tensor(labels)[rows]
            keys = tuple(f"sample-{row}" for row in rows)
            made.append(Batch(inputs, keys, np.zeros(len(rows), np.int64), np.array(rows), 0))
        return made

    return make
