"""What a run finds done it does not do again; what depends on anything that has changed it does."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

Job = dict[str, Any]
Events = list[dict[str, Any]]
RunHere = Callable[..., Events]
INT8 = {"name": "int8", "quantize": {"activations": "None"}}
TUNE = {"name": "tune", "finetune": {"epochs": 1, "batchSize": 12}}


@pytest.fixture
def done(
    classification: Callable[..., Job],
    classifier: Callable[..., dict[str, Any]],
    run_here: RunHere,
    tmp_path: Path,
) -> Job:
    """A job that has been run: with a teacher that is only a yardstick, one step that trains and one that does not."""
    job = classification(tmp_path / "out", pipeline=[TUNE, INT8], teacher=classifier(channels=12))
    run_here(job)
    return job


def _skipped(events: Events) -> list[str]:
    return [event["step"] for event in events if event["event"] == "step_skipped"]


def _worked(events: Events) -> set[tuple[str, str]]:
    """Steps and phases in which something was computed."""
    return {(event["step"], event["phase"]) for event in events if event["event"] == "step_progress"}


def test_a_second_run_does_nothing_and_leaves_the_same(done: Job, run_here: RunHere, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in (tmp_path / "out" / "model").iterdir()}
    report = (tmp_path / "out" / "report.json").read_bytes()
    events = run_here(done)
    assert _skipped(events) == ["tune", "int8"]
    assert _worked(events) == set()
    assert {path: path.read_bytes() for path in (tmp_path / "out" / "model").iterdir()} == before
    assert (tmp_path / "out" / "report.json").read_bytes() == report


def _changed(job: Job, path: str, value: Any) -> Job:
    changed = copy.deepcopy(job)
    place = changed["spec"]
    *parents, last = path.split(".")
    for name in parents:
        place = place[int(name)] if isinstance(place, list) else place[name]
    place[last] = value
    return changed


@pytest.mark.parametrize(
    ("path", "value", "trained"),
    [
        ("student.model.imageSize", 20, True),
        ("seed", 7, True),
        ("pipeline.0.finetune.learningRate", 0.01, True),
        ("data.augmentation", {"flip": True}, True),
        ("data.columns.label", "color", True),
        ("teacher.model.imageSize", 20, False),
        ("data.columns.slices", ["color"], False),
    ],
)
def test_a_change_is_followed_by_all_that_depends_on_it(
    path: str, value: Any, trained: bool, done: Job, run_here: RunHere, classifier: Callable[..., dict[str, Any]]
) -> None:
    if path == "data.columns.label":  # six colours need six outputs, so the students differ too
        done = _changed(done, "student.model", classifier(num_classes=6))
        done["spec"]["teacher"]["model"] = classifier(num_classes=6)
        run_here(done)
    events = run_here(_changed(done, path, value))
    assert _skipped(events) == []
    assert (("tune", "train") in _worked(events)) is trained
    assert ("tune", "evaluate") in _worked(events)


def test_a_new_name_of_the_job_is_in_the_report_and_costs_no_step(done: Job, run_here: RunHere, tmp_path: Path) -> None:
    renamed = {**done, "metadata": {"name": "renamed"}}
    assert _skipped(run_here(renamed)) == ["tune", "int8"]
    assert json.loads((tmp_path / "out" / "report.json").read_text())["job"] == "renamed"


def test_a_later_step_that_changes_leaves_the_earlier_one_alone(done: Job, run_here: RunHere) -> None:
    events = run_here(_changed(done, "pipeline.1.quantize", {"activations": "None", "skip": ["network.fc"]}))
    assert _skipped(events) == ["tune"]
    assert ("int8", "evaluate") in _worked(events)


def test_other_labels_of_the_same_images_are_other_data(
    done: Job,
    run_here: RunHere,
    samples: Mapping[str, Mapping[str, bytes]],
    write_tar: Callable[[Path, Mapping[str, Mapping[str, bytes]]], None],
    tmp_path: Path,
) -> None:
    names = ["circle", "square", "cross", "bar"]
    turned = {
        key: {**parts, "cls": names[(names.index(parts["cls"].decode()) + 1) % 4].encode()}
        for key, parts in list(samples.items())[:36]
    }
    write_tar(tmp_path / "turned.tar", turned)
    plain = {key: dict(samples[key]) for key in turned}
    write_tar(tmp_path / "plain.tar", plain)
    run_here(_changed(done, "data.train.uri", str(tmp_path / "plain.tar")))
    events = run_here(_changed(done, "data.train.uri", str(tmp_path / "turned.tar")))
    assert ("tune", "train") in _worked(events)
