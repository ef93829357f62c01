"""Exports a model in the wanted formats, each file read back and compared before it counts.

Left out on purpose: TorchExport, ExecuTorch and LiteRt, which `limbeck validate` refuses; publishing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from limbeck.api.report import ExportedFile
from limbeck.api.v1alpha1.outcome import ExportFormat
from limbeck_runtime.export.bundle_directory import artefact_bytes, write_bundle
from limbeck_runtime.export.errors import ExportError
from limbeck_runtime.export.graphs import Inputs, graphs_of
from limbeck_runtime.export.onnx_file import open_session, run_session, write_onnx
from limbeck_runtime.export.verification import Comparison, check, compare
from limbeck_runtime.models.bundle import ModelBundle
from limbeck_runtime.models.limbeck_loader import load_bundle

# Tensors of a batch that are not the model's inputs.
_NOT_INPUTS = ("labels",)


def export_model(
    bundle: ModelBundle, formats: Sequence[ExportFormat], directory: Path, batches: Sequence[Inputs]
) -> list[ExportedFile]:
    """Write `bundle` into `directory`, which may exist; its files come in only when all of a format are verified.

    `batches` are inputs of validation samples, the first of at least two samples. Paths in the result are relative to
    `directory`.

    Raises:
        ExportError: a format cannot hold this model.
        VerificationError: a file answers differently; nothing of its format is left.
    """
    inputs = [{name: t for name, t in batch.items() if name not in _NOT_INPUTS} for batch in batches]
    directory.mkdir(parents=True, exist_ok=True)
    exported: list[ExportedFile] = []
    for wanted in dict.fromkeys(formats):
        if wanted not in _WRITERS:
            raise ExportError(
                f"`spec.export.formats` must be of {', '.join(kind.value for kind in _WRITERS)}, got {wanted.value}; "
                "other formats are not there yet"
            )
        with tempfile.TemporaryDirectory(dir=directory, prefix=".tmp-") as scratch:
            exported += _WRITERS[wanted](bundle, Path(scratch), inputs)
            for file in sorted(Path(scratch).iterdir()):
                file.replace(directory / file.name)
    return exported


def _safetensors(bundle: ModelBundle, scratch: Path, batches: Sequence[Inputs]) -> list[ExportedFile]:
    write_bundle(bundle, scratch)
    again = load_bundle(scratch)
    comparisons = [
        compare(_answers(bundle, name, batches), _answers(again, name, batches))
        for name in _compared_outputs(bundle, batches[0])
    ]
    worst = _worst(comparisons)
    check(worst, "model.safetensors", quantized=False)
    return [_record(ExportFormat.SAFETENSORS, "model.safetensors", artefact_bytes(scratch), worst)]


def _onnx(bundle: ModelBundle, scratch: Path, batches: Sequence[Inputs]) -> list[ExportedFile]:
    exported = []
    for graph in graphs_of(bundle, batches[0]):
        files = write_onnx(bundle, graph, batches[0], scratch / f"{graph.name}.onnx")
        session = open_session(files[0], torch.get_num_threads())
        with torch.inference_mode():
            comparisons = [
                compare(graph.module(*(batch[name] for name in graph.inputs)).numpy(), run_session(session, batch))
                for batch in batches
            ]
        worst = _worst(comparisons, num_compared=sum(part.num_compared for part in comparisons))
        check(worst, files[0].name, quantized=bool(bundle.architecture.edits))
        num_bytes = sum(file.stat().st_size for file in files)
        exported.append(_record(ExportFormat.ONNX, files[0].name, num_bytes, worst))
    return exported


_WRITERS: Mapping[ExportFormat, Callable[[ModelBundle, Path, Sequence[Inputs]], list[ExportedFile]]] = {
    ExportFormat.SAFETENSORS: _safetensors,
    ExportFormat.ONNX: _onnx,
}


def _compared_outputs(bundle: ModelBundle, inputs: Inputs) -> list[str]:
    with torch.inference_mode():
        return [name for name, output in bundle.module(inputs).items() if output.ndim > 1]


def _answers(bundle: ModelBundle, output: str, batches: Sequence[Inputs]) -> np.ndarray:
    with torch.inference_mode():
        rows = [bundle.module(batch)[output].float().numpy() for batch in batches]
    return np.concatenate([row.reshape(-1, row.shape[-1]) for row in rows])


def _worst(comparisons: Sequence[Comparison], num_compared: int | None = None) -> Comparison:
    return Comparison(
        num_compared if num_compared is not None else comparisons[0].num_compared,
        max(part.max_difference for part in comparisons),
        min(part.min_cosine for part in comparisons),
    )


def _record(wanted: ExportFormat, path: str, num_bytes: int, comparison: Comparison) -> ExportedFile:
    return ExportedFile(
        format=wanted.value,
        path=path,
        bytes=num_bytes,
        num_compared=comparison.num_compared,
        max_difference=comparison.max_difference,
        min_cosine=comparison.min_cosine,
    )
