"""The rows' own modules on workloads of a second: what they compare is the same thing. No time is asserted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from benchmarks.classification import Classification

from benchmarks import classification, overlap, store_reading, stored_bytes, student_epoch
from limbeck_runtime.student.loop import train
from limbeck_runtime.student.parts import Build, Worker
from limbeck_runtime.student.records import Callbacks, StepRecord
from limbeck_runtime.teacher.capture import Capturer

TINY = classification.Workload(
    num_shards=4,
    samples_per_shard=6,
    image_size=8,
    num_classes=5,
    teacher_width=8,
    student_width=4,
    batch_size=5,
    epochs=2,
    window_shards=2,
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def job(tmp_path: Path) -> Classification:
    return Classification.prepare(TINY, tmp_path)


def _losses(job: Classification, build: Build) -> list[float]:
    losses: list[float] = []

    def on_step(record: StepRecord) -> None:
        losses.append(record.loss)

    train(build(Worker()), job.settings, callbacks=Callbacks(on_step=on_step))
    return losses


def test_a_student_of_the_store_and_one_of_the_online_teacher_learn_the_same(job: Classification) -> None:
    store = job.new_store("captured")
    capturer = Capturer(job.capture_settings(store, num_threads=1))
    for task in job.capture_tasks:
        capturer.capture(task)
    capturer.close()
    stored, online = _losses(job, job.stored(store)), _losses(job, job.online)
    assert len(stored) == TINY.epochs * 5
    assert stored == pytest.approx(online, rel=1e-3)
    assert stored != pytest.approx(_losses(job, job.hard()), rel=1e-2)


def test_three_ways_of_an_epoch_are_timed() -> None:
    measured = student_epoch.measure(TINY, runs=1)
    assert set(measured["epoch_seconds"]) == {"hard", "stored", "online"}
    assert all(figure["value"] > 0 for figure in measured["epoch_seconds"].values())


@pytest.mark.parametrize(
    ("begun", "capture_seconds", "train_seconds", "expected"),
    [
        ([1, 2, 3, 4], 4.0, 0.4, 4.1),  # the teacher is slower: its time, and the last step
        ([1, 2, 3, 4], 0.4, 4.0, 4.1),  # the student is slower: the first shard, and its time
        ([1, 2, 3, 4], 4.0, 4.0, 5.0),  # equal: all but one shard or step is hidden
        ([4, 4, 4, 4], 4.0, 4.0, 8.0),  # the first step needs all shards: nothing is hidden
    ],
)
def test_the_ideal_overlap_follows_the_order_of_shards(
    begun: list[int], capture_seconds: float, train_seconds: float, expected: float
) -> None:
    assert overlap.ideal_seconds(begun, 4, capture_seconds, train_seconds) == pytest.approx(expected)


def test_shards_begun_grow_with_the_steps_up_to_all(job: Classification) -> None:
    begun = overlap.shards_begun(job)
    assert begun[0] < TINY.num_shards
    assert begun == sorted(begun)
    assert begun[-1] == TINY.num_shards


@pytest.mark.ray
def test_students_beside_a_teacher_at_work_have_the_losses_of_those_after_it() -> None:
    measured = overlap.measure(replace(TINY, epochs=1), rounds=2)
    assert measured["identical_traces"] == 2
    assert 0 < measured["window_share"] <= 1
    assert measured["most_bytes_in_flight"] <= measured["window_bytes"]


def test_a_tokens_bytes_are_those_of_its_columns_and_little_more() -> None:
    workload = stored_bytes.Workload(num_samples=4, tokens_per_sample=32, vocabulary=1024, k=20, runs=1)
    measured = stored_bytes.measure(workload)
    # 20 times 10 bits of index, 20 bytes of value, a scale and a tail of 2 bytes each; then the shard's own head.
    assert 49 <= measured["bytes_per_token"] < 85
    assert 0 < measured["kl_error"] <= measured["largest_kl_error"] < 1e-3
    assert measured["parquet_bytes_per_token"] > measured["bytes_per_token"]


@pytest.mark.ray
def test_reading_is_measured_on_both_sides() -> None:
    workload = store_reading.Workload(
        num_shards=3, samples_per_shard=20, width=4, batch_size=8, window_shards=2, num_seeks=3, runs=1
    )
    measured = store_reading.measure(workload)
    for name in ("per_batch", "first_batch_ms", "seek_ms", "ray_data_first_batch_ms", "per_batch_in_stored_order"):
        assert measured[name]["value"] > 0
