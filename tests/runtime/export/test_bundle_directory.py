"""A model's directory: complete, plain, and the same model when it is read again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from limbeck.api.v1alpha1.compression import Quantize
from limbeck_runtime.export.bundle_directory import artefact_bytes, write_bundle
from limbeck_runtime.models.bundle import ModelBundle
from limbeck_runtime.models.limbeck_loader import load_bundle
from limbeck_runtime.quantization import quantize

Make = Callable[..., Any]


@pytest.mark.parametrize("activations", [None, "Dynamic", "Static"])
def test_a_model_comes_back_bit_for_bit(
    make_bundle: Make, make_inputs: Make, tmp_path: Path, activations: str | None
) -> None:
    bundle: ModelBundle = make_bundle("clip")
    inputs = make_inputs(bundle)
    if activations is not None:
        bundle, _ = quantize(bundle, Quantize.model_validate({"activations": activations}), [inputs])
    write_bundle(bundle, tmp_path)
    again = load_bundle(tmp_path)
    assert again.identity() == bundle.identity()
    assert again.task == bundle.task
    assert again.preprocessing == bundle.preprocessing
    with torch.inference_mode():
        mine, theirs = bundle.module(inputs), again.module(inputs)
    assert all(mine[name].equal(theirs[name]) for name in mine)


def test_the_directory_holds_plain_files_and_no_traces_of_writing(make_bundle: Make, tmp_path: Path) -> None:
    write_bundle(make_bundle("bert"), tmp_path / "deep" / "model")
    files = {path.name for path in (tmp_path / "deep" / "model").iterdir()}
    assert files == {"architecture.json", "preprocessing.json", "tokenizer.json", "model.safetensors"}
    assert json.loads((tmp_path / "deep" / "model" / "architecture.json").read_text())["kind"]


def test_writing_again_replaces_what_was_there(make_bundle: Make, tmp_path: Path) -> None:
    write_bundle(make_bundle("clip"), tmp_path)
    bert = make_bundle("bert")
    write_bundle(bert, tmp_path)
    assert load_bundle(tmp_path).identity() == bert.identity()


def test_shared_weights_are_stored_once(make_bundle: Make, make_inputs: Make, tmp_path: Path) -> None:
    bundle: ModelBundle = make_bundle("language")
    for name, model in {
        "float": bundle,
        "int8": quantize(bundle, Quantize(), [make_inputs(bundle)])[0],
    }.items():
        write_bundle(model, tmp_path / name)
        with safe_open(tmp_path / name / "model.safetensors", "pt") as file:
            tables = [key for key in file.keys() if "embed_tokens.weight" in key or "lm_head.weight" in key]  # noqa: SIM118
        assert len([key for key in tables if not key.endswith("_scale")]) == 1
        assert load_bundle(tmp_path / name).identity() == model.identity()


def test_int8_is_smaller_on_disk_by_what_its_weights_are(make_bundle: Make, tmp_path: Path) -> None:
    bundle: ModelBundle = make_bundle("language")
    write_bundle(bundle, tmp_path / "float")
    write_bundle(quantize(bundle, Quantize.model_validate({"activations": "None"}))[0], tmp_path / "int8")
    saved = artefact_bytes(tmp_path / "float") - artefact_bytes(tmp_path / "int8")
    matrices = sum(parameter.numel() for parameter in bundle.module.parameters() if parameter.ndim == 2)
    assert saved == pytest.approx(3 * matrices, rel=0.2)
