"""Exported files of the real classes: run in onnxruntime on other shapes than they were made with, and compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from limbeck.api.v1alpha1.compression import Quantize
from limbeck.api.v1alpha1.outcome import ExportFormat
from limbeck_runtime.export.errors import ExportError, VerificationError
from limbeck_runtime.export.exporting import export_model
from limbeck_runtime.export.onnx_file import open_session, run_session
from limbeck_runtime.models.bundle import ModelBundle
from limbeck_runtime.quantization import quantize

Make = Callable[..., Any]
ONNX = [ExportFormat.ONNX]


def other_shape(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """One sample, its text longer."""
    one = {name: tensor[:1] for name, tensor in inputs.items()}
    for name in ("input_ids", "attention_mask"):
        if name in one:
            one[name] = torch.cat([one[name], one[name][:, -1:].repeat(1, 3)], 1)
    return one


def answers(bundle: ModelBundle, output: str, inputs: dict[str, torch.Tensor]) -> np.ndarray:
    with torch.inference_mode():
        found: np.ndarray = bundle.module(inputs)[output].numpy()
    return found


def test_an_image_text_model_becomes_two_encoders_with_static_int8(
    make_bundle: Make, make_inputs: Make, tmp_path: Path
) -> None:
    bundle: ModelBundle = make_bundle("clip")
    inputs = make_inputs(bundle)
    quantized, _ = quantize(bundle, Quantize.model_validate({"activations": "Static"}), [inputs])
    exported = export_model(quantized, ONNX, tmp_path, [{**inputs, "labels": torch.zeros(4)}])
    assert [(file.format, file.path, file.num_compared) for file in exported] == [
        ("Onnx", "image_encoder.onnx", 4),
        ("Onnx", "text_encoder.onnx", 4),
    ]
    assert {path.name for path in tmp_path.iterdir()} == {"image_encoder.onnx", "text_encoder.onnx"}
    assert all(file.bytes == (tmp_path / file.path).stat().st_size for file in exported)
    operations = Counter(node.op_type for node in onnx.load(tmp_path / "image_encoder.onnx").graph.node)
    assert operations["Conv"] == 1
    assert operations["MatMulInteger"] == 7
    other = other_shape(inputs)
    for file, output in zip(exported, ("image_embedding", "text_embedding"), strict=True):
        got = run_session(open_session(tmp_path / file.path, 1), other)
        assert float((got * answers(quantized, output, other)).sum(1).min()) > 0.999
    scale = onnx.load(tmp_path / "text_encoder.onnx").metadata_props[0]
    assert scale.key == "logit_scale"
    assert float(scale.value) == pytest.approx(float(answers(bundle, "logit_scale", inputs)))


def test_a_language_model_keeps_its_int8_weights_and_names_no_machine(
    make_bundle: Make, make_inputs: Make, tmp_path: Path
) -> None:
    bundle: ModelBundle = make_bundle("language")
    inputs = make_inputs(bundle)
    quantized, _ = quantize(bundle, Quantize(), [inputs])
    export_model(quantized, ONNX, tmp_path, [inputs])
    other = other_shape(inputs)
    got = run_session(open_session(tmp_path / "model.onnx", 1), other)
    np.testing.assert_allclose(got, answers(quantized, "logits", other), atol=0.01)
    graph = onnx.load(tmp_path / "model.onnx").graph
    large = {
        onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in graph.initializer if np.prod(tensor.dims) > 400
    }
    assert large == {"INT8"}
    assert b"site-packages" not in (tmp_path / "model.onnx").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "activations"), [("clip", "None"), ("bert", None), ("language", "Static"), ("llava", "Dynamic")]
)
def test_every_class_and_every_scheme_can_be_exported(
    make_bundle: Make, make_inputs: Make, tmp_path: Path, name: str, activations: str | None
) -> None:
    bundle: ModelBundle = make_bundle(name)
    inputs = make_inputs(bundle)
    if activations is not None:
        bundle, _ = quantize(bundle, Quantize.model_validate({"activations": activations}), [inputs])
    exported = export_model(bundle, [ExportFormat.SAFETENSORS, ExportFormat.ONNX], tmp_path, [inputs])
    assert all(file.min_cosine is not None and file.min_cosine > 0.999 for file in exported)


def test_a_file_that_answers_differently_does_not_count_and_is_gone(
    make_bundle: Make, make_inputs: Make, tmp_path: Path
) -> None:
    bundle: ModelBundle = make_bundle("bert")
    bundle.module.text.pooling = "First"  # which its record does not say
    (tmp_path / "before.txt").write_text("kept")
    with pytest.raises(VerificationError, match=r"model.safetensors must answer as the torch model does"):
        export_model(bundle, [ExportFormat.SAFETENSORS], tmp_path, [make_inputs(bundle)])
    assert [path.name for path in tmp_path.iterdir()] == ["before.txt"]


def test_a_model_that_onnx_cannot_hold_is_refused_by_field(
    make_bundle: Make, make_inputs: Make, tmp_path: Path
) -> None:
    bundle: ModelBundle = make_bundle("bert")

    class Branching(torch.nn.Module):
        def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            ids = inputs["input_ids"].float()
            return {"text_embedding": ids if float(ids.sum()) > 3 else -ids}

    branching = ModelBundle(Branching(), bundle.architecture, bundle.preprocessing, bundle.task)
    with pytest.raises(ExportError, match=r"`spec.export.formats` must leave out Onnx for this model"):
        export_model(branching, ONNX, tmp_path, [make_inputs(bundle)])
    assert list(tmp_path.iterdir()) == []


def test_a_format_that_is_not_there_yet_is_refused(make_bundle: Make, make_inputs: Make, tmp_path: Path) -> None:
    bundle: ModelBundle = make_bundle("bert")
    with pytest.raises(ExportError, match=r"must be of Safetensors, Onnx, got ExecuTorch"):
        export_model(bundle, [ExportFormat.EXECUTORCH], tmp_path, [make_inputs(bundle)])
