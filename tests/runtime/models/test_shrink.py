"""Smaller models from larger ones: what is kept, what stays equal, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.api.v1alpha1.job import Task
from limbeck.api.v1alpha1.model import Loader, Model
from limbeck_runtime.models.bundle import Architecture, ModelBundle, weights_identity
from limbeck_runtime.models.errors import ShrinkError
from limbeck_runtime.models.loading import load_model
from limbeck_runtime.models.rebuilding import rebuild
from limbeck_runtime.models.shrink import ShrinkRecord, shrink
from limbeck_runtime.models.slicing import evenly_spaced, part

Inputs = Callable[..., dict[str, torch.Tensor]]

TASKS = {
    "clip": Task.IMAGE_TEXT,
    "siglip": Task.IMAGE_TEXT,
    "bert": Task.TEXT_EMBEDDING,
    "vit": Task.IMAGE_CLASSIFICATION,
    "llama": Task.CAUSAL_LM,
    "llava": Task.CAUSAL_LM,
}
TIMM: dict[str, dict[str, Any]] = {
    "resnet18": {"channels": [16, 32, 64, 128], "layers": [2, 2, 2, 2]},
    "resnet50": {"channels": [16, 32, 64, 128], "layers": [2, 2, 2, 2]},
    "resnet26d": {"channels": [16, 32, 64, 128], "layers": [2, 2, 2, 2], "norm_layer": "groupnorm1"},
    "convnext_atto": {"dims": [16, 32, 64, 128], "depths": [2, 2, 4, 2]},
    "convnextv2_atto": {"dims": [16, 32, 64, 128], "depths": [2, 2, 4, 2]},
    "vit_tiny_patch16_224": {"embed_dim": 32, "depth": 4, "num_heads": 4},
    "vit_small_patch14_reg4_dinov2": {"embed_dim": 32, "depth": 4, "num_heads": 4, "patch_size": 16},
}


@pytest.fixture
def load(request: pytest.FixtureRequest) -> Callable[[str], ModelBundle]:
    def load_it(name: str) -> ModelBundle:
        if name in TASKS:
            uri = str(request.getfixturevalue(f"{name}_directory"))
            return load_model(Model(loader=Loader.TRANSFORMERS, uri=uri), TASKS[name])
        model = Model(loader=Loader.TIMM, architecture=name, image_size=32, settings={**TIMM[name], "num_classes": 5})
        return load_model(model, Task.IMAGE_CLASSIFICATION, seed=0)

    return load_it


def outputs(bundle: ModelBundle, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        result: dict[str, torch.Tensor] = bundle.module(inputs)
    return result


@pytest.mark.parametrize("name", [*TASKS, *TIMM])
def test_a_model_of_half_the_depth_and_width_rebuilds_and_gives_outputs_of_the_same_shape(
    name: str, load: Callable[[str], ModelBundle], make_inputs: Inputs
) -> None:
    original = load(name)
    before = weights_identity(original.module)
    smaller, record = shrink(original, depth_percent=50, width_percent=50)
    inputs = make_inputs(original.preprocessing)
    large, small = outputs(original, inputs), outputs(smaller, inputs)
    assert {key: value.shape for key, value in small.items()} == {key: value.shape for key, value in large.items()}
    assert all(bool(torch.isfinite(value).all()) for value in small.values())
    assert smaller.num_parameters() < 0.6 * original.num_parameters()
    assert weights_identity(original.module) == before
    again = rebuild(Architecture.from_json(smaller.architecture.to_json()))
    again.load_state_dict(smaller.module.state_dict())
    torch.testing.assert_close(outputs(smaller, inputs), outputs(ModelBundle(again, *_rest(smaller)), inputs))
    assert ShrinkRecord.model_validate_json(record.model_dump_json()) == record
    assert record.num_parameters_after == smaller.num_parameters()


def _rest(bundle: ModelBundle) -> tuple[Architecture, Any, str]:
    return bundle.architecture, bundle.preprocessing, bundle.task


@pytest.mark.parametrize("name", [*TASKS, *TIMM])
def test_keeping_everything_changes_nothing(name: str, load: Callable[[str], ModelBundle], make_inputs: Inputs) -> None:
    original = load(name)
    same, _ = shrink(original, depth_percent=100, width_percent=100)
    inputs = make_inputs(original.preprocessing)
    torch.testing.assert_close(outputs(same, inputs), outputs(original, inputs))
    assert weights_identity(same.module) == weights_identity(original.module)


def test_layers_are_taken_from_the_first_to_the_last() -> None:
    assert evenly_spaced(12, 50) == (0, 2, 4, 7, 9, 11)
    assert evenly_spaced(6, 50) == (0, 2, 5)
    assert evenly_spaced(4, 1) == (0,)
    assert evenly_spaced(5, 100) == (0, 1, 2, 3, 4)


def test_widths_are_rounded_to_multiples_and_never_to_nothing() -> None:
    assert part(1536, 50, 8) == 768
    assert part(100, 33, 8) == 32
    assert part(12, 1) == 1
    assert part(10, 100, 8) == 10


def test_each_layer_of_the_smaller_model_is_a_layer_of_the_larger(load: Callable[[str], ModelBundle]) -> None:
    original = load("bert")
    smaller, record = shrink(original, depth_percent=50)
    (kept,) = record.networks["text"].layers.values()
    assert kept == (0, 3)
    for index, old in enumerate(kept):
        ours = smaller.module.get_submodule(f"text.network.encoder.layer.{index}").state_dict()
        theirs = original.module.get_submodule(f"text.network.encoder.layer.{old}").state_dict()
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_a_cut_transformer_learns_without_dropout_and_its_original_keeps_its_own(
    load: Callable[[str], ModelBundle],
) -> None:
    original = load("bert")
    smaller, _ = shrink(original, depth_percent=50)
    again = rebuild(Architecture.from_json(smaller.architecture.to_json()))
    assert {each.p for each in original.module.modules() if isinstance(each, torch.nn.Dropout)} == {0.1}
    for module in (smaller.module, again):
        assert {each.p for each in module.modules() if isinstance(each, torch.nn.Dropout)} == {0.0}


def test_text_embeddings_keep_their_width_and_their_meaning(
    load: Callable[[str], ModelBundle], make_inputs: Inputs
) -> None:
    original = load("bert")
    smaller, record = shrink(original, width_percent=75)
    kept = list(record.networks["text"].channels["H"])
    embedding = outputs(smaller, make_inputs(original.preprocessing))["text_embedding"]
    assert embedding.shape == (5, 32)
    gone = [index for index in range(32) if index not in kept]
    assert embedding[:, gone].abs().max() == 0
    assert embedding[:, kept].abs().min() > 0


def test_a_tower_that_was_frozen_in_the_teacher_learns_after_it_is_cut(clip_directory: Path) -> None:
    tower = {"loader": "Transformers", "uri": str(clip_directory), "frozen": True}
    model = Model.model_validate({"loader": "DualEncoder", "image": tower, "text": tower})
    teacher = load_model(model, Task.IMAGE_TEXT, seed=0)
    assert not any(parameter.requires_grad for parameter in teacher.module.image.parameters())
    student, _ = shrink(teacher, depth_percent=50)
    assert all(parameter.requires_grad for parameter in student.module.parameters())


def test_what_cannot_be_cut_is_refused_with_a_way_out(
    load: Callable[[str], ModelBundle], whisper_directory: Path
) -> None:
    speech = load_model(Model(loader=Loader.TRANSFORMERS, uri=str(whisper_directory)), Task.SPEECH)
    with pytest.raises(ShrinkError, match=r"SpeechRecogniser; give the smaller model under `spec\.student\.model`"):
        shrink(speech, depth_percent=50)
    searched = Model(loader=Loader.TIMM, architecture="mobilenetv3_small_050", settings={"num_classes": 5})
    mobile = load_model(searched, Task.IMAGE_CLASSIFICATION, seed=0)
    with pytest.raises(ShrinkError, match=r"mobilenetv3_small_050 .* name a smaller model of timm"):
        shrink(mobile, width_percent=50)
    grouped = Model(
        loader=Loader.TIMM, architecture="resnext50_32x4d", settings={"num_classes": 5, "layers": [2, 2, 2, 2]}
    )
    grouped_bundle = load_model(grouped, Task.IMAGE_CLASSIFICATION, seed=0)
    with pytest.raises(ShrinkError, match="grouped, wide or gated; use depthPercent"):
        shrink(grouped_bundle, width_percent=50)
    assert shrink(grouped_bundle, depth_percent=50)[1].num_parameters_after < grouped_bundle.num_parameters()
    original = load("bert")
    quantized = ModelBundle(
        original.module, original.architecture.with_edit({"kind": "quantize"}), *_rest(original)[1:]
    )
    with pytest.raises(ShrinkError, match="compressed already"):
        shrink(quantized, depth_percent=50)


def test_tied_embeddings_stay_tied(tied_directory: Path) -> None:
    original = load_model(Model(loader=Loader.TRANSFORMERS, uri=str(tied_directory)), Task.CAUSAL_LM)
    network = shrink(original, depth_percent=50, width_percent=50)[0].module.network
    assert network.lm_head.weight is network.model.embed_tokens.weight
    assert network.config.layer_types == ["full_attention"] * 2
