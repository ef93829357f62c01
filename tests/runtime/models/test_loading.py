"""Which loader reads what, and where files come from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.api.v1alpha1.job import Task
from limbeck.api.v1alpha1.model import Loader, Model
from limbeck_runtime.models.bundle import ARCHITECTURE_FILE, ModelBundle, weights_identity
from limbeck_runtime.models.errors import ArchitectureError, ModelError, ModelFilesError, TaskError, WeightsError
from limbeck_runtime.models.limbeck_loader import load_bundle
from limbeck_runtime.models.loading import load_model
from limbeck_runtime.models.model_files import local_model_files
from limbeck_runtime.models.preprocessing import Fit, Interpolation
from limbeck_runtime.models.rebuilding import rebuild
from limbeck_runtime.models.weights import load_weights, tied_names
from limbeck_runtime.storage import Storage

Inputs = Callable[..., dict[str, torch.Tensor]]
RESNET = {"channels": [16, 16, 32, 32], "layers": [1, 1, 1, 1], "num_classes": 5}


@pytest.mark.parametrize("loader", [Loader.OPEN_CLIP, Loader.TORCH_EXPORT])
def test_loaders_that_are_not_written_are_refused_by_name(loader: Loader, tmp_path: Path) -> None:
    model = Model(loader=loader, uri=str(tmp_path))
    with pytest.raises(
        ModelFilesError, match=rf"`spec\.teacher\.model\.loader` {loader} is not supported yet; use one"
    ):
        load_model(model, Task.IMAGE_TEXT, field="spec.teacher.model")


def test_a_field_that_the_loader_would_ignore_is_refused(bert_directory: Path) -> None:
    model = Model(loader=Loader.TRANSFORMERS, uri=str(bert_directory), embed_dim=7)
    with pytest.raises(
        ModelFilesError, match=r"`model\.embedDim` is not read by the loader Transformers, only by Dual"
    ):
        load_model(model, Task.TEXT_EMBEDDING)


def _resnet(**fields: Any) -> Model:
    return Model.model_validate({"loader": "Timm", "architecture": "resnet18", "settings": RESNET, **fields})


def test_a_timm_classifier_reads_its_weights_and_what_lies_beside_them(tmp_path: Path, make_inputs: Inputs) -> None:
    from safetensors.torch import save_file

    fresh = load_model(_resnet(imageSize=32), Task.IMAGE_CLASSIFICATION, seed=5)
    save_file(fresh.module.network.state_dict(), tmp_path / "model.safetensors")
    config = {
        "architecture": "resnet18",
        "num_classes": 5,
        "pretrained_cfg": {
            "mean": [0.1, 0.2, 0.3],
            "interpolation": "bilinear",
            "crop_pct": 0.5,
            "input_size": [3, 32, 32],
        },
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    read = load_model(_resnet(uri=str(tmp_path)), Task.IMAGE_CLASSIFICATION)
    inputs = make_inputs(read.preprocessing)
    torch.testing.assert_close(read.module(inputs), fresh.module(inputs))
    image = read.preprocessing.image
    assert image is not None
    assert (image.mean, image.size, image.resized_size) == ((0.1, 0.2, 0.3), 32, 64)
    assert (image.interpolation, image.fit) == (Interpolation.BILINEAR, Fit.CENTER_CROP)
    with pytest.raises(ModelFilesError, match=r"architecture` must be resnet18, as .* got resnet34"):
        load_model(_resnet(uri=str(tmp_path), architecture="resnet34"), Task.IMAGE_CLASSIFICATION)
    wider = _resnet(uri=str(tmp_path), settings={**RESNET, "channels": [16, 16, 32, 64]})
    with pytest.raises(WeightsError, match=r"do not fit the architecture: .*layer4.*is \(32"):
        load_model(wider, Task.IMAGE_CLASSIFICATION)


def test_a_timm_tower_leaves_the_classifier_of_its_weights_behind(tmp_path: Path, bert_directory: Path) -> None:
    from safetensors.torch import save_file

    fresh = load_model(_resnet(imageSize=32), Task.IMAGE_CLASSIFICATION, seed=5)
    file = tmp_path / "weights.safetensors"
    save_file(fresh.module.network.state_dict(), file)
    image = {"loader": "Timm", "architecture": "resnet18", "settings": RESNET, "uri": str(file), "imageSize": 32}
    text = {"loader": "Transformers", "uri": str(bert_directory)}
    model = Model.model_validate({"loader": "DualEncoder", "image": image, "text": text})
    tower = load_model(model, Task.IMAGE_TEXT).module.image.network.state_dict()
    whole = fresh.module.network.state_dict()
    assert whole.keys() - tower.keys() == {"fc.weight", "fc.bias"}
    torch.testing.assert_close({name: whole[name] for name in tower}, dict(tower))


def test_the_width_of_a_timm_tower_is_what_it_gives(bert_directory: Path, make_inputs: Inputs) -> None:
    text = {"loader": "Transformers", "uri": str(bert_directory)}
    for name, settings in (
        ("mobilenetv3_small_050", {}),
        ("vit_tiny_patch16_224", {"depth": 1}),
        ("convnext_atto", {"depths": [1, 1, 1, 1]}),
        ("resnet18", {"layers": [1, 1, 1, 1], "norm_layer": "groupnorm"}),
    ):
        image = {"loader": "Timm", "architecture": name, "settings": settings, "imageSize": 32}
        model = Model.model_validate({"loader": "DualEncoder", "image": image, "text": text})
        bundle = load_model(model, Task.IMAGE_TEXT, seed=0)
        with torch.no_grad():
            assert bundle.module.image(make_inputs(bundle.preprocessing)).shape == (5, bundle.module.image.width)


def test_a_timm_classifier_must_know_its_classes_and_its_task() -> None:
    settings = {key: value for key, value in RESNET.items() if key != "num_classes"}
    with pytest.raises(ModelFilesError, match=r"settings\.num_classes` must be given"):
        load_model(_resnet(settings=settings), Task.IMAGE_CLASSIFICATION)
    with pytest.raises(TaskError, match="put the network into the image tower of a DualEncoder"):
        load_model(_resnet(), Task.IMAGE_TEXT)


@pytest.fixture
def exported(clip_directory: Path, tmp_path: Path) -> tuple[Path, ModelBundle]:
    from safetensors.torch import save_file

    bundle = load_model(Model(loader=Loader.TRANSFORMERS, uri=str(clip_directory)), Task.IMAGE_TEXT)
    directory = tmp_path / "exported"
    directory.mkdir()
    (directory / ARCHITECTURE_FILE).write_text(bundle.architecture.to_json())
    for name, text in bundle.preprocessing.to_files().items():
        (directory / name).write_text(text)
    save_file(bundle.module.state_dict(), directory / "model.safetensors")
    return directory, bundle


def test_an_exported_directory_gives_the_same_bundle(exported: tuple[Path, ModelBundle]) -> None:
    directory, bundle = exported
    again = load_model(Model(loader=Loader.LIMBECK, uri=str(directory)), Task.IMAGE_TEXT)
    assert again.identity() == bundle.identity()
    assert (again.preprocessing, again.task) == (bundle.preprocessing, bundle.task)
    assert not again.module.training
    with pytest.raises(TaskError, match=r"`spec\.task` is CausalLM, but the model of `model` does ImageText"):
        load_model(Model(loader=Loader.LIMBECK, uri=str(directory)), Task.CAUSAL_LM)


@pytest.mark.parametrize(
    ("file", "content", "error", "message"),
    [
        ("architecture.json", None, ModelFilesError, r"must hold architecture\.json, as a directory that limbeck"),
        ("architecture.json", "[]", ArchitectureError, "is not an architecture record"),
        (
            "architecture.json",
            '{"version":9,"kind":"a","settings":{},"edits":[]}',
            ArchitectureError,
            "version 1, got 9",
        ),
        (
            "architecture.json",
            '{"version":1,"kind":"a","settings":{},"edits":[]}',
            ArchitectureError,
            "kind must be one",
        ),
        (
            "architecture.json",
            '{"version":1,"kind":"DualEncoder","settings":{},"edits":[]}',
            ArchitectureError,
            "record of a DualEncoder lacks 'image'",
        ),
        ("preprocessing.json", "{", ModelFilesError, r"preprocessing\.json cannot be read"),
        ("tokenizer.json", None, ModelFilesError, r"tokenizer\.json is missing beside it"),
        ("model.safetensors", None, WeightsError, "found none"),
        ("model.safetensors", "junk", WeightsError, "damaged or cut short"),
    ],
)
def test_a_broken_exported_directory_says_what_is_wrong(
    file: str, content: str | None, error: type[ModelError], message: str, exported: tuple[Path, ModelBundle]
) -> None:
    directory, _ = exported
    if content is None:
        (directory / file).unlink()
    else:
        (directory / file).write_text(content)
    with pytest.raises(error, match=message):
        load_bundle(directory)


def test_remote_files_are_copied_once_and_again_when_they_change(bert_directory: Path, tmp_path: Path) -> None:
    uri = f"memory://{tmp_path.name}/models/bert"
    storage = Storage.open(uri)
    for file in bert_directory.iterdir():
        storage.create(file.name, file.read_bytes())
    cache = tmp_path / "cache"
    remote = load_model(Model(loader=Loader.TRANSFORMERS, uri=uri), Task.TEXT_EMBEDDING, cache_dir=cache)
    local = load_model(Model(loader=Loader.TRANSFORMERS, uri=str(bert_directory)), Task.TEXT_EMBEDDING)
    assert remote.identity() == local.identity()
    (copy,) = cache.iterdir()
    (copy / "mark").touch()
    assert local_model_files(uri, field="model", cache_dir=cache) == copy
    storage.delete("config.json")
    storage.create("config.json", b"{}")
    changed = local_model_files(uri, field="model", cache_dir=cache)
    assert changed != copy
    assert (changed / "config.json").read_bytes() == b"{}"
    assert not [path for path in cache.iterdir() if path.name.startswith(".tmp")]


def test_one_remote_file_is_copied_alone(tmp_path: Path) -> None:
    storage = Storage.open(f"memory://{tmp_path.name}/models")
    storage.create("a.safetensors", b"12345")
    storage.create("b.safetensors", b"")
    path = local_model_files(
        f"memory://{tmp_path.name}/models/a.safetensors", field="model", cache_dir=tmp_path / "cache"
    )
    assert path.read_bytes() == b"12345"
    assert [file.name for file in path.parent.iterdir()] == ["a.safetensors"]
    with pytest.raises(ModelFilesError, match=r"`model\.uri` must name existing files, got memory.*/c"):
        local_model_files(f"memory://{tmp_path.name}/models/c", field="model", cache_dir=tmp_path / "cache")


def test_file_uris_and_paths_are_used_where_they_lie(bert_directory: Path, tmp_path: Path) -> None:
    for uri in (str(bert_directory), f"file://{bert_directory}"):
        assert local_model_files(uri, field="model", cache_dir=tmp_path / "cache") == bert_directory.resolve()
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("content", [b"", b"junk"])
def test_weights_of_an_unknown_kind_or_damaged_torch_files_are_refused(
    content: bytes, bert_directory: Path, tmp_path: Path
) -> None:
    shutil.copytree(bert_directory, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    (tmp_path / "model" / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(WeightsError, match=r"pytorch_model\.bin"):
        load_model(Model(loader=Loader.TRANSFORMERS, uri=str(tmp_path / "model")), Task.TEXT_EMBEDDING)


def test_weights_that_leave_out_a_tied_matrix_are_whole_and_others_are_not(tied_directory: Path) -> None:
    bundle = load_model(Model(loader=Loader.TRANSFORMERS, uri=str(tied_directory)), Task.CAUSAL_LM)
    assert tied_names(bundle.module) == {"network.lm_head.weight": "network.model.embed_tokens.weight"}
    state = {name: tensor.clone() for name, tensor in bundle.module.state_dict().items()}
    del state["network.lm_head.weight"]
    again = rebuild(bundle.architecture, seed=3)
    load_weights(again, state, where="here")
    assert weights_identity(again) == weights_identity(bundle.module)
    del state["network.model.norm.weight"]
    with pytest.raises(WeightsError, match=r"here: .*missing network\.model\.norm\.weight$"):
        load_weights(again, state, where="here")
