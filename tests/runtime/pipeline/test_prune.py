"""Pruning in whole runs: what went stays gone through training, quantization and export, and can be brought back."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load

import limbeck_runtime
from limbeck_runtime.commitlog import CommitLog
from limbeck_runtime.storage import Storage

Job = dict[str, Any]
RunHere = Callable[..., list[dict[str, Any]]]
TUNE = {"epochs": 1, "batchSize": 12}
EXPORTS = {"formats": ["Safetensors", "Onnx"]}


@pytest.fixture
def run_pipeline(
    classification: Callable[..., Job], classifier: Callable[..., dict[str, Any]], run_here: RunHere, tmp_path: Path
) -> Callable[..., Path]:
    """Runs these steps on a small ResNet and gives the output's folder."""

    def run(*steps: dict[str, Any], **changes: Any) -> Path:
        job = classification(
            tmp_path / "out", pipeline=steps, teacher=classifier(channels=12), export=EXPORTS, **changes
        )
        run_here(job)
        return tmp_path / "out"

    return run


def _record(output: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((output / "records" / "thin" / "prune.json").read_text())
    return record


@pytest.mark.slow
@pytest.mark.parametrize("method", ["L1", "Taylor"])
def test_a_pruned_network_is_tuned_quantized_exported_and_smaller(
    run_pipeline: Callable[..., Path], method: str
) -> None:
    output = run_pipeline(
        {"name": "thin", "prune": {"method": method, "sparsityPercent": 30, "units": ["Channels", "ResidualWidth"]}},
        {"name": "tune", "finetune": TUNE},
        {"name": "int8", "quantize": {"activations": "None"}},
    )
    report = json.loads((output / "report.json").read_text())
    parameters = [row["parameters"] for row in report["rows"][1:]]
    record = _record(output)
    assert parameters[0] == parameters[1] == record["parametersAfter"] < record["parametersBefore"]
    assert {file["path"] for file in report["exports"]} >= {"model.safetensors", "model.onnx"}
    pruning = next(step["pruning"] for step in report["steps"] if step["name"] == "thin")
    assert pruning["layers"] == record["layers"]
    assert limbeck_runtime.load(str(output / "model")).num_parameters() > 0


def test_zeros_stay_zeros_through_training_and_quantization(run_pipeline: Callable[..., Path]) -> None:
    output = run_pipeline(
        {"name": "thin", "prune": {"method": "L1", "granularity": "Unstructured", "sparsityPercent": 60}},
        {"name": "tune", "finetune": {**TUNE, "epochs": 2, "emaDecayPercent": 90}},
        {"name": "int8", "quantize": {"activations": "None"}},
    )
    record = _record(output)
    commit = CommitLog(Storage.open(str(output)).child("stages/tune")).latest()
    assert commit is not None
    trained = load(commit.read("model.safetensors"))  # int8 would round what is nearly zero
    assert all(int((trained[layer["name"]] == 0).sum()) >= layer["removed"] for layer in record["layers"])
    module = limbeck_runtime.load(str(output / "model")).module
    for layer in record["layers"]:
        weight = module.get_submodule(layer["name"].rpartition(".")[0]).weight
        assert int((weight == 0).sum()) >= layer["removed"] > 0
    report = json.loads((output / "report.json").read_text())
    assert "no speed" in (output / "report.html").read_text()
    assert report["rows"][1]["parameters"] == report["rows"][2]["parameters"]


def test_rounds_recover_in_between_and_the_step_can_be_undone(
    run_pipeline: Callable[..., Path], tmp_path: Path
) -> None:
    output = run_pipeline(
        {
            "name": "thin",
            "prune": {"method": "L2", "sparsityPercent": 40, "rounds": 2, "recover": {"finetune": TUNE}},
        },
    )
    record = _record(output)
    first, last = (entry["sparsityPercent"] for entry in record["rounds"])
    assert (first, last) == (pytest.approx(20, abs=6), pytest.approx(40, abs=3))
    assert record["undo"] == "Whole"
    command = [sys.executable, "-m", "limbeck_runtime.pruning.undo", "--output", str(output)]
    finished = subprocess.run(
        [*command, "--step", "thin", "--to", str(tmp_path / "before")], capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stderr
    before = limbeck_runtime.load(str(tmp_path / "before"))
    assert before.num_parameters() == record["parametersBefore"]
    with torch.no_grad():
        assert before.module({"pixel_values": torch.zeros(1, 3, 16, 16)})["logits"].shape == (1, 4)


def test_a_step_that_did_not_prune_cannot_be_undone(run_pipeline: Callable[..., Path], tmp_path: Path) -> None:
    from limbeck_runtime.pruning.undo import undo_step

    output = run_pipeline({"name": "tune", "finetune": TUNE})
    with pytest.raises(ValueError, match="must be one that prunes"):
        undo_step(str(output), "tune", tmp_path / "before")


@pytest.mark.slow
def test_towers_of_clip_are_pruned_in_rounds_that_learn_from_the_teacher(
    make_job: Callable[..., Job],
    save_model: Callable[..., Path],
    vocabulary: int,
    run_in_threads: Callable[..., list[dict[str, Any]]],
    tmp_path: Path,
) -> None:
    teacher = save_model("clip", seed=1, width=16, layers=2, vocabulary=vocabulary)
    prune = {
        "method": "Taylor",
        "parameterPercent": 80,
        "rounds": 2,
        "units": ["Heads", "MlpWidth", "ResidualWidth"],
        "recover": {"distil": {"epochs": 1, "batchSize": 12}},
    }
    job = make_job(
        "ImageText",
        tmp_path / "out",
        teacher={"loader": "Transformers", "uri": str(teacher)},
        pipeline=[{"name": "thin", "prune": prune}],
        columns={"image": "png", "text": "txt"},
        export=EXPORTS,
    )
    events = run_in_threads(job)
    trained = {event["step"] for event in events if event["event"] == "step_progress" and event["phase"] == "train"}
    record = _record(tmp_path / "out")
    assert trained >= {"thin-round-1", "thin-round-2"}, [event for event in events if event["event"] == "step_progress"]
    assert record["parametersAfter"] <= 0.8 * record["parametersBefore"]
    assert {space["kind"] for space in record["spaces"]} == {"Heads", "MlpWidth", "ResidualWidth"}
    assert len(list((tmp_path / "out" / "model").glob("*.onnx"))) == 2
