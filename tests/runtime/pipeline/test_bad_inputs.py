"""Inputs that cannot be used end the run with a message that names them, and leave nothing that looks like a result."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from limbeck_runtime.errors import InvalidSpecError

Job = dict[str, Any]
Samples = dict[str, dict[str, bytes]]
RunHere = Callable[..., list[dict[str, Any]]]
Classification = Callable[..., Job]
SaveModel = Callable[..., Path]
WriteTar = Callable[[Path, Mapping[str, Mapping[str, bytes]]], None]

INT8 = [{"name": "int8", "quantize": {"activations": "None"}}]


def _assert_refused(job: Job, run_here: RunHere, message: str) -> None:
    output = Path(job["spec"]["output"]["uri"])
    with pytest.raises(InvalidSpecError, match=message):
        run_here(job)
    files = {path.relative_to(output).parts[0] for path in output.rglob("*") if path.is_file()}
    assert files <= {"fence", "index", "stages", "events.jsonl", "progress.jsonl"}
    assert not list(output.rglob(".tmp-*"))
    # Stages have taken their logs over at most: no data was committed.
    assert not list(output.rglob("stages/*/data/*"))


@pytest.fixture
def clip(save_model: SaveModel, vocabulary: int) -> Path:
    """A model of its own, to be damaged."""
    return save_model("clip", seed=9, width=16, layers=1, vocabulary=vocabulary)


@pytest.fixture
def image_text(make_job: Callable[..., Job], tmp_path: Path) -> Callable[..., Job]:
    """`image_text(uri, **spec)`: quantizes a model for pairs of images and texts."""

    def make(uri: Path, task: str = "ImageText", **spec: Any) -> Job:
        given = {
            "teacher": {"loader": "Transformers", "uri": str(uri)},
            "pipeline": INT8,
            "columns": {"image": "png", "text": "txt", "label": "cls"},
            **spec,
        }
        return make_job(task, tmp_path / "out", **given)

    return make


def test_a_model_that_is_not_there(image_text: Callable[..., Job], run_here: RunHere, tmp_path: Path) -> None:
    _assert_refused(image_text(tmp_path / "nowhere"), run_here, r"`spec\.teacher\.model.*nowhere")


def _truncated(directory: Path) -> None:
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def _without_header(directory: Path) -> None:
    weights = directory / "model.safetensors"
    weights.write_bytes(b"\xff" * 64 + weights.read_bytes()[64:])


def _a_pickle(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")


def _without_a_tensor(directory: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = directory / "model.safetensors"
    tensors = load_file(weights)
    del tensors["visual_projection.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})


def _no_json(directory: Path) -> None:
    (directory / "config.json").write_text("{")


def _no_tokenizer(directory: Path) -> None:
    (directory / "tokenizer.json").write_text("{}")


DAMAGES = {
    "weights that end early": (_truncated, "safetensors"),
    "weights without a header": (_without_header, "safetensors"),
    "weights as a pickle": (_a_pickle, "safetensors"),
    "a tensor that is missing": (_without_a_tensor, r"visual_projection|image_projection"),
    "a configuration that is no JSON": (_no_json, r"config\.json"),
    "a tokenizer that is none": (_no_tokenizer, r"tokenizer\.json is not a tokenizer"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_model_with(damage: str, clip: Path, image_text: Callable[..., Job], run_here: RunHere) -> None:
    change, message = DAMAGES[damage]
    change(clip)
    _assert_refused(image_text(clip), run_here, message)


@pytest.mark.parametrize(("task", "does"), [("ImageClassification", "ImageText"), ("CausalLM", "ImageText")])
def test_a_model_of_another_task(
    task: str, does: str, clip: Path, image_text: Callable[..., Job], run_here: RunHere
) -> None:
    _assert_refused(image_text(clip, task), run_here, f"`spec.task` is {task}, but .* is a clip, which does {does}")


def test_a_metric_that_the_task_lacks(clip: Path, image_text: Callable[..., Job], run_here: RunHere) -> None:
    job = image_text(clip)
    job["spec"]["evaluation"]["metrics"] = ["perplexity"]
    _assert_refused(job, run_here, r"`spec\.evaluation\.metrics\[0\]` must be a metric that ImageText has .*recall@10")


def test_a_slice_that_is_no_column(clip: Path, image_text: Callable[..., Job], run_here: RunHere) -> None:
    job = image_text(clip)
    job["spec"]["evaluation"]["slices"] = ["color"]
    _assert_refused(job, run_here, r"`spec\.evaluation\.slices` must be among .* \(none\), got color; add it there")


def test_texts_longer_than_the_model_can_read(clip: Path, image_text: Callable[..., Job], run_here: RunHere) -> None:
    job = image_text(clip)
    job["spec"]["teacher"]["model"]["maxTextLength"] = 50
    _assert_refused(job, run_here, "`maxTextLength` must be at most 12")


def test_data_that_are_not_there(classification: Classification, run_here: RunHere, tmp_path: Path) -> None:
    job = classification(tmp_path / "out")
    job["spec"]["data"]["train"]["uri"] = f"{tmp_path}/absent-{{0..3}}.tar"
    _assert_refused(job, run_here, r"absent-0\.tar")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": "jpg", "label": "cls"}, r"`spec\.data\.columns\.image` must name .* got 'jpg', which none"),
        ({"image": "png"}, r"`spec\.data\.columns\.label` must be given for this model"),
        ({"text": "txt", "label": "cls"}, r"`spec\.data\.columns\.image` must be given for this model"),
    ],
)
def test_columns_that_do_not_hold_what_is_read(
    columns: dict[str, str], message: str, classification: Classification, run_here: RunHere, tmp_path: Path
) -> None:
    _assert_refused(classification(tmp_path / "out", columns=columns), run_here, message)


def test_a_model_with_fewer_outputs_than_the_data_has_classes(
    classification: Classification,
    classifier: Callable[..., dict[str, Any]],
    run_here: RunHere,
    tmp_path: Path,
) -> None:
    job = classification(tmp_path / "out", student=classifier(num_classes=3))
    _assert_refused(job, run_here, r"`spec\.pipeline\[0\]\.finetune`: .* got 3 outputs for 4 classes")


@pytest.fixture
def with_train(
    classification: Classification, samples: Samples, write_tar: WriteTar, tmp_path: Path
) -> Callable[[Mapping[str, Samples]], Job]:
    """A job on training shards that the test makes, by name."""

    def make(shards: Mapping[str, Samples]) -> Job:
        for name, of_shard in shards.items():
            write_tar(tmp_path / "own" / f"{name}.tar", of_shard)
        job = classification(tmp_path / "out")
        names = ",".join(shards)
        job["spec"]["data"]["train"]["uri"] = f"{tmp_path}/own/{f'{{{names}}}' if len(shards) > 1 else names}.tar"
        return job

    return make


def _part(samples: Samples, start: int, stop: int) -> Samples:
    return {key: dict(parts) for key, parts in list(samples.items())[start:stop]}


def test_one_key_in_two_shards_names_both(
    with_train: Callable[[Mapping[str, Samples]], Job], samples: Samples, run_here: RunHere
) -> None:
    job = with_train({"a": _part(samples, 0, 12), "b": _part(samples, 11, 20)})
    twice = list(samples)[11]
    _assert_refused(job, run_here, rf"got '{twice}' in shard '.*/a\.tar' and again in shard '.*/b\.tar'")


def test_too_many_bad_samples_name_the_first(
    with_train: Callable[[Mapping[str, Samples]], Job], samples: Samples, run_here: RunHere
) -> None:
    whole, broken = _part(samples, 0, 12), _part(samples, 12, 24)
    first = list(broken)[3]
    broken[first] = {**broken[first], "png": broken[first]["png"][:-30]}
    job = with_train({"a": whole, "b": broken})
    _assert_refused(
        job, run_here, rf"got 1 of 24 \(4\.2 %\); the first is '{first}' in shard '.*/b\.tar': TruncatedImage"
    )


def test_few_bad_samples_are_skipped_counted_and_named(
    with_train: Callable[[Mapping[str, Samples]], Job], samples: Samples, run_here: RunHere, tmp_path: Path
) -> None:
    broken = _part(samples, 0, 24)
    (cut, empty), *_ = zip(list(broken)[3::9], list(broken)[4::9], strict=False)
    broken[cut] = {**broken[cut], "png": broken[cut]["png"][:-30]}
    broken[empty] = {ending: part for ending, part in broken[empty].items() if ending != "cls"}
    job = with_train({"a": broken})
    job["spec"]["data"]["maxBadSamplesPercent"] = 10
    events = run_here(job)
    bad = {event["key"]: event["reason"] for event in events if event["event"] == "bad_sample"}
    assert bad == {cut: "TruncatedImage", empty: "MissingLabel"}
    found = json.loads((tmp_path / "out" / "report.json").read_text())["badSamples"]
    assert (found["total"], found["seen"]) == (2, 36)
    assert found["byReason"] == {"TruncatedImage": 1, "MissingLabel": 1}
    assert {example["key"] for example in found["examples"]} == {cut, empty}


def test_a_validation_share_that_takes_no_sample(
    with_train: Callable[[Mapping[str, Samples]], Job], samples: Samples, run_here: RunHere
) -> None:
    job = with_train({"a": _part(samples, 0, 2)})
    del job["spec"]["data"]["validation"]
    job["spec"]["data"]["validationPercent"] = 1
    _assert_refused(job, run_here, r"`spec\.data\.validationPercent` must leave samples on both sides, got 1 of 2")


def test_a_learning_rate_that_makes_the_loss_infinite(
    classification: Classification, run_here: RunHere, tmp_path: Path
) -> None:
    tune = {"epochs": 20, "batchSize": 4, "learningRate": 1e30, "warmupPercent": 0, "gradientClipNorm": 0}
    job = classification(tmp_path / "out", pipeline=[{"name": "tune", "finetune": tune}])
    with pytest.raises(InvalidSpecError, match="step tune: `learningRate` must keep the loss finite"):
        run_here(job)
