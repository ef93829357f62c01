"""Two towers from their own places, the teacher's among them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.api.v1alpha1.job import Task
from limbeck.api.v1alpha1.model import Loader, Model
from limbeck_runtime.models.bundle import Architecture, ModelBundle
from limbeck_runtime.models.errors import ArchitectureError, ModelError, ModelFilesError, TaskError
from limbeck_runtime.models.loading import load_model
from limbeck_runtime.models.rebuilding import rebuild

Inputs = Callable[..., dict[str, torch.Tensor]]
RESNET = {
    "loader": "Timm",
    "architecture": "resnet18",
    "settings": {"channels": [16, 16, 32, 32], "layers": [1, 1, 1, 1]},
    "imageSize": 32,
}


def build(
    image: dict[str, Any], text: dict[str, Any], teacher: ModelBundle | None = None, **fields: Any
) -> ModelBundle:
    model = Model.model_validate({"loader": "DualEncoder", "image": image, "text": text, **fields})
    return load_model(model, Task.IMAGE_TEXT, teacher, field="spec.student.model", seed=0)


@pytest.fixture
def bert(bert_directory: Path) -> dict[str, Any]:
    return {"loader": "Transformers", "uri": str(bert_directory)}


@pytest.fixture
def teacher(clip_directory: Path) -> ModelBundle:
    return load_model(Model(loader=Loader.TRANSFORMERS, uri=str(clip_directory)), Task.IMAGE_TEXT)


def run(bundle: ModelBundle, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        outputs: dict[str, torch.Tensor] = bundle.module(inputs)
    return outputs


def test_a_resnet_and_a_bert_meet_in_the_wanted_space(bert: dict[str, Any], make_inputs: Inputs) -> None:
    bundle = build(RESNET, bert, embedDim=20)
    inputs = make_inputs(bundle.preprocessing)
    outputs = run(bundle, inputs)
    assert inputs["pixel_values"].shape[-1] == 32
    for name in ("image_embedding", "text_embedding"):
        assert outputs[name].shape == (5, 20)
        torch.testing.assert_close(outputs[name].norm(dim=-1), torch.ones(5))
    assert outputs["logit_scale"].item() == pytest.approx(1 / 0.07, rel=1e-5)
    again = rebuild(Architecture.from_json(bundle.architecture.to_json()))
    again.load_state_dict(bundle.module.state_dict())
    torch.testing.assert_close(again(inputs), outputs)


def test_the_scale_never_exceeds_a_hundred(bert: dict[str, Any], make_inputs: Inputs) -> None:
    bundle = build(RESNET, bert)
    bundle.module.log_scale.data.fill_(9.0)
    assert run(bundle, make_inputs(bundle.preprocessing))["logit_scale"].item() == 100


def test_fresh_weights_follow_from_the_seed_and_leave_the_callers_random_state(bert: dict[str, Any]) -> None:
    state = torch.get_rng_state()
    first, again = build(RESNET, bert), build(RESNET, bert)
    assert first.identity() == again.identity()
    assert torch.equal(torch.get_rng_state(), state)
    model = Model.model_validate({"loader": "DualEncoder", "image": RESNET, "text": bert})
    assert load_model(model, Task.IMAGE_TEXT, seed=1).identity() != first.identity()
    torch.manual_seed(0)
    assert load_model(model, Task.IMAGE_TEXT).identity() == first.identity()


def test_a_frozen_tower_gets_no_gradient_and_no_dropout_while_the_rest_learns(
    bert: dict[str, Any], make_inputs: Inputs
) -> None:
    bundle = build(RESNET, {**bert, "frozen": True})
    module = bundle.module.train()
    inputs = make_inputs(bundle.preprocessing)
    first, second = module.encode_text(inputs), module.encode_text(inputs)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    (first.sum() + module.encode_image(inputs).sum()).backward()
    assert all(parameter.grad is None for parameter in module.text.parameters())
    assert module.text_projection.weight.grad is not None
    assert all(parameter.grad is not None for parameter in module.image.parameters())
    assert rebuild(bundle.architecture).frozen == ("text",)


def test_the_teachers_towers_give_the_teachers_embeddings(teacher: ModelBundle, make_inputs: Inputs) -> None:
    tower = {"loader": "Teacher"}
    student = build(tower, tower, teacher)
    inputs = make_inputs(teacher.preprocessing)
    ours, theirs = run(student, inputs), run(teacher, inputs)
    for name in ("image_embedding", "text_embedding"):
        torch.testing.assert_close(ours[name], theirs[name])
    assert student.preprocessing == teacher.preprocessing
    student.module.text_projection.weight.data.zero_()
    torch.testing.assert_close(run(teacher, inputs), theirs)


def test_siglip_towers_bring_their_space_along_though_they_have_no_projection(
    siglip_directory: Path, make_inputs: Inputs
) -> None:
    siglip = load_model(Model(loader=Loader.TRANSFORMERS, uri=str(siglip_directory)), Task.IMAGE_TEXT)
    student = build({"loader": "Teacher"}, {"loader": "Teacher"}, siglip)
    inputs = make_inputs(siglip.preprocessing)
    torch.testing.assert_close(run(student, inputs)["text_embedding"], run(siglip, inputs)["text_embedding"])


def test_a_space_of_another_width_gets_a_new_projection(teacher: ModelBundle, make_inputs: Inputs) -> None:
    student = build({"loader": "Teacher"}, {"loader": "Teacher"}, teacher, embedDim=10)
    outputs = run(student, make_inputs(teacher.preprocessing))
    assert outputs["text_embedding"].shape == (5, 10)
    assert build(RESNET, {"loader": "Teacher"}, teacher).module.embed_dim == 24


def test_a_shrunk_tower_of_the_teacher_keeps_the_columns_of_the_projection(teacher: ModelBundle) -> None:
    shrunk = {"loader": "Teacher", "shrink": {"depthPercent": 50, "widthPercent": 50}, "frozen": True}
    student = build(RESNET, shrunk, teacher)
    assert student.module.text.width == 16
    assert student.module.text.network.config.num_hidden_layers == 2
    theirs = teacher.module.text_projection.weight.detach()
    columns = {tuple(column.tolist()) for column in theirs.T}
    assert all(tuple(column.tolist()) in columns for column in student.module.text_projection.weight.detach().T)
    assert teacher.module.text.width == 32


def test_towers_come_out_of_whole_dual_encoders_too(
    clip_directory: Path, teacher: ModelBundle, make_inputs: Inputs
) -> None:
    tower = {"loader": "Transformers", "uri": str(clip_directory)}
    bundle = build(tower, tower)
    inputs = make_inputs(teacher.preprocessing)
    with torch.no_grad():
        torch.testing.assert_close(bundle.module.image(inputs), teacher.module.image(inputs))
        torch.testing.assert_close(bundle.module.text(inputs), teacher.module.text(inputs))


def test_an_image_encoder_of_transformers_can_be_a_tower(
    vit_directory: Path, bert: dict[str, Any], make_inputs: Inputs
) -> None:
    bundle = build({"loader": "Transformers", "uri": str(vit_directory)}, bert)
    inputs = make_inputs(bundle.preprocessing)
    with torch.no_grad():
        states = bundle.module.image.network(pixel_values=inputs["pixel_values"]).last_hidden_state
        torch.testing.assert_close(bundle.module.image(inputs), states[:, 0])


def test_lengths_and_sizes_go_from_the_model_to_its_towers(bert: dict[str, Any]) -> None:
    image = {key: value for key, value in RESNET.items() if key != "imageSize"}
    bundle = build(image, bert, imageSize=48, maxTextLength=7)
    assert bundle.preprocessing.image is not None
    assert bundle.preprocessing.text is not None
    assert (bundle.preprocessing.image.size, bundle.preprocessing.text.max_length) == (48, 7)
    assert bundle.preprocessing.image.crop_percent == 100


@pytest.mark.parametrize(
    ("image", "text", "error", "message"),
    [
        (RESNET, {"loader": "Teacher"}, TaskError, r"model\.text\.loader` must not be Teacher in a job without"),
        (RESNET, {"loader": "Timm", "architecture": "resnet18"}, TaskError, "timm has no text towers"),
        ({"loader": "Timm", "architecture": "resent18"}, None, ArchitectureError, "timm has no model 'resent18'"),
        (
            {"loader": "Timm", "architecture": "resnet18", "settings": {"chanels": [8]}},
            None,
            ArchitectureError,
            "timm cannot build resnet18 with .*chanels",
        ),
        ({**RESNET, "maxTextLength": 4}, None, ModelFilesError, r"`spec\.student\.model\.image\.maxTextLength` is not"),
        ("bert", None, TaskError, r"image` must be a model that encodes images .* got a bert"),
        (RESNET, "vit", TaskError, r"text` must be a model that encodes texts .* got a vit"),
    ],
)
def test_towers_that_cannot_be_are_refused(
    image: Any,
    text: Any,
    error: type[ModelError],
    message: str,
    bert: dict[str, Any],
    request: pytest.FixtureRequest,
) -> None:
    def resolve(tower: Any) -> Any:
        if isinstance(tower, str):
            return {"loader": "Transformers", "uri": str(request.getfixturevalue(f"{tower}_directory"))}
        return tower

    with pytest.raises(error, match=message):
        build(resolve(image), resolve(text or bert))


def test_a_teacher_without_such_a_tower_is_refused(bert: dict[str, Any], bert_directory: Path) -> None:
    embedder = load_model(Model(loader=Loader.TRANSFORMERS, uri=str(bert_directory)), Task.TEXT_EMBEDDING)
    with pytest.raises(TaskError, match=r"the teacher \(TextEmbedder\) has no image tower"):
        build({"loader": "Teacher"}, bert, embedder)
    student = build(RESNET, {"loader": "Teacher"}, embedder)
    assert student.module.embed_dim == 32


def test_a_dual_encoder_does_one_task_and_has_no_files_of_its_own(bert: dict[str, Any]) -> None:
    model = Model.model_validate({"loader": "DualEncoder", "image": RESNET, "text": bert})
    with pytest.raises(TaskError, match="with the loader DualEncoder does ImageText"):
        load_model(model, Task.TEXT_EMBEDDING)
    with pytest.raises(ModelFilesError, match=r"`model\.uri` is not read by the loader DualEncoder"):
        load_model(model.model_copy(update={"uri": "/nowhere"}), Task.IMAGE_TEXT)
