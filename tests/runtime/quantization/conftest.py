"""Small models of every kind of layer, and inputs for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import nn

from limbeck_runtime.models.bundle import Architecture, ModelBundle
from limbeck_runtime.models.preprocessing import Preprocessing


class Mixed(nn.Module):
    """Texts through an embedding, images through convolutions (one of them depthwise), both through linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 16)
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.point = nn.Conv2d(8, 12, 1, bias=False)
        self.hidden = nn.Linear(28, 24)
        self.norm = nn.LayerNorm(24)
        self.head = nn.Linear(24, 10, bias=False)

    def forward(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        text = self.words(inputs["input_ids"]).mean(1)
        image = self.point(self.depthwise(self.stem(inputs["pixel_values"]).relu()).relu()).mean((2, 3))
        hidden = nn.functional.gelu(self.hidden(torch.cat([text, image], 1)))
        return {"logits": self.head(self.norm(hidden))}


class Tied(nn.Module):
    """A language model in small: the output matrix is the embedding table."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(40, 16)
        self.body = nn.Linear(16, 16)
        self.head = nn.Linear(16, 40, bias=False)
        self.head.weight = self.words.weight

    def forward(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"logits": self.head(self.body(self.words(inputs["input_ids"])))}


def bundle_of(module: nn.Module) -> ModelBundle:
    return ModelBundle(module.eval(), Architecture("test"), Preprocessing(), "ImageClassification")


@pytest.fixture
def mixed() -> ModelBundle:
    torch.manual_seed(0)
    return bundle_of(Mixed())


@pytest.fixture
def tied() -> ModelBundle:
    torch.manual_seed(1)
    return bundle_of(Tied())


@pytest.fixture(scope="session")
def wrap() -> Callable[[nn.Module], ModelBundle]:
    return bundle_of


@pytest.fixture(scope="session")
def fresh() -> dict[str, type[nn.Module]]:
    """The classes themselves, for rebuilding."""
    return {"mixed": Mixed, "tied": Tied}


@pytest.fixture(scope="session")
def inputs() -> Callable[..., dict[str, torch.Tensor]]:
    def make(count: int = 16, seed: int = 0) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return {
            "input_ids": torch.randint(0, 40, (count, 6), generator=generator),
            "pixel_values": torch.randn(count, 3, 16, 16, generator=generator),
        }

    return make


@pytest.fixture(scope="session")
def answer() -> Callable[[ModelBundle, Any], torch.Tensor]:
    def run(bundle: ModelBundle, batch: Any) -> torch.Tensor:
        with torch.inference_mode():
            logits: torch.Tensor = bundle.module(batch)["logits"]
        return logits

    return run
