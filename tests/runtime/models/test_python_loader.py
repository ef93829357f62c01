"""Models that the user's own functions make; the functions are here."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from limbeck.api.v1alpha1.job import Task
from limbeck.api.v1alpha1.model import Loader, Model
from limbeck_runtime.errors import UserCodeError
from limbeck_runtime.models.bundle import Architecture, ModelBundle
from limbeck_runtime.models.errors import ArchitectureError, ModelFilesError, TaskError, WeightsError
from limbeck_runtime.models.loading import load_model
from limbeck_runtime.models.rebuilding import rebuild, task_of

USER_CODE = """
import torch
from torch import nn
from limbeck_runtime.models.preprocessing import ImagePreprocessing, Preprocessing


class Net(nn.Module):
    def __init__(self, classes, key):
        super().__init__()
        self.key = key
        self.head = nn.Linear(3, classes)

    def forward(self, inputs):
        return {self.key: self.head(inputs["pixel_values"].mean((2, 3)))}


def classifier(classes=4, key="logits"):
    return Net(classes, key)


def whole():
    image = ImagePreprocessing(size=8, mean=(0, 0, 0), std=(1, 1, 1))
    return Net(4, "logits"), Preprocessing(image=image)


def plain():
    return nn.Conv2d(3, 4, 1)


def nothing():
    return None


def broken():
    return 1 / 0


def leaves():
    raise SystemExit(3)


number = 3
"""


@pytest.fixture
def user_code(tmp_path: Path) -> Any:
    name = f"user_models_{abs(hash(str(tmp_path)))}"
    (tmp_path / f"{name}.py").write_text(USER_CODE)
    sys.path.insert(0, str(tmp_path))
    yield name
    sys.path.remove(str(tmp_path))
    sys.modules.pop(name, None)


def load(function: str, task: Task = Task.IMAGE_CLASSIFICATION, **fields: Any) -> ModelBundle:
    return load_model(Model(loader=Loader.PYTHON, function=function, **fields), task, seed=0)


def test_the_users_module_is_built_loaded_and_rebuilt(user_code: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    weights = {"head.weight": torch.ones(6, 3), "head.bias": torch.arange(6.0)}
    save_file(weights, tmp_path / "model.safetensors")
    uri = str(tmp_path / "model.safetensors")
    bundle = load(f"{user_code}:classifier", settings={"classes": 6}, image_size=8, uri=uri)
    inputs = {"pixel_values": torch.ones(2, 3, 8, 8)}
    torch.testing.assert_close(bundle.module(inputs)["logits"], (torch.arange(6.0) + 3).expand(2, 6))
    architecture = Architecture.from_json(bundle.architecture.to_json())
    assert task_of(architecture) is Task.IMAGE_CLASSIFICATION
    assert isinstance(rebuild(architecture), nn.Module)
    with pytest.raises(WeightsError, match=r"head\.weight is \(6, 3\) instead of \(4, 3\)"):
        load(f"{user_code}:classifier", image_size=8, uri=uri)


def test_a_function_may_return_its_preprocessing(user_code: str) -> None:
    image = load(f"{user_code}:whole").preprocessing.image
    assert image is not None
    assert image.size == 8


@pytest.mark.parametrize(
    ("function", "fields", "error", "message"),
    [
        ("missing", {}, ArchitectureError, "must name a function that Python can import"),
        ("number", {}, ArchitectureError, "number is int"),
        ("nothing", {}, ArchitectureError, r"must return an nn\.Module, or one and a Preprocessing, got NoneType"),
        ("classifier", {"settings": {"clases": 3}}, ArchitectureError, r"`model\.settings` must be what .*clases"),
        ("classifier", {}, ModelFilesError, r"must return the module and a Preprocessing"),
        ("classifier", {"settings": {"key": "scores"}, "image_size": 8}, TaskError, "a dict with logits, got scores"),
        ("broken", {}, UserCodeError, r"broken raised ZeroDivisionError: .*, line 35\)"),
        ("leaves", {}, UserCodeError, "leaves raised SystemExit: 3"),
        ("plain", {"image_size": 8}, UserCodeError, "forward, which got a dict with pixel_values, raised TypeError"),
    ],
)
def test_functions_that_cannot_be_used_are_named_with_the_reason(
    function: str, fields: dict[str, Any], error: type[Exception], message: str, user_code: str
) -> None:
    with pytest.raises(error, match=message):
        load(f"{user_code}:{function}", **fields)


def test_a_module_of_another_task_is_refused(user_code: str) -> None:
    with pytest.raises(TaskError, match="a module for ImageText must return a dict with image_embedding, text_emb"):
        load(f"{user_code}:whole", Task.IMAGE_TEXT)


@pytest.mark.parametrize(
    ("code", "error", "message"),
    [
        ("1 / 0", UserCodeError, r"raised ZeroDivisionError: division by zero \(.*\.py, line 1\)"),
        ("import a_module_that_nobody_has", UserCodeError, "No module named 'a_module_that_nobody_has'"),
        ("def f(:", UserCodeError, "raised SyntaxError"),
    ],
)
def test_a_module_that_fails_while_it_is_imported_is_the_users_code(
    code: str, error: type[Exception], message: str, user_code: str, tmp_path: Path
) -> None:
    (tmp_path / f"{user_code}_broken.py").write_text(code)
    with pytest.raises(error, match=message):
        load(f"{user_code}_broken:build")
    with pytest.raises(ArchitectureError, match="must name a function that Python can import"):
        load(f"{user_code}_absent:build")
