"""Distillation as a part of a run, the teacher in threads: what is stored, read, damaged, waited for and given up."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from limbeck_runtime.errors import InterruptedRunError, InvalidSpecError
from limbeck_runtime.pipeline import run
from limbeck_runtime.teacher.capture import CaptureSettings
from limbeck_runtime.teacher.queue import CaptureFailedError
from limbeck_runtime.teacher.workers import Answer, Failed, ThreadWorkers, Workers

Job = dict[str, Any]
Events = list[dict[str, Any]]
OpenRun = Callable[..., Any]
Classify = Callable[..., Job]
Classifier = Callable[..., dict[str, Any]]


@pytest.fixture
def distil(classification: Classify, classifier: Classifier, tmp_path: Path) -> Callable[..., Job]:
    """`distil(**settings of the step)`: a job with one step that learns from a teacher."""

    def make(**settings: Any) -> Job:
        step = {"epochs": 2, "batchSize": 12, "checkpointIntervalSeconds": 0, **settings}
        return classification(
            tmp_path / "out",
            teacher=classifier(channels=12),
            pipeline=[{"name": "distil", "distil": step}],
        )

    return make


@pytest.fixture
def go(open_run: OpenRun) -> Callable[..., Events]:
    """Runs a job with the teacher in threads of this process."""

    def one(job: Job, workers: Callable[[CaptureSettings], Workers] = ThreadWorkers, **options: Any) -> Events:
        stream = io.StringIO()
        with open_run(job, stream=stream, teacher_workers=workers, **options) as context:
            run(context)
        return [json.loads(line) for line in stream.getvalue().splitlines()]

    return one


def _of(events: Events, kind: str) -> Events:
    return [event for event in events if event["event"] == kind]


def _report(job: Job) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((Path(job["spec"]["output"]["uri"]) / "report.json").read_text())
    return report


def _shards(job: Job) -> list[Path]:
    return sorted((Path(job["spec"]["output"]["uri"]) / "store").rglob("*.arrow"))


LAYERS = {"studentLayers": ["network.layer1", "network.layer3"], "teacherLayers": ["network.layer1", "network.layer3"]}
SIGNALS = {
    "forward": [{"kind": "ForwardKL"}],
    "reverse": [{"kind": "ReverseKL"}],
    "jensen-shannon": [{"kind": "JensenShannon"}],
    "features of layers": [{"kind": "ForwardKL"}, {"kind": "FeatureMSE", "weight": 0.1, **LAYERS}],
    "two of one kind": [
        {"kind": "FeatureCosine", "studentLayers": ["network.layer1"], "teacherLayers": ["network.layer2"]},
        {"kind": "FeatureCosine", "studentLayers": ["network.layer3"], "teacherLayers": ["network.layer4"]},
    ],
}


@pytest.mark.parametrize("signals", SIGNALS)
def test_each_signal_of_classes_goes_the_whole_way(
    signals: str, distil: Callable[..., Job], go: Callable[..., Events]
) -> None:
    job = distil(signals=SIGNALS[signals])
    go(job)
    (step,) = _report(job)["steps"]
    kinds = {signal["kind"] for signal in SIGNALS[signals]}
    assert set(step["history"]["terms"]) == {*kinds, "hard"}
    assert step["history"]["updates"] == [1, 2, 3, 4, 5, 6]
    assert all(loss is not None for loss in step["history"]["total"])


def test_a_shard_that_was_damaged_since_is_computed_again_and_said_once(
    distil: Callable[..., Job], go: Callable[..., Events]
) -> None:
    go(distil())
    job = distil(epochs=3)
    whole = {path: path.read_bytes() for path in _shards(job)}
    damaged = _shards(job)[1]
    content = bytearray(whole[damaged])
    content[len(content) // 2] ^= 4
    damaged.unlink()
    damaged.write_bytes(content)
    events = go(job)
    assert {path: path.read_bytes() for path in _shards(job)} == whole
    warnings = [event["message"] for event in _of(events, "warning")]
    assert warnings == ["1 shards of teacher outputs were corrupt; they are computed again"]
    assert _report(job)["steps"][0]["history"]["updates"][-1] == 9


class Silent(Workers):
    """Workers that never answer."""

    def __init__(self, settings: CaptureSettings) -> None:
        self.asked = threading.Event()

    def start(self) -> str:
        return "silent"

    def submit(self, worker: str, task: Any) -> None:
        raise AssertionError("it was never ready")

    def stop(self, worker: str) -> None:
        pass

    def answers(self, timeout_seconds: float) -> list[Answer]:
        threading.Event().wait(0.01)
        return []


def test_a_stop_is_heard_by_a_student_that_waits_for_its_teacher(
    distil: Callable[..., Job], go: Callable[..., Events]
) -> None:
    stop = threading.Event()

    def workers(settings: CaptureSettings) -> Workers:
        stop.set()
        return Silent(settings)

    job = distil()
    with pytest.raises(InterruptedRunError, match="stopped on request; run the same command again"):
        go(job, workers, stop=stop)
    assert go(job)[-1]["event"] == "step_progress"
    assert _report(job)["rows"][-1]["label"] == "distil"


class Unable(ThreadWorkers):
    """Workers whose teacher cannot be loaded."""

    def start(self) -> str:
        self._name = super().start()
        return self._name

    def answers(self, timeout_seconds: float) -> list[Answer]:
        return [Failed(self._name, None, "MemoryError: too large")]


def test_a_teacher_that_gives_up_ends_the_run_with_its_own_reason(
    distil: Callable[..., Job], go: Callable[..., Events]
) -> None:
    job = distil()
    with pytest.raises(CaptureFailedError, match="could not be loaded by its workers: MemoryError: too large"):
        go(job, Unable)
    assert not list(Path(job["spec"]["output"]["uri"]).rglob("teacher-at-work/*"))
    go(job)


def test_what_teacher_and_student_cannot_do_together_is_refused_before_a_worker_starts(
    distil: Callable[..., Job], classifier: Classifier, go: Callable[..., Events]
) -> None:
    def workers(settings: CaptureSettings) -> Workers:
        raise AssertionError("no worker should start")

    job = distil(signals=[{"kind": "FeatureMSE"}])
    with pytest.raises(InvalidSpecError, match=r"`spec\.pipeline\[0\]\.distil`: .* must name layers"):
        go(job, workers)
    assert not _shards(job)


def test_a_baseline_is_the_same_student_on_the_same_budget_without_the_teacher(
    distil: Callable[..., Job], go: Callable[..., Events]
) -> None:
    job = distil(hardLabelPercent=100)
    job["spec"]["evaluation"]["baseline"] = True
    go(job)
    baseline, distilled = _report(job)["rows"][1:]
    assert (baseline["label"], baseline["kind"], baseline["method"]) == ("baseline", "Baseline", "finetune")
    # With hard labels alone the distilled student is the baseline.
    for name, metric in baseline["metrics"].items():
        assert metric["value"] == pytest.approx(distilled["metrics"][name]["value"], abs=1e-6), name
