"""Low rank in whole runs: factors are recovered, quantized, exported and reported."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import limbeck_runtime

Job = dict[str, Any]
TUNE = {"epochs": 1, "batchSize": 12}


def test_a_tuned_network_is_factorised_recovered_quantized_and_exported(
    classification: Callable[..., Job], run_here: Callable[..., list[dict[str, Any]]], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    job = classification(
        output,
        pipeline=[
            {"name": "tune", "finetune": TUNE},
            {"name": "thin", "lowRank": {"parameterPercent": 50, "ignore": ["*.fc"]}},
            {"name": "recover", "finetune": TUNE},
            {"name": "int8", "quantize": {"activations": "None"}},
        ],
        export={"formats": ["Safetensors", "Onnx"]},
    )
    events = run_here(job)
    phases = {event["phase"] for event in events if event["event"] == "step_progress" and event["step"] == "thin"}
    assert phases >= {"calibrate", "weigh"}
    report = json.loads((output / "report.json").read_text())
    record = json.loads((output / "records" / "thin" / "low_rank.json").read_text())
    parameters = {row["label"]: row["parameters"] for row in report["rows"]}
    assert parameters["tune"] == record["parametersBefore"]
    assert parameters["thin"] == parameters["recover"] == record["parametersAfter"] < record["parametersBefore"]
    thin = next(step for step in report["steps"] if step["name"] == "thin")
    assert thin["lowRank"]["layers"] == record["layers"]
    assert record["kept"]["network.fc"] == "`lowRank.ignore` names it"
    assert {file["path"] for file in report["exports"]} >= {"model.safetensors", "model.onnx"}
    with torch.no_grad():
        outputs = limbeck_runtime.load(str(output / "model")).module({"pixel_values": torch.zeros(1, 3, 16, 16)})
    assert outputs["logits"].shape == (1, 4)
