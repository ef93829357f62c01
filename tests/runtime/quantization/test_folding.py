"""Batch norms become part of the convolutions before them, where nothing else sees what is between."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import nn

from limbeck.api.v1alpha1.compression import Quantize
from limbeck_runtime.models.errors import ArchitectureError
from limbeck_runtime.quantization import EDITS, load_edited_weights, quantize
from limbeck_runtime.quantization.folding import fold_norms
from limbeck_runtime.quantization.layers import Int8Conv

Make = Callable[..., dict[str, torch.Tensor]]


class Normed(nn.Module):
    """Convolutions with norms of torch and of timm; one that is read twice, and one that is shared."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.plain_norm = nn.BatchNorm2d(8)
        self.biased = nn.Conv2d(8, 8, 3, padding=1)
        self.active_norm = BatchNormAct2d(8)
        self.grouped = nn.Conv2d(8, 8, 1)
        self.group_norm = nn.GroupNorm(1, 8)

    def forward(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        x = self.plain_norm(self.plain(inputs["pixel_values"])).relu()
        x = self.active_norm(self.biased(x))
        return {"logits": self.group_norm(self.grouped(x)).mean((2, 3))}


class Watched(nn.Module):
    """What is between convolution and norm is read by the sum too."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        between = self.convolution(inputs["pixel_values"])
        return {"logits": (self.norm(between) + between).mean((2, 3))}


def trained(module: nn.Module, inputs: Make) -> nn.Module:
    """Norms with statistics and weights of their own."""
    module.train()
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.weight.uniform_(0.5, 2.0)
                layer.bias.uniform_(-1.0, 1.0)
        for seed in range(3):
            module(inputs(seed=seed))
    return module.eval()


@pytest.fixture
def normed(inputs: Make) -> nn.Module:
    torch.manual_seed(0)
    return trained(Normed(), inputs)


def test_folding_changes_no_answer_and_leaves_the_activation(normed: nn.Module, inputs: Make) -> None:
    before = normed(inputs(seed=9))["logits"].detach()
    pairs = fold_norms(normed, ["plain", "biased", "grouped"], inputs())
    assert pairs == [("plain", "plain_norm"), ("biased", "active_norm")]
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in normed.modules())
    torch.testing.assert_close(normed(inputs(seed=9))["logits"].detach(), before, rtol=1e-4, atol=1e-5)


def test_a_norm_stays_where_its_input_is_read_elsewhere(inputs: Make) -> None:
    torch.manual_seed(1)
    module = trained(Watched(), inputs)
    state = copy.deepcopy(module.state_dict())
    assert fold_norms(module, ["convolution"], inputs()) == []
    assert isinstance(module.norm, nn.BatchNorm2d)
    assert all(state[name].equal(tensor) for name, tensor in module.state_dict().items())
    assert state.keys() == module.state_dict().keys()


def test_a_convolution_without_bias_gets_none_back_when_folding_is_undone(inputs: Make) -> None:
    torch.manual_seed(1)
    module = Watched()
    module.convolution = nn.Conv2d(3, 8, 3, bias=False)
    trained(module, inputs)
    fold_norms(module, ["convolution"], inputs())
    assert module.convolution.bias is None


@pytest.mark.parametrize("activations", ["Dynamic", "Static"])
def test_a_folded_model_is_rebuilt_from_its_record(
    normed: nn.Module, inputs: Make, answer: Any, wrap: Any, activations: str
) -> None:
    bundle = wrap(normed)
    quantized, _ = quantize(bundle, Quantize.model_validate({"activations": activations}), [inputs()])
    assert [edit["kind"] for edit in quantized.architecture.edits] == ["fold_norms", "quantize"]
    assert isinstance(quantized.module.plain, Int8Conv)
    cosines = nn.functional.cosine_similarity(answer(quantized, inputs(seed=5)), answer(bundle, inputs(seed=5)))
    assert float(cosines.min()) > 0.995
    rebuilt: nn.Module = Normed()
    for edit in quantized.architecture.edits:
        rebuilt = EDITS[edit["kind"]](rebuilt, edit)
    load_edited_weights(rebuilt, dict(quantized.module.state_dict()))
    assert answer(wrap(rebuilt), inputs(seed=5)).equal(answer(quantized, inputs(seed=5)))


def test_an_edit_that_does_not_fit_is_refused() -> None:
    edit = {"kind": "fold_norms", "version": 1, "pairs": [["plain", "nothing"]]}
    with pytest.raises(ArchitectureError, match="cannot be replayed"):
        EDITS["fold_norms"](Normed(), edit)
    with pytest.raises(ArchitectureError, match="must have version 1, got 2"):
        EDITS["fold_norms"](Normed(), edit | {"version": 2})
