"""What models give is found out by asking them, and inner layers join the outputs with their gradient."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from limbeck_runtime.data.batch import Labels
from limbeck_runtime.data.index import DataIndex
from limbeck_runtime.models.bundle import ModelBundle
from limbeck_runtime.steps.outputs import add_features, example_of, paths_of

MakeBundle = Callable[..., ModelBundle]
MakeIndex = Callable[..., DataIndex]


def test_an_example_has_the_models_outputs_and_its_layers(make_bundle: MakeBundle, make_index: MakeIndex) -> None:
    bundle = make_bundle("ImageClassification", 4, 5)
    example = example_of(bundle, make_index(image="png", label="cls"), ["body"], Labels.CLASSES)
    assert example.outputs["logits"].shape == (2, 5)
    assert example.outputs["features.body"].shape == (2, 4, 6, 6)
    assert example.batch.inputs["labels"].tolist() == [0, 2]  # circle and square of circle, none, square
    assert not bundle.module.body._forward_hooks


def test_data_without_what_the_model_reads_is_refused(make_bundle: MakeBundle, make_index: MakeIndex) -> None:
    with pytest.raises(ValueError, match=r"`spec.data.columns.text` must be given for this model"):
        example_of(make_bundle("CausalLM"), make_index(image="png"))


def test_layers_are_found_by_pattern_in_the_order_of_the_patterns(make_bundle: MakeBundle) -> None:
    assert paths_of(make_bundle("ImageClassification"), ["squeeze", "b*"]) == ("squeeze", "body")


def test_added_features_have_a_gradient_and_are_of_the_newest_pass(make_bundle: MakeBundle) -> None:
    module = make_bundle("ImageClassification", 4, 5).module
    plain = copy.deepcopy(module)
    add_features(module, ["body"])
    for seed in (1, 2):
        pixels = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
        outputs = module({"pixel_values": pixels})
        assert torch.equal(outputs["features.body"], plain.body(pixels))
        assert torch.equal(outputs["logits"], plain({"pixel_values": pixels})["logits"])
    outputs["features.body"].sum().backward()
    assert module.body.weight.grad is not None


def test_a_layer_that_gives_several_things_is_known_by_its_first_tensor() -> None:
    class Pair(nn.Module):
        def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return {"sum": self.inner(inputs["x"])["states"]}

        def __init__(self) -> None:
            super().__init__()
            self.inner = Inner()

    class Inner(nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, object]:
            return {"note": "no tensor", "states": x + 1, "more": x}

    module = Pair()
    add_features(module, ["inner"])
    assert module({"x": torch.tensor([1.0])})["features.inner"].tolist() == [2.0]
