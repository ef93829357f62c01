"""A run whose student trains on two workers."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import limbeck_runtime

pytestmark = [pytest.mark.ray, pytest.mark.slow]

Job = dict[str, Any]
# 180 steps, a checkpoint after each.
DISTIL = {"epochs": 60, "batchSize": 12, "learningRate": 1e-4, "checkpointIntervalSeconds": 0}


@pytest.fixture(scope="module")
def job_at(make_job: Callable[..., Job], save_model: Callable[..., Path], vocabulary: int) -> Callable[..., Job]:
    """The same job at one place or another, with so many workers."""
    teacher = save_model("clip", seed=1, width=32, layers=2, vocabulary=vocabulary)
    student = save_model("clip", seed=2, width=16, layers=1, vocabulary=vocabulary, projection=12)

    def make(output: Path, replicas: int) -> Job:
        return make_job(
            "ImageText",
            output,
            teacher={"loader": "Transformers", "uri": str(teacher)},
            student={"loader": "Transformers", "uri": str(student)},
            columns={"image": "png", "text": "txt"},
            pipeline=[{"name": "distil", "distil": DISTIL}],
            cluster={"student": {"replicas": replicas}},
        )

    return make


def test_two_workers_that_are_stopped_and_go_on_learn_what_one_does(
    job_at: Callable[..., Job],
    start_driver: Callable[..., Any],
    run_in_threads: Callable[..., list[dict[str, Any]]],
    tmp_path: Path,
) -> None:
    run_in_threads(job_at(tmp_path / "one", 1))
    job = job_at(tmp_path / "two", 2)
    job["spec"]["store"] = {"uri": f"{tmp_path}/one/store"}
    driver = start_driver(job)
    for event in driver.events():
        if event["event"] == "checkpoint" and event["at"] >= 3:
            driver.process.send_signal(signal.SIGTERM)
            break
    stopped = driver.wait()
    assert (stopped.code, stopped.outcome["reason"]) == (130, "Stopped"), stopped.errors
    ended = start_driver(job).wait()
    assert ended.code == 0, ended.errors
    (resumed,) = ended.of("resumed")
    assert resumed["at"] == stopped.of("checkpoint")[-1]["at"]
    one, two = (limbeck_runtime.load(tmp_path / name / "model") for name in ("one", "two"))
    inputs = {
        "pixel_values": torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)),
        "input_ids": torch.tensor([[2, 5, 6, 3], [2, 9, 3, 0], [2, 7, 8, 3], [2, 30, 31, 3]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1]]),
    }
    with torch.inference_mode():
        apart, together = one.module(inputs), two.module(inputs)
    for name in ("image_embedding", "text_embedding"):
        assert torch.nn.functional.cosine_similarity(apart[name], together[name]).min() > 0.999, name
