"""The pool over threads and over workers that the test plays: order, failures, losses, look-ahead, lost shards."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from limbeck_runtime.storage import OutOfSpaceError, StorageError
from limbeck_runtime.store import TeacherStore
from limbeck_runtime.store.layout import shard_path
from limbeck_runtime.teacher.capture import CaptureResult
from limbeck_runtime.teacher.plan import CaptureTask
from limbeck_runtime.teacher.pool import MAX_LOSSES_IN_A_ROW, SLOW_START_SECONDS, PoolCallbacks, TeacherPool
from limbeck_runtime.teacher.queue import CaptureFailedError
from limbeck_runtime.teacher.workers import (
    TASKS_IN_HAND,
    Alive,
    Answer,
    Captured,
    Failed,
    Lost,
    Ready,
    ThreadWorkers,
)

Make = Callable[..., Any]
PATIENCE = 20.0  # seconds; only reached where a test fails


@contextmanager
def pool_of_threads(of: Any, **arguments: Any) -> Iterator[TeacherPool]:
    settings = of.settings
    with TeacherPool(of.tasks, settings.store, lambda: ThreadWorkers(settings), **arguments) as pool:
        yield pool


def test_all_shards_are_captured_and_told(make_capture: Make) -> None:
    of = make_capture(num_shards=5)
    told: list[Any] = []
    samples: list[int] = []
    callbacks = PoolCallbacks(on_progress=told.append, on_captured=samples.append)
    with pool_of_threads(of, max_workers=2, callbacks=callbacks) as pool:
        assert pool.wait(PATIENCE)
    assert of.store.identities() == {task.identity for task in of.tasks}
    assert samples == [5] * 5
    assert [progress.done for progress in told] == sorted(progress.done for progress in told)
    assert (told[-1].done, told[-1].total, told[-1].captured, told[-1].reused) == (5, 5, 5, 0)


def test_a_second_run_reuses_everything_and_starts_no_worker(make_capture: Make) -> None:
    of = make_capture()
    with pool_of_threads(of) as pool:
        assert pool.wait(PATIENCE)

    reused: list[int] = []
    callbacks = PoolCallbacks(on_reused=reused.append)
    with TeacherPool(of.tasks, of.store, no_workers, callbacks=callbacks) as pool:
        assert pool.wait(PATIENCE)
        assert reused == [3]
        assert (pool.progress().reused, pool.progress().captured) == (3, 0)


def test_a_run_that_was_broken_off_is_completed_and_nothing_is_computed_twice(make_capture: Make) -> None:
    of = make_capture(num_shards=4, module=Counting())
    with pool_of_threads(of.with_(index=of.index)) as pool:
        assert pool.wait(PATIENCE)
    kept = of.tasks[1].identity
    for task in of.tasks:
        if task.identity != kept:
            of.store.storage.delete(shard_path(task.identity))
    before = of.module.num_samples
    with pool_of_threads(of) as pool:
        assert pool.wait(PATIENCE)
        assert (pool.progress().reused, pool.progress().captured) == (1, 3)
    assert of.module.num_samples - before == 15


def no_workers() -> ThreadWorkers:
    raise AssertionError("there is nothing to do")


class Counting(torch.nn.Module):
    """Counts what it is asked."""

    num_samples = 0

    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        self.num_samples += len(inputs["pixel_values"])
        return {"image_embedding": torch.ones(len(inputs["pixel_values"]), 4)}


def test_a_shard_that_the_student_discards_as_corrupt_is_computed_again_and_counted(make_capture: Make) -> None:
    of = make_capture()
    recomputed = threading.Event()
    warnings: list[str] = []

    def look(progress: Any) -> None:
        if progress.recomputed and progress.done == progress.total:
            recomputed.set()

    counted: list[tuple[str, int]] = []
    callbacks = PoolCallbacks(
        on_progress=look,
        on_warning=warnings.append,
        on_captured=lambda num_samples: counted.append(("captured", num_samples)),
        on_vanished=lambda num_shards: counted.append(("vanished", num_shards)),
    )
    with pool_of_threads(of, callbacks=callbacks, guard_seconds=0.05) as pool:
        assert pool.wait(PATIENCE)
        victim = of.tasks[1].identity
        file = of.store.storage.local_path(shard_path(victim))
        file.write_bytes(file.read_bytes()[:-50] + bytes(50))
        of.store.discard(victim)
        assert recomputed.wait(PATIENCE)
        assert pool.wait(PATIENCE)
        assert of.store.open(victim).num_samples == 5
        assert pool.progress().recomputed == 1
    assert counted == [("captured", 5)] * 3 + [("vanished", 1), ("captured", 5)]
    assert warnings == ["1 shards of teacher outputs were corrupt; they are computed again"]


def test_a_teacher_that_always_fails_ends_the_capture_with_its_own_words(make_capture: Make) -> None:
    of = make_capture(module=Broken())
    failed: list[BaseException] = []
    with (
        pool_of_threads(of, callbacks=PoolCallbacks(on_failed=failed.append)) as pool,
        pytest.raises(CaptureFailedError, match="RuntimeError: the model is broken"),
    ):
        pool.wait(PATIENCE)
    assert isinstance(failed[0], CaptureFailedError)


class Broken(torch.nn.Module):
    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        raise RuntimeError("the model is broken")


@dataclass
class PlayedWorkers:
    """Workers whose answers the test gives; the pool's clock stands until the test moves it."""

    now: float = 0.0
    started: list[str] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    hung: list[str] = field(default_factory=list)
    given: list[tuple[str, CaptureTask]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    silent: set[str] = field(default_factory=set)
    rounds: int = 0
    _answers: list[Answer] = field(default_factory=list)
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def start(self) -> str:
        with self._changed:
            name = f"w{len(self.started)}"
            self.started.append(name)
            self._changed.notify_all()
            return name

    def submit(self, worker: str, task: CaptureTask) -> None:
        with self._changed:
            self.given.append((worker, task))
            self._changed.notify_all()

    def stop(self, worker: str, *, hung: bool = False) -> None:
        self.stopped.append(worker)
        self.hung += [worker] if hung else []

    def answers(self, timeout_seconds: float) -> list[Answer]:
        with self._changed:
            self._changed.wait_for(lambda: self._answers, 0.01)
            alive = [Alive(name) for name in self.started if name not in {*self.stopped, *self.silent}]
            answers, self._answers = self._answers, []
            self.rounds += 1
            self._changed.notify_all()
            return [*alive, *answers]

    def say(self, *answers: Answer) -> None:
        with self._changed:
            self._answers += answers
            self._changed.notify_all()

    def wait_for(self, condition: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, PATIENCE), (self.started, self.stopped, self.given)

    def hang(self, worker: str) -> None:
        """Say nothing for `worker` from now on, and return when the pool has heard its last word."""
        self.silent.add(worker)
        rounds = self.rounds
        self.wait_for(lambda: self.rounds >= rounds + 2)

    def shards_of(self, worker: str) -> list[int]:
        return [task.shard for name, task in self.given if name == worker]

    def done(self, worker: str, task: CaptureTask) -> None:
        self.say(Captured(worker, task, CaptureResult(task.identity, task.num_samples, 1, False, 0.1)))

    @contextmanager
    def pool(self, of: Any, **arguments: Any) -> Iterator[TeacherPool]:
        def warn(message: str) -> None:
            with self._changed:
                self.warnings.append(message)
                self._changed.notify_all()

        callbacks = PoolCallbacks(on_warning=warn)
        with TeacherPool(
            of.tasks, of.store, lambda: self, clock=lambda: self.now, callbacks=callbacks, **arguments
        ) as pool:
            yield pool


def test_a_lost_worker_s_shards_go_to_the_one_that_replaces_it(make_capture: Make) -> None:
    of = make_capture(num_shards=2)
    workers = PlayedWorkers()
    with workers.pool(of) as pool:
        workers.wait_for(lambda: workers.started == ["w0"])
        workers.say(Ready("w0"))
        workers.wait_for(lambda: len(workers.given) == 2)
        workers.say(Lost("w0", "killed"))
        workers.wait_for(lambda: workers.started == ["w0", "w1"])
        workers.say(Ready("w1"))
        workers.wait_for(lambda: len(workers.given) == 4)
        for _, task in workers.given[2:]:
            workers.done("w1", task)
        assert pool.wait(PATIENCE)
        assert (pool.progress().lost_workers, pool.progress().captured) == (1, 2)
    assert workers.shards_of("w1") == workers.shards_of("w0")
    assert "killed" in workers.warnings[0]
    assert workers.stopped == ["w0", "w1"]


def test_a_silent_worker_is_ended_when_its_lease_runs_out(make_capture: Make) -> None:
    of = make_capture()
    workers = PlayedWorkers()
    with workers.pool(of, lease_seconds=30) as pool:
        workers.wait_for(lambda: workers.started == ["w0"])
        workers.say(Ready("w0"))
        workers.wait_for(lambda: len(workers.given) == 3)
        workers.hang("w0")
        workers.now = 31.0
        workers.wait_for(lambda: workers.started == ["w0", "w1"])
        workers.say(Ready("w1"))
        workers.wait_for(lambda: len(workers.given) == 6)
        assert pool.progress().lost_workers == 1
    assert workers.stopped[0] == "w0"
    assert workers.hung == ["w0"]
    assert "did not answer" in workers.warnings[0]


def test_a_worker_that_hangs_while_it_loads_is_replaced_too(make_capture: Make) -> None:
    workers = PlayedWorkers()
    with workers.pool(make_capture(), lease_seconds=30):
        workers.wait_for(lambda: workers.started == ["w0"])
        workers.wait_for(lambda: workers.rounds >= 2)
        workers.hang("w0")
        workers.now = 100.0
        workers.wait_for(lambda: len(workers.started) == 2)


def test_what_a_stopped_worker_still_says_is_not_heard(make_capture: Make) -> None:
    of = make_capture(num_shards=2)
    workers = PlayedWorkers()
    with workers.pool(of) as pool:
        workers.wait_for(lambda: workers.started == ["w0"])
        workers.say(Ready("w0"))
        workers.wait_for(lambda: len(workers.given) == 2)
        workers.say(Lost("w0", "killed"))
        workers.wait_for(lambda: len(workers.started) == 2)
        workers.done("w0", workers.given[0][1])
        workers.say(Ready("w1"))
        workers.wait_for(lambda: len(workers.given) == 4)
        assert pool.progress().captured == 0


def test_workers_that_die_again_and_again_end_the_capture(make_capture: Make) -> None:
    workers = PlayedWorkers()
    with workers.pool(make_capture()) as pool:
        for place in range(MAX_LOSSES_IN_A_ROW):
            workers.wait_for(lambda count=place + 1: len(workers.started) == count)
            workers.say(Lost(f"w{place}", "out of memory"))
        with pytest.raises(CaptureFailedError, match=r"lost without capturing a shard; the last one: out of memory"):
            pool.wait(PATIENCE)


def test_a_teacher_that_cannot_be_loaded_ends_the_capture_at_once(make_capture: Make) -> None:
    workers = PlayedWorkers()
    with workers.pool(make_capture()) as pool:
        workers.wait_for(lambda: workers.started == ["w0"])
        workers.say(Failed("w0", None, "OSError: no such file"))
        with pytest.raises(CaptureFailedError, match="could not be loaded by its workers: OSError: no such file"):
            pool.wait(PATIENCE)
    assert workers.started == ["w0"]


def test_a_disk_without_room_ends_the_capture_at_once_with_its_cause(make_capture: Make) -> None:
    workers = PlayedWorkers()
    full = OutOfSpaceError("cannot create /store/shards/a.arrow: the disk or quota is full")
    with workers.pool(make_capture()) as pool:
        workers.wait_for(lambda: workers.started == ["w0"])
        workers.say(Ready("w0"))
        workers.wait_for(lambda: len(workers.given) == 3)
        workers.say(Failed("w0", workers.given[0][1], f"OutOfSpaceError: {full}", full))
        with pytest.raises(OutOfSpaceError, match=r"cannot create /store/shards/a\.arrow"):
            pool.wait(PATIENCE)
        with pytest.raises(OutOfSpaceError):
            pool.check_complete()
    assert len(workers.given) == 3
    assert workers.stopped == ["w0"]


def test_what_goes_wrong_after_all_was_captured_ends_nothing(make_capture: Make) -> None:
    of = make_capture()
    with pool_of_threads(of) as pool:
        assert pool.wait(PATIENCE)
    failed = threading.Event()
    callbacks = PoolCallbacks(on_failed=lambda error: failed.set())
    with TeacherPool(
        of.tasks,
        ListedOnce(of.store),  # type: ignore[arg-type]
        no_workers,
        guard_seconds=0.01,
        callbacks=callbacks,
    ) as pool:
        assert failed.wait(PATIENCE)
        with pytest.raises(StorageError):
            pool.check()
        pool.check_complete()


class ListedOnce:
    """A store that can be listed no second time."""

    def __init__(self, store: TeacherStore) -> None:
        self._listings = iter([store.identities()])

    def identities(self) -> set[str]:
        for identities in self._listings:
            return identities
        raise StorageError("cannot list the store")


def test_no_more_workers_start_than_there_are_shards_left(make_capture: Make) -> None:
    workers = PlayedWorkers()
    with workers.pool(make_capture(num_shards=2), max_workers=5):
        workers.wait_for(lambda: len(workers.started) == 2)
        workers.say(Ready("w0"), Ready("w1"))
        rounds = workers.rounds
        workers.wait_for(lambda: workers.rounds >= rounds + 3)
        assert len(workers.started) == 2


def test_a_worker_holds_only_so_many_shards_that_others_have_some_too(make_capture: Make) -> None:
    workers = PlayedWorkers()
    with workers.pool(make_capture(num_shards=9, shard_size=1), max_workers=2):
        workers.wait_for(lambda: len(workers.started) == 2)
        workers.say(Ready("w0"))
        workers.wait_for(lambda: len(workers.given) == TASKS_IN_HAND)
        workers.say(Ready("w1"))
        workers.wait_for(lambda: len(workers.given) == 2 * TASKS_IN_HAND)
        assert len(workers.shards_of("w0")) == len(workers.shards_of("w1")) == TASKS_IN_HAND


def test_the_last_shards_are_shared_out_equally(make_capture: Make) -> None:
    workers = PlayedWorkers()
    with workers.pool(make_capture(num_shards=4, shard_size=1), max_workers=2):
        workers.wait_for(lambda: len(workers.started) == 2 and workers.rounds >= 2)
        workers.say(Ready("w0"))
        workers.wait_for(lambda: len(workers.given) == 2)
        workers.say(Ready("w1"))
        workers.wait_for(lambda: len(workers.given) == 4)
        assert len(workers.shards_of("w0")) == len(workers.shards_of("w1")) == 2


def test_the_teacher_stays_within_the_lookahead_of_the_student(make_capture: Make) -> None:
    of = make_capture(num_shards=6, shard_size=1)
    workers = PlayedWorkers()
    with workers.pool(of, lookahead=2) as pool:
        workers.wait_for(lambda: workers.started == ["w0"])
        workers.say(Ready("w0"))
        workers.wait_for(lambda: len(workers.given) == 2)
        for _, task in list(workers.given):
            workers.done("w0", task)
        assert not pool.wait(0.1)
        assert len(workers.given) == 2
        pool.consumed(1)
        workers.wait_for(lambda: len(workers.given) == 3)
    assert [task.shard for _, task in workers.given] == [task.shard for task in of.tasks[:3]]


def test_what_the_store_has_already_does_not_count_as_captured_ahead(make_capture: Make) -> None:
    of = make_capture(num_shards=6, shard_size=1)
    with pool_of_threads(of.with_(index=of.index)) as pool:
        assert pool.wait(PATIENCE)
    for place in (0, 3, 4, 5):
        of.store.storage.delete(shard_path(of.tasks[place].identity))
    workers = PlayedWorkers()
    with workers.pool(of, lookahead=2) as pool:
        workers.wait_for(lambda: workers.started == ["w0"])
        workers.say(Ready("w0"))
        workers.wait_for(lambda: len(workers.given) == 2)
        for _, task in list(workers.given):
            workers.done("w0", task)
        assert not pool.wait(0.1)
        pool.consumed(3)
        workers.wait_for(lambda: len(workers.given) == 3)
    assert [task.shard for _, task in workers.given] == [of.tasks[place].shard for place in (0, 3, 4)]


def test_a_cluster_without_room_is_told(make_capture: Make) -> None:
    workers = PlayedWorkers()
    with workers.pool(make_capture(), max_workers=3, min_workers=2):
        workers.wait_for(lambda: len(workers.started) == 3)
        workers.say(Ready("w0"))
        workers.wait_for(lambda: len(workers.given) == 1)
        workers.now = SLOW_START_SECONDS
        workers.wait_for(lambda: bool(workers.warnings))
    assert workers.warnings[0].startswith("1 of at least 2 teacher workers have started")


def test_closing_in_the_middle_ends_the_workers(make_capture: Make) -> None:
    workers = PlayedWorkers()
    with suppress(KeyError), workers.pool(make_capture()):
        workers.wait_for(lambda: workers.started == ["w0"])
        workers.say(Ready("w0"))
        workers.wait_for(lambda: len(workers.given) == 3)
        raise KeyError
    assert workers.stopped == ["w0"]
