"""ONNX files by torch's exporter, and running them in onnxruntime.

Left out on purpose: onnxruntime's own quantization, which knows neither our channels in float nor our scales for each
row; the int8 layers say themselves what they do (onnx_int8.py).
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from limbeck_runtime.export.errors import ExportError
from limbeck_runtime.export.graphs import Graph, Inputs, dynamic_dimensions
from limbeck_runtime.export.onnx_int8 import OPSET, translations
from limbeck_runtime.models.bundle import ModelBundle

# Protobuf ends at 2 GiB; beyond this the weights go into a file beside.
_MAX_INLINE_BYTES = 1_500_000_000
# Numbers in what is computed at export rather than in the graph.
_MAX_FOLDED = 64


def write_onnx(bundle: ModelBundle, graph: Graph, inputs: Inputs, path: Path) -> list[Path]:
    """Write one graph; returns its files, the weights' side file included where there is one.

    `inputs` are a batch of at least two samples. Raises ExportError where torch cannot export the model.
    """
    arguments = tuple(inputs[name] for name in graph.inputs)
    with _quiet(), torch.no_grad():
        try:
            program: Any = torch.onnx.export(
                graph.module.eval(),
                arguments,
                dynamo=True,
                dynamic_shapes=(dynamic_dimensions(bundle, graph.inputs),),
                input_names=list(graph.inputs),
                output_names=[graph.output],
                custom_translation_table=translations(),
                opset_version=OPSET,
                optimize=False,  # see _simplify
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            cause = error.__cause__ or error
            raise ExportError(
                f"`spec.export.formats` must leave out Onnx for this model: torch cannot export its {graph.name} "
                f"({str(cause).strip().splitlines()[0]})"
            ) from error
        _simplify(program.model)
    _tidy(program.model, _metadata(bundle, inputs))
    num_bytes = sum(value.const_value.nbytes for value in program.model.graph.initializers.values())
    program.save(path, external_data=num_bytes > _MAX_INLINE_BYTES)
    return sorted(path.parent.glob(f"{path.name}*"))


def open_session(path: Path, num_threads: int) -> Any:
    """An onnxruntime session on the CPU. Raises ExportError where the file cannot be loaded."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # pybind raises kinds of its own
        raise ExportError(f"onnxruntime cannot load {path.name}: {str(error).splitlines()[0]}") from error


def run_session(session: Any, inputs: Inputs) -> np.ndarray:
    """The graph's one output; inputs that the graph does not read are left out."""
    wanted = {entry.name for entry in session.get_inputs()}
    output: np.ndarray = session.run(
        None, {name: tensor.cpu().numpy() for name, tensor in inputs.items() if name in wanted}
    )[0]
    return output


def _metadata(bundle: ModelBundle, inputs: Inputs) -> Mapping[str, str]:
    """What answers need beside the embeddings: the scale of an image-text model's cosines."""
    with torch.inference_mode():
        scale = bundle.module(inputs).get("logit_scale")
    return {} if scale is None else {"logit_scale": repr(float(scale))}


def _simplify(model: Any) -> None:
    """What the exporter's own optimizer does, but for its rewriting rules: they take 40 % of the whole export, and
    onnxruntime has the same."""
    from onnx_ir.passes import common
    from onnxscript import optimizer

    common.InlinePass()(model)
    # Shapes are folded; a weight is not, for then it would be written in float.
    optimizer.fold_constants(model, input_size_limit=_MAX_FOLDED, output_size_limit=_MAX_FOLDED)
    for simplify in (
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedOpsetsPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.NameFixPass(),
    ):
        simplify(model)


def _tidy(model: Any, metadata: Mapping[str, str]) -> None:
    """Stack traces of the exporting machine do not belong into the file; for a small model they are 5 % of it."""
    model.metadata_props.clear()
    model.metadata_props.update(metadata)
    for graph in (model.graph, *model.functions.values()):
        graph.metadata_props.clear()
        for node in graph.all_nodes():
            node.metadata_props.clear()
            node.doc_string = None
        for value in (*graph.inputs, *graph.outputs, *getattr(graph, "initializers", {}).values()):
            value.metadata_props.clear()
            value.doc_string = None


@contextmanager
def _quiet() -> Iterator[None]:
    """torch's exporter tells its developers much that says nothing to ours."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
