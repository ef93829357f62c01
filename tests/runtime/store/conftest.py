"""A small shard with one signal of each kind, and stores to put it in."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from limbeck_runtime.storage import Storage
from limbeck_runtime.store import Codec, EmbeddingCodec, FeatureCodec, Ragged, SampledCodec, TeacherStore, TopKCodec
from limbeck_runtime.store.selection import sample_logits, top_k_logits

CODECS: dict[str, Codec] = {
    "image_embedding": EmbeddingCodec(),
    "text_embedding": EmbeddingCodec("int8"),
    "features.layer.3": FeatureCodec("float32"),
    "logits": TopKCodec(4, 300),
    "class_logits": TopKCodec(3, 10),
    "sampled": SampledCodec(9, 300),
}


@dataclass(frozen=True)
class Example:
    """Keys and outputs of a shard, by number; lengths differ and one sample has no token."""

    identity: str
    keys: list[str]
    outputs: dict[str, Any]


def _example(number: int, num_samples: int = 11) -> Example:
    generator = torch.Generator().manual_seed(number)
    lengths = np.array([(7 * row + number) % 5 for row in range(num_samples)])

    def logits(num_rows: int, vocabulary: int) -> torch.Tensor:
        return 3 * torch.randn(num_rows, vocabulary, generator=generator)

    tokens = {name: Ragged(part.numpy(), lengths) for name, part in top_k_logits(logits(lengths.sum(), 300), 4).items()}
    sampled = sample_logits(logits(lengths.sum(), 300), 9, generator)
    outputs: dict[str, Any] = {
        "image_embedding": torch.randn(num_samples, 16, generator=generator).numpy(),
        "text_embedding": torch.randn(num_samples, 8, generator=generator).numpy(),
        "features.layer.3": torch.randn(num_samples, 2, 5, generator=generator).numpy(),
        **{f"logits.{name}": part for name, part in tokens.items()},
        **{f"class_logits.{name}": part.numpy() for name, part in top_k_logits(logits(num_samples, 10), 3).items()},
        **{f"sampled.{name}": Ragged(part.numpy(), lengths) for name, part in sampled.items()},
    }
    identity = hashlib.sha256(b"%d" % number).hexdigest()
    return Example(identity, [f"{number}/{row}" for row in range(num_samples)], outputs)


@pytest.fixture
def make_example() -> Callable[..., Example]:
    return _example


@pytest.fixture
def codecs() -> dict[str, Codec]:
    return dict(CODECS)


@pytest.fixture
def make_store(open_storage: Callable[[], Storage], tmp_path: Path) -> Callable[..., TeacherStore]:
    """Opens the same store anew with each call, as another process would; the cache folder may be another."""
    return lambda cache="cache", **settings: TeacherStore(open_storage(), tmp_path / cache, CODECS, **settings)
