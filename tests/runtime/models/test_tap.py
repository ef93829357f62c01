"""Features by module path."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from limbeck.api.v1alpha1.job import Task
from limbeck.api.v1alpha1.model import Loader, Model
from limbeck_runtime.models.errors import ModelError
from limbeck_runtime.models.loading import load_model
from limbeck_runtime.models.tap import resolve_names, tap


class Pair(nn.Module):
    """A layer whose output is not one tensor."""

    def forward(self, values: torch.Tensor) -> tuple[str, torch.Tensor]:
        return ("name", values + 1)


class Words(nn.Module):
    """A layer that gives no tensor."""

    def forward(self, _values: torch.Tensor) -> str:
        return "words"


@pytest.fixture
def module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.ReLU(), nn.Linear(3, 4)), Pair())


def test_patterns_are_resolved_in_order_without_repeats(module: nn.Module) -> None:
    assert resolve_names(module, ["1.*", "0", "1.1"]) == ("1.0", "1.1", "0")


def test_features_are_what_the_layers_gave_and_carry_gradients(module: nn.Module) -> None:
    inputs = torch.ones(1, 2)
    with tap(module, ["0", "1.1", "2"]) as features:
        module(inputs)
        torch.testing.assert_close(features["0"], module[0](inputs))
        torch.testing.assert_close(features["2"], features["1.1"] + 1)
        features["1.1"].sum().backward()
    assert module[0].weight.grad is not None


def test_hooks_are_gone_after_the_block_even_after_an_error(module: nn.Module) -> None:
    with pytest.raises(RuntimeError, match="stop"), tap(module, ["*"]):
        raise RuntimeError("stop")
    assert all(not layer._forward_hooks for layer in module.modules())


def test_an_unknown_name_lists_what_is_near(bert_directory: Path) -> None:
    module = load_model(Model(loader=Loader.TRANSFORMERS, uri=str(bert_directory)), Task.TEXT_EMBEDDING).module
    with pytest.raises(
        ModelError, match=r"'text\.network\.encoder\.layers\.\*'; near it are text\.network\.encoder\.lay"
    ):
        resolve_names(module, ["text.network.encoder.layers.*"])
    with pytest.raises(ModelError, match="'qqq'; its outermost layers are text, text_projection"):
        resolve_names(module, ["qqq"])


def test_a_layer_without_a_tensor_is_named() -> None:
    module = nn.Sequential(Words())
    with tap(module, ["0"]), pytest.raises(ModelError, match="the layer 0 gives no tensor but str"):
        module(torch.ones(1))
