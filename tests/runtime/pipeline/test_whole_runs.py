"""Each kind of model goes the whole way in a real driver: capture, distil, quantize, evaluate, export, report."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import limbeck_runtime
from limbeck.api.v1alpha1.data import Columns, DataSource
from limbeck_runtime.data.batch import Labels
from limbeck_runtime.data.index import build_index
from limbeck_runtime.data.loader import BatchLoader
from limbeck_runtime.data.sources import resolve_shards
from limbeck_runtime.evaluation.evaluate import evaluate

pytestmark = [pytest.mark.ray, pytest.mark.slow]

Job = dict[str, Any]
# Metrics of an embedding that compare it with the teacher's.
WITH_TEACHER = ("teacher_cosine", "similarity_correlation")
TRAINING = {"epochs": 2, "batchSize": 12, "learningRate": 1e-3, "checkpointIntervalSeconds": 0}


@dataclass(frozen=True)
class Whole:
    """A job that has been run once, and what came of it."""

    job: Job
    ended: Any
    output: Path

    @property
    def report(self) -> dict[str, Any]:
        report: dict[str, Any] = json.loads((self.output / "report.json").read_text())
        return report

    def stored(self) -> dict[str, tuple[int, int]]:
        """Inode and time of every shard of teacher outputs."""
        shards = sorted((self.output / "store").rglob("*.arrow"))
        return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in shards}


def _clip(save_model: Callable[..., Path], vocabulary: int) -> dict[str, Any]:
    teacher = save_model("clip", seed=1, width=32, layers=2, vocabulary=vocabulary)
    student = save_model("clip", seed=2, width=16, layers=1, vocabulary=vocabulary, projection=12)
    return {
        "task": "ImageText",
        "teacher": {"loader": "Transformers", "uri": str(teacher)},
        "student": {"loader": "Transformers", "uri": str(student)},
        "columns": {"image": "png", "text": "txt", "label": "cls", "slices": ["color"]},
        "evaluation": {
            "latency": {"batchSizes": [1], "repeats": 5},
            "samples": 2,
            "slices": ["color"],
            "baseline": True,
        },
        "augmentation": {"views": 2, "minCropPercent": 80, "flip": True},
    }


def _llama(save_model: Callable[..., Path], vocabulary: int) -> dict[str, Any]:
    teacher = save_model("llama", seed=3, width=32, layers=2, vocabulary=vocabulary + 8)
    student = save_model("llama", seed=4, width=16, layers=1, vocabulary=vocabulary + 3)
    return {
        "task": "CausalLM",
        "teacher": {"loader": "Transformers", "uri": str(teacher)},
        "student": {"loader": "Transformers", "uri": str(student)},
        "columns": {"text": "txt"},
    }


def _llava(save_model: Callable[..., Path], vocabulary: int) -> dict[str, Any]:
    teacher = save_model("llava", seed=5, width=32, layers=2, vocabulary=vocabulary, max_length=24)
    student = save_model("llava", seed=6, width=16, layers=1, vocabulary=vocabulary, max_length=24)
    return {
        "task": "CausalLM",
        "teacher": {"loader": "Transformers", "uri": str(teacher)},
        "student": {"loader": "Transformers", "uri": str(student)},
        "columns": {"image": "png", "text": "txt"},
    }


def _timm(_save_model: Callable[..., Path], _vocabulary: int) -> dict[str, Any]:
    def model(channels: list[int]) -> dict[str, Any]:
        settings = {"num_classes": 4, "layers": [1, 1, 1, 1], "channels": channels}
        return {"loader": "Timm", "architecture": "resnet18", "imageSize": 32, "settings": settings}

    return {
        "task": "ImageClassification",
        "teacher": model([16, 16, 32, 32]),
        "student": model([8, 8, 16, 16]),
        "columns": {"image": "png", "label": "cls", "slices": ["color"]},
    }


def _bert(save_model: Callable[..., Path], vocabulary: int) -> dict[str, Any]:
    teacher = save_model("bert", seed=7, width=32, layers=2, vocabulary=vocabulary)
    student = save_model("bert", seed=8, width=16, layers=1, vocabulary=vocabulary)
    return {
        "task": "TextEmbedding",
        "teacher": {"loader": "Transformers", "uri": str(teacher)},
        "student": {"loader": "Transformers", "uri": str(student)},
        "columns": {"text": "txt", "label": "cls"},
    }


CASES = {"clip": _clip, "llama": _llama, "llava": _llava, "timm": _timm, "bert": _bert}


CLUSTER = """
import sys, ray
context = ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
print(context.address_info["gcs_address"], flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    """Environment of drivers that join a cluster, as they do under KubeRay: one for all runs of this file."""
    environment = {"RAY_AUTH_MODE": "disabled", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    process = subprocess.Popen(
        [sys.executable, "-c", CLUSTER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, **environment},
    )
    with process:
        assert process.stdout is not None
        yield {**environment, "RAY_ADDRESS": process.stdout.readline().strip()}


@pytest.fixture(scope="module", params=CASES)
def whole(
    request: pytest.FixtureRequest,
    make_job: Callable[..., Job],
    save_model: Callable[..., Path],
    vocabulary: int,
    drive: Callable[..., Any],
    cluster: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Whole:
    case = CASES[request.param](save_model, vocabulary)
    augmentation = case.pop("augmentation", {})
    output = tmp_path_factory.mktemp(f"out-{request.param}")
    pipeline = [{"name": "distil", "distil": TRAINING}, {"name": "int8", "quantize": {"calibrationSamples": 24}}]
    job = make_job(case.pop("task"), output, pipeline=pipeline, export={"formats": ["Safetensors", "Onnx"]}, **case)
    job["spec"]["data"]["augmentation"] = augmentation
    return Whole(job, drive(job, environment=cluster), output)


def test_the_run_completes_and_says_so(whole: Whole) -> None:
    assert whole.ended.outcome is not None, whole.ended.errors
    assert whole.ended.outcome["reason"] == "Complete", whole.ended.outcome["message"]
    assert whole.ended.code == 0
    last = whole.ended.events[-1]
    assert (last["event"], last["state"], last["model"]) == ("run_finished", "Complete", f"{whole.output}/model")
    assert [event["step"] for event in whole.ended.of("step_finished")][-2:] == ["distil", "int8"]


def test_every_shard_and_view_is_captured_once(whole: Whole) -> None:
    views = whole.job["spec"]["data"]["augmentation"].get("views", 1)
    assert len(whole.stored()) == 3 * views
    last = whole.ended.of("capture_progress")[-1]
    assert (last["done"], last["total"], last["reused"]) == (3 * views, 3 * views, 0)


def test_the_report_has_a_measured_row_for_each_model(whole: Whole) -> None:
    report = whole.report
    rows = {row["label"]: row for row in report["rows"]}
    baseline = ["baseline"] if whole.job["spec"]["evaluation"].get("baseline") else []
    assert list(rows) == ["teacher", *baseline, "distil", "int8"]
    for row in rows.values():
        main = row["metrics"][report["mainMetric"]]
        assert main["value"] is not None
        assert main["recoveryPercent"] is not None or row["unmeasured"]
        assert row["latency"][0]["p50Seconds"] > 0
    assert rows["distil"]["parameters"] < rows["teacher"]["parameters"]
    assert rows["int8"]["artefactBytes"] < rows["distil"]["artefactBytes"] < rows["teacher"]["artefactBytes"]
    assert report["steps"][0]["history"]["updates"]
    assert report["gate"]["passed"]
    assert len(report["samples"]) == 2


def test_each_exported_file_was_compared_with_the_model(whole: Whole) -> None:
    exports = whole.report["exports"]
    assert {export["format"] for export in exports} == {"Safetensors", "Onnx"}
    for export in exports:
        assert export["numCompared"] > 0
        assert export["minCosine"] is None or export["minCosine"] > 0.98
        assert (whole.output / "model" / Path(export["path"]).name).stat().st_size > 0


def test_the_result_is_listed_with_its_hashes(whole: Whole) -> None:
    listed = json.loads((whole.output / "result.json").read_text())["files"]
    assert {"report.json", "report.html", "model/README.md", "model/model.safetensors"} <= listed.keys()
    for name, sha256 in listed.items():
        assert hashlib.sha256((whole.output / name).read_bytes()).hexdigest() == sha256


def test_the_model_that_is_loaded_in_one_line_has_the_figures_of_the_report(whole: Whole) -> None:
    bundle = limbeck_runtime.load(whole.output / "model")
    data = whole.job["spec"]["data"]
    source = DataSource.model_validate(data["validation"])
    index = build_index(resolve_shards(source), Columns.model_validate(data["columns"]), source.format)
    is_language = bundle.task == "CausalLM"
    with BatchLoader(index, bundle.preprocessing, labels=Labels.TOKENS if is_language else None) as loader:
        found = evaluate(bundle, [loader.batch(index.positions())], classes=index.classes)
    reported = {name: metric["value"] for name, metric in whole.report["rows"][-1]["metrics"].items()}
    # An embedding's likeness to the teacher's is not to be had from the model alone.
    alone = {name: value for name, value in found.metrics.items() if name not in WITH_TEACHER}
    assert alone == pytest.approx({name: reported[name] for name in alone}, rel=1e-4)
    assert alone


def test_a_second_run_skips_every_step_and_computes_no_teacher_output_again(
    whole: Whole, run_here: Callable[..., list[dict[str, Any]]]
) -> None:
    stored, report = whole.stored(), (whole.output / "report.json").read_bytes()
    events = run_here(whole.job)
    assert [event["step"] for event in events if event["event"] == "step_skipped"][-2:] == ["distil", "int8"]
    assert {event["event"] for event in events} == {"step_started", "step_skipped"}
    assert whole.stored() == stored
    assert (whole.output / "report.json").read_bytes() == report


def test_another_student_learns_from_the_same_outputs(
    whole: Whole, run_here: Callable[..., list[dict[str, Any]]], tmp_path: Path
) -> None:
    stored = whole.stored()
    job = json.loads(json.dumps(whole.job))
    spec = job["spec"]
    spec["output"]["uri"], spec["store"] = str(tmp_path / "other"), {"uri": f"{whole.output}/store"}
    spec["pipeline"] = [{"name": "longer", "distil": {**TRAINING, "learningRate": 0.002}}]
    spec["evaluation"]["baseline"], spec["export"] = False, {"formats": ["Safetensors"]}
    events = run_here(job)
    captures = [event for event in events if event["event"] == "capture_progress"]
    assert all(capture["reused"] == capture["done"] == capture["total"] == len(stored) for capture in captures)
    assert captures
    assert whole.stored() == stored
