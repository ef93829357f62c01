"""Checkpoints: what is kept, when they are due, and how errors of the writing thread come out."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from limbeck_runtime.commitlog import CommitLog
from limbeck_runtime.local_files import LocalFiles
from limbeck_runtime.storage import OutOfSpaceError, Storage
from limbeck_runtime.student.checkpoint import STATE_FILE, Checkpoints


class GatedFiles(LocalFiles):
    """A disk that writes data only while its gate is open, and that can be full."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()
        self.full = False

    def write(self, descriptor: int, data: memoryview) -> None:
        self.gate.wait()
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        super().write(descriptor, data)


class Clock:
    """Time that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Bench:
    """One run's checkpoints on a disk and a clock that the test holds."""

    def __init__(self, folder: Path) -> None:
        self.files, self.clock = GatedFiles(), Clock()
        self.storage = Storage.open(str(folder), files=self.files)
        self.log = CommitLog(self.storage)
        self.opened: list[Checkpoints] = []

    def open(self, interval_seconds: float = 0, fingerprint: str = "a") -> Checkpoints:
        self.opened.append(
            Checkpoints(self.log, fingerprint=fingerprint, interval_seconds=interval_seconds, clock=self.clock)
        )
        return self.opened[-1]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.files.gate.set()
    for checkpoints in made.opened:
        checkpoints.close()


def state(value: float) -> dict[str, torch.Tensor]:
    return {"model/w": torch.full((3,), value), "optimizer/step/model/w": torch.tensor(value)}


def test_the_newest_checkpoint_is_loaded_with_its_step(bench: Bench) -> None:
    checkpoints = bench.open()
    for step in (1, 2, 3):
        checkpoints.save(state(step), {}, step)
    checkpoints.wait()
    snapshot = bench.open().load()
    assert snapshot is not None
    assert snapshot.step == 3
    assert load(snapshot.data)["model/w"].tolist() == [3, 3, 3]
    assert [saved.step for saved in checkpoints.take_saved()] == [1, 2, 3]
    assert checkpoints.take_saved() == []


def test_only_the_last_two_are_kept(bench: Bench) -> None:
    checkpoints = bench.open()
    for step in range(1, 6):
        checkpoints.save(state(step), {}, step)
    checkpoints.wait()
    assert [commit.record["step"] for commit in bench.log.all()] == [4, 5]
    assert len(bench.storage.list("data")) == 2


@pytest.mark.parametrize("damage", ["truncated", "flipped", "gone"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(bench: Bench, damage: str) -> None:
    checkpoints = bench.open()
    for step in (1, 2):
        checkpoints.save(state(step), {}, step)
    checkpoints.wait()
    newest = bench.storage.local_path(bench.log.all()[-1].files[STATE_FILE].path)
    assert newest is not None
    data = newest.read_bytes()
    if damage == "gone":
        newest.unlink()
    else:
        newest.write_bytes(data[:-3] if damage == "truncated" else data[:-1] + bytes([data[-1] ^ 1]))
    again = bench.open()
    snapshot = again.load()
    assert snapshot is not None
    assert snapshot.step == 1
    assert len(again.skipped) == 1


def test_a_checkpoint_of_another_run_is_not_loaded(bench: Bench) -> None:
    checkpoints = bench.open(fingerprint="a")
    checkpoints.save(state(1), {}, 1)
    checkpoints.wait()
    assert bench.open(fingerprint="b").load() is None


def test_the_state_may_change_once_before_update_has_returned(bench: Bench) -> None:
    checkpoints = bench.open()
    updated, buffers = state(1), {"model/mean": torch.ones(2)}
    bench.files.gate.clear()
    checkpoints.save(updated, buffers, 1)
    buffers["model/mean"].fill_(9)  # the next forward pass does this at any time
    checkpoints.before_update()
    updated["model/w"].fill_(9)
    bench.files.gate.set()
    checkpoints.wait()
    snapshot = bench.open().load()
    assert snapshot is not None
    assert load(snapshot.data)["model/w"].tolist() == [1, 1, 1]
    assert load(snapshot.data)["model/mean"].tolist() == [1, 1]


def test_one_is_due_when_the_interval_has_passed_and_none_is_in_flight(bench: Bench) -> None:
    checkpoints = bench.open(interval_seconds=10)
    bench.clock.now = 9.9
    assert not checkpoints.due()
    bench.clock.now = 10
    assert checkpoints.due()
    bench.files.gate.clear()
    checkpoints.save(state(1), {}, 1)
    bench.clock.now = 25
    assert not checkpoints.due(), "one is in flight"
    bench.files.gate.set()
    checkpoints.wait()
    assert checkpoints.due()
    assert checkpoints.take_saved()[0].seconds == 15


def test_an_error_of_the_thread_is_raised_by_the_next_call(bench: Bench) -> None:
    checkpoints = bench.open()
    checkpoints.save(state(1), {}, 1)
    checkpoints.wait()
    bench.files.full = True
    checkpoints.save(state(2), {}, 2)
    with pytest.raises(OutOfSpaceError, match="disk or quota is full"):
        checkpoints.save(state(3), {}, 3)
    bench.files.full = False
    snapshot = bench.open().load()
    assert snapshot is not None
    assert snapshot.step == 1, "what was reported done is still there"
