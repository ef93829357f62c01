"""How the states of many tokens become one vector."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from limbeck_runtime.models.errors import ArchitectureError
from limbeck_runtime.models.networks import build_network
from limbeck_runtime.models.towers import TOKEN_POOLINGS, build_image_tower, build_text_tower

HIDDEN = torch.arange(2 * 4 * 3, dtype=torch.float32).reshape(2, 4, 3)
RIGHT = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
LEFT = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])


@pytest.mark.parametrize(
    ("pooling", "mask", "expected"),
    [
        ("Mean", RIGHT, [HIDDEN[0].mean(0), HIDDEN[1, :2].mean(0)]),
        ("Mean", LEFT, [HIDDEN[0].mean(0), HIDDEN[1, 2:].mean(0)]),
        ("First", RIGHT, [HIDDEN[0, 0], HIDDEN[1, 0]]),
        ("Last", RIGHT, [HIDDEN[0, 3], HIDDEN[1, 1]]),
        ("Last", LEFT, [HIDDEN[0, 3], HIDDEN[1, 3]]),
    ],
)
def test_pooling_leaves_the_padding_out(pooling: str, mask: torch.Tensor, expected: list[torch.Tensor]) -> None:
    torch.testing.assert_close(TOKEN_POOLINGS[pooling](HIDDEN, mask), torch.stack(expected))


def test_a_text_of_nothing_but_padding_gives_zero_and_not_nan() -> None:
    assert TOKEN_POOLINGS["Mean"](HIDDEN, torch.zeros(2, 4)).abs().sum() == 0


TIMM = {"library": "timm", "architecture": "resnet18", "arguments": {"num_classes": 0, "layers": [1, 1, 1, 1]}}


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: build_network({"library": "keras"}), "library must be one of"),
        (lambda: build_network({"library": "transformers", "head": "Tail"}), "head must be one of"),
        (
            lambda: build_network(
                {
                    "library": "transformers",
                    "head": "Encoder",
                    "arguments": {},
                    "config": {"model_type": "brontosaurus"},
                }
            ),
            "cannot read this configuration",
        ),
        (
            lambda: build_network(
                {
                    "library": "transformers",
                    "head": "Encoder",
                    "arguments": {"add_swimming_pool": True},
                    "config": {
                        "model_type": "bert",
                        "hidden_size": 8,
                        "num_attention_heads": 1,
                        "num_hidden_layers": 1,
                    },
                }
            ),
            "cannot build this configuration",
        ),
        (lambda: build_image_tower({"network": TIMM, "pooling": "Sum", "width": 512}), "pooling must be one of"),
        (
            lambda: build_text_tower({"network": TIMM, "pooling": "Sum", "width": 512, "masked": True}),
            "pooling must be one of",
        ),
    ],
)
def test_a_record_that_cannot_be_built_says_why(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(ArchitectureError, match=message):
        build()
