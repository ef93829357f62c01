"""Units are found in real architectures; cutting them is silencing them; what cannot be cut stays, by name."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from limbeck.api.v1alpha1.compression import PruneScope, PruneUnit
from limbeck_runtime.pruning.choosing import lowest
from limbeck_runtime.pruning.cutting import cut, silence
from limbeck_runtime.pruning.discovery import find_spaces
from limbeck_runtime.pruning.errors import PruningError

ALL_WIDTHS = [unit for unit in PruneUnit if unit is not PruneUnit.LAYERS]
# Model -> how many spaces of each kind it has.
EXPECTED = {
    "bert": {"Heads": 3, "MlpWidth": 3, "ResidualWidth": 1},
    "embedder": {"Heads": 3, "MlpWidth": 3},
    "clip": {"Heads": 6, "MlpWidth": 6, "ResidualWidth": 2},
    "llama": {"Heads": 3, "MlpWidth": 3, "ResidualWidth": 1},
    "gpt2": {"Heads": 2},
    "resnet": {"Channels": 9, "ResidualWidth": 4},
    "vit": {"Heads": 2, "MlpWidth": 2, "ResidualWidth": 1},
}


def _removal(spaces: Any, seed: int = 0) -> dict[Any, Tensor]:
    """A third of each space's units, at random."""
    generator = torch.Generator().manual_seed(seed)
    scores = {space: torch.rand(space.num_units, generator=generator) for space in spaces}
    return lowest(scores, 1 / 3, PruneScope.LAYER)


def _answers(module: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    with torch.no_grad():
        outputs: dict[str, Tensor] = module(dict(inputs))
    return outputs


@pytest.mark.parametrize("name", EXPECTED)
def test_each_architecture_has_its_units(
    name: str, make_bundle: Callable[..., Any], make_inputs: Callable[..., Any]
) -> None:
    found = find_spaces(make_bundle(name).module, make_inputs(name), ALL_WIDTHS, [])
    kinds = [space.kind.value for space in found.spaces]
    assert {kind: kinds.count(kind) for kind in kinds} == EXPECTED[name], found.kept


@pytest.mark.parametrize("name", [*EXPECTED, "mobilenet"])
def test_cutting_units_is_the_same_as_silencing_them(
    name: str, make_bundle: Callable[..., Any], make_inputs: Callable[..., Any]
) -> None:
    module, inputs = make_bundle(name).module, make_inputs(name)
    spaces = [space for space in find_spaces(module, inputs, ALL_WIDTHS, []).spaces if space.exact]
    removal = _removal(spaces)
    smaller, silent = copy.deepcopy(module), copy.deepcopy(module)
    cut(smaller, removal)
    silence(silent, removal)
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in module.parameters())
    whole, expected = _answers(module, inputs), _answers(silent, inputs)
    for key, value in _answers(smaller, inputs).items():
        torch.testing.assert_close(value, expected[key], rtol=1e-4, atol=1e-5)
        assert value.dim() < 2 or not torch.allclose(value, whole[key], rtol=1e-3, atol=1e-4)


def test_grouped_query_heads_go_with_the_key_that_they_share(
    make_bundle: Callable[..., Any], make_inputs: Callable[..., Any]
) -> None:
    module = make_bundle("llama").module
    found = find_spaces(module, make_inputs("llama"), [PruneUnit.HEADS], [])
    cut(module, {space: torch.tensor([0]) for space in found.spaces})
    attention = module.network.model.layers[0].self_attn
    assert (attention.q_proj.out_features, attention.k_proj.out_features, attention.o_proj.in_features) == (16, 8, 16)
    assert all(space.num_units == 2 for space in found.spaces)


def test_a_fused_matrix_loses_query_key_and_value_of_a_head(
    make_bundle: Callable[..., Any], make_inputs: Callable[..., Any]
) -> None:
    module = make_bundle("vit").module
    before = module.network.blocks[0].attn.qkv.weight.detach().clone()
    found = find_spaces(module, make_inputs("vit"), [PruneUnit.HEADS], [])
    cut(module, {found.spaces[0]: torch.tensor([1])})
    stays = [part * 48 + start + row for part in range(3) for start in (0, 32) for row in range(16)]
    assert torch.equal(module.network.blocks[0].attn.qkv.weight, before[stays])
    assert module.network.blocks[0].attn.num_heads == 2


class _AddsToItsInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.head = nn.Linear(8, 12), nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x = inputs["features"]
        return {"logits": self.head(x + self.down(self.up(x).relu()))}


def test_a_stream_that_is_the_model_s_input_stays_by_name() -> None:
    found = find_spaces(_AddsToItsInput(), {"features": torch.randn(3, 8)}, ALL_WIDTHS, [])
    assert [space.name for space in found.spaces] == ["up"]
    assert found.kept["down"] == "the stream that it adds to is the model's input features"


class _Shuffles(nn.Module):
    """Reads its channels in an order that no trace sees."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 3)

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"logits": self.down(self.up(inputs["features"]).flip(-1))}


def test_a_wrong_guess_about_a_network_is_found_out_and_stays_whole() -> None:
    found = find_spaces(_Shuffles(), {"features": torch.randn(3, 8)}, ALL_WIDTHS, [])
    assert found.spaces == ()
    assert "is not the same as silencing" in found.kept["up"]


def test_a_grouped_convolution_and_a_group_norm_stay_by_name() -> None:
    class Grouped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.norm = nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8)
            self.grouped, self.head = nn.Conv2d(8, 8, 3, groups=2), nn.Linear(8, 3)

        def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {"logits": self.head(self.grouped(self.norm(self.stem(inputs["pixel_values"]))).mean((2, 3)))}

    found = find_spaces(Grouped(), {"pixel_values": torch.randn(2, 3, 9, 9)}, ALL_WIDTHS, [])
    assert found.spaces == ()
    assert "group" in found.kept["stem"].lower()
    assert "in 2 groups" in found.kept["grouped"]


def test_ignored_layers_and_kinds_that_were_not_asked_for_stay_by_name(
    make_bundle: Callable[..., Any], make_inputs: Callable[..., Any]
) -> None:
    found = find_spaces(make_bundle("bert").module, make_inputs("bert"), [], ["text.network.encoder.layer.0"])
    assert not any("layer.0." in space.name for space in found.spaces)
    assert len(found.spaces) == 4
    whole = find_spaces(make_bundle("bert").module, make_inputs("bert"), [], [])
    assert len(whole.spaces) == 6
    assert "leaves ResidualWidth out" in " ".join(whole.kept.values())
    with pytest.raises(PruningError, match=r"`prune\.ignore` must hold patterns that match layers, got 'nothing'"):
        find_spaces(make_bundle("bert").module, make_inputs("bert"), [], ["nothing"])


class _Random(nn.Module):
    """Convolutions with batch norms and shortcuts, then linear layers; widths and shape as drawn."""

    def __init__(self, widths: list[int], shortcut: list[bool], hidden: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(), nn.Conv2d(b, a, 1))
            for a, b in zip([widths[0]] * len(widths[1:]), widths[1:], strict=True)
        )
        self.shortcut = shortcut
        self.up, self.down = nn.Linear(widths[0], hidden), nn.Linear(hidden, 3)

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x = self.stem(inputs["pixel_values"])
        for block, adds in zip(self.blocks, self.shortcut, strict=True):
            x = x + block(x) if adds else block(x)
        return {"logits": self.down(nn.functional.gelu(self.up(x.mean((2, 3)))))}


@settings(max_examples=15, deadline=None)
@given(
    widths=st.lists(st.integers(2, 9), min_size=2, max_size=4),
    hidden=st.integers(2, 9),
    shortcuts=st.lists(st.booleans(), min_size=3, max_size=3),
    seed=st.integers(0, 1000),
)
def test_random_networks_answer_the_same_cut_and_silenced(
    widths: list[int], hidden: int, shortcuts: list[bool], seed: int
) -> None:
    torch.manual_seed(seed)
    module = _Random(widths, shortcuts[: len(widths) - 1], hidden).eval()
    inputs = {"pixel_values": torch.randn(2, 3, 5, 5)}
    found = find_spaces(module, inputs, ALL_WIDTHS, [])
    assert {space.name for space in found.spaces} >= {"up", *(f"blocks.{i}.0" for i in range(len(widths) - 1))}
    removal = _removal(found.spaces, seed)
    smaller, silent = copy.deepcopy(module), copy.deepcopy(module)
    cut(smaller, removal)
    silence(silent, removal)
    torch.testing.assert_close(
        _answers(smaller, inputs)["logits"], _answers(silent, inputs)["logits"], rtol=1e-4, atol=1e-5
    )
