"""Identities and records of models and their preprocessing."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ray import cloudpickle
from torch import nn

from limbeck_runtime.models.bundle import Architecture, ModelBundle, weights_identity
from limbeck_runtime.models.edits import apply_edits
from limbeck_runtime.models.errors import ArchitectureError
from limbeck_runtime.models.normalization import batch_norm_warning
from limbeck_runtime.models.preprocessing import (
    AudioPreprocessing,
    ImagePreprocessing,
    Preprocessing,
    TextPreprocessing,
)


def make_linear(seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(3, 4)


def _changed_value(module: nn.Linear) -> nn.Module:
    module.weight.data[3, 2] += 1e-7 + module.weight.data[3, 2].abs()
    return module


CHANGES: dict[str, Callable[[nn.Linear], nn.Module]] = {
    "one value": _changed_value,
    "the type": lambda module: module.double(),
    "a name": lambda module: nn.Sequential(module),
    "the shape": lambda module: _with_weight(module, module.weight.data.reshape(6, 2)),
}


def _with_weight(module: nn.Linear, weight: torch.Tensor) -> nn.Module:
    module.weight = nn.Parameter(weight)
    return module


@pytest.mark.parametrize("change", CHANGES)
def test_the_identity_of_weights_changes_with(change: str) -> None:
    before = weights_identity(make_linear())
    assert weights_identity(make_linear()) == before
    assert weights_identity(CHANGES[change](make_linear())) != before


def test_the_identity_of_weights_sees_into_tensors_that_are_made_of_others() -> None:
    from torch.testing._internal.two_tensor import TwoTensor

    def made_of(first: float, second: float) -> nn.Module:
        module = nn.Module()
        module.register_buffer("pair", TwoTensor(torch.tensor([first]), torch.tensor([second])))
        return module

    assert weights_identity(made_of(1, 2)) == weights_identity(made_of(1, 2))
    assert weights_identity(made_of(1, 2)) != weights_identity(made_of(1, 3))


def test_weights_of_every_type_and_size_can_be_identified() -> None:
    module = nn.Module()
    for name, tensor in {
        "bf16": torch.ones(2, 3, dtype=torch.bfloat16).T,
        "scalar": torch.tensor(3),
        "flag": torch.tensor([True, False]),
        "empty": torch.zeros(0, 4),
    }.items():
        module.register_buffer(name, tensor)
    assert len(weights_identity(module)) == 64


def test_the_identity_of_a_bundle_needs_weights_and_architecture() -> None:
    def bundle(seed: int, kind: str) -> ModelBundle:
        return ModelBundle(make_linear(seed), Architecture(kind), Preprocessing(), "ImageText")

    identities = {bundle(seed, kind).identity() for seed in (0, 1) for kind in ("a", "b")}
    assert len(identities) == 4
    assert bundle(0, "a").num_parameters() == 16


def test_an_architecture_goes_through_json_and_its_keys_have_no_order() -> None:
    first = Architecture("a", {"x": 1, "y": [1, 2]}).with_edit({"kind": "quantize", "bits": 8})
    assert Architecture.from_json(first.to_json()) == first
    assert Architecture("a", {"y": [1, 2], "x": 1}).identity() == Architecture("a", {"x": 1, "y": [1, 2]}).identity()
    assert first.identity() != Architecture("a", {"x": 1, "y": [1, 2]}).identity()
    with pytest.raises(ArchitectureError, match="an edit must hold `kind`"):
        first.with_edit({"bits": 4})


def test_an_edit_of_a_kind_that_nobody_knows_is_refused() -> None:
    module = make_linear()
    assert apply_edits(module, ()) is module
    with pytest.raises(ArchitectureError, match=r"an edit's kind must be one of .*, got 'melt'"):
        apply_edits(module, ({"kind": "melt"},))


@pytest.fixture
def preprocessing(tokenizer_json: str) -> Preprocessing:
    return Preprocessing(
        image=ImagePreprocessing(size=16, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)),
        text=TextPreprocessing(tokenizer_json=tokenizer_json, max_length=12, pad_id=0),
        audio=AudioPreprocessing(num_mel_bins=8),
    )


def test_preprocessing_goes_through_json_and_through_files(preprocessing: Preprocessing) -> None:
    assert Preprocessing.from_json(preprocessing.to_json()) == preprocessing
    files = preprocessing.to_files()
    assert Preprocessing.from_files(files) == preprocessing
    assert preprocessing.text is not None
    assert files["tokenizer.json"] == preprocessing.text.tokenizer_json
    assert "WordPiece" not in files["preprocessing.json"]
    no_text = preprocessing.model_copy(update={"text": None})
    assert Preprocessing.from_files(no_text.to_files()) == no_text


def test_preprocessing_is_identified_by_all_that_it_does(preprocessing: Preprocessing) -> None:
    image = preprocessing.image
    assert image is not None
    other = preprocessing.model_copy(update={"image": image.model_copy(update={"mean": (0.1, 0.2, 0.4)})})
    assert Preprocessing.from_json(preprocessing.to_json()).identity() == preprocessing.identity()
    assert other.identity() != preprocessing.identity()


def test_texts_are_cut_wrapped_and_ended(tokenizer_json: str) -> None:
    text = TextPreprocessing(
        tokenizer_json=tokenizer_json,
        max_length=10,
        pad_id=0,
        eos_id=1,
        append_eos=True,
        image_token="<image>",
        image_token_id=4,
        num_image_tokens=3,
    )
    tokenizer = text.build_tokenizer()
    short, long = text.encode(tokenizer, ["a", "a red apple " * 20])
    assert short[:4] == [2, 4, 4, 4]
    assert short[-2:] == [3, 1]
    assert len(long) == 10
    assert long[-2:] == [3, 1]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"max_length": 3, "num_image_tokens": 3, "image_token": "<image>", "image_token_id": 4},
            "leave room for text",
        ),
        ({"num_image_tokens": 3}, "`image_token` and `image_token_id` must be given"),
        ({"append_eos": True}, "`eos_id` must be given"),
    ],
)
def test_preprocessing_that_cannot_work_is_refused(fields: dict[str, Any], message: str, tokenizer_json: str) -> None:
    with pytest.raises(ValueError, match=message):
        TextPreprocessing(**{"tokenizer_json": tokenizer_json, "max_length": 12, "pad_id": 0} | fields)


def test_batch_norm_warns_on_several_workers_only() -> None:
    with_batch_norm = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    assert batch_norm_warning(with_batch_norm, 1) is None
    assert batch_norm_warning(nn.Sequential(nn.GroupNorm(1, 4)), 2) is None
    warning = batch_norm_warning(with_batch_norm, 2)
    assert warning is not None
    assert warning.startswith("1 BatchNorm layers (the first is 1)")


RECEIVE = """
import pickle, sys, torch
bundle, inputs = pickle.load(sys.stdin.buffer)
with torch.inference_mode():
    torch.save((bundle.module(inputs)["logits"], bundle.identity()), sys.stdout.buffer)
"""


def test_a_model_that_transformers_has_hooked_gives_the_same_in_another_process(
    llava_directory: Path, make_inputs: Callable[..., dict[str, torch.Tensor]]
) -> None:
    from limbeck.api.v1alpha1.model import Model
    from limbeck_runtime.models.loading import load_model

    bundle = load_model(Model(loader="Transformers", uri=str(llava_directory)), "CausalLM")
    inputs = make_inputs(bundle.preprocessing)
    with torch.inference_mode():
        before = bundle.module(inputs)["logits"]  # Llava reads its image tower's hidden states through hooks
    sent = cloudpickle.dumps((bundle, inputs))
    received = subprocess.run([sys.executable, "-c", RECEIVE], input=sent, capture_output=True, check=True).stdout
    logits, identity = torch.load(io.BytesIO(received), weights_only=True)
    torch.testing.assert_close(logits, before)
    assert identity == bundle.identity()
    with torch.inference_mode():
        assert torch.equal(bundle.module(inputs)["logits"], before)
