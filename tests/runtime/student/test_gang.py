"""Gangs: one worker here, several as Ray actors, and what happens when some of them are lost."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck_runtime.commitlog import Fence, FencedError
from limbeck_runtime.storage import Storage
from limbeck_runtime.student.checkpoint import STATE_FILE, CheckpointPlace
from limbeck_runtime.student.gang import restart_after, train_gang
from limbeck_runtime.student.gang_actors import GangActors, GangLostError, GangSettings, Lost
from limbeck_runtime.student.gang_worker import Ending
from limbeck_runtime.student.parts import TrainParts, Worker
from limbeck_runtime.student.records import Callbacks, Interrupted, Restart, StepRecord, TrainResult


class Watch:
    """Keeps what a gang tells."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.records: list[StepRecord] = []
        self.resumed: list[int] = []
        self.restarts: list[Restart] = []
        self.saved: list[int] = []
        self.skipped: list[int] = []
        self.callbacks = Callbacks(
            on_resume=self.resumed.append,
            on_step=self.records.append,
            on_checkpoint=lambda saved: self.saved.append(saved.step),
            should_stop=lambda: stop_after is not None and len(self.records) >= stop_after,
            on_skipped=lambda skipped: self.skipped.append(skipped.sequence),
            on_restart=self.restarts.append,
        )

    @property
    def steps(self) -> list[int]:
        return [record.step for record in self.records]


def place_in(folder: Path, fingerprint: str = "f") -> CheckpointPlace:
    return CheckpointPlace(Storage.open(str(folder)), fingerprint)


@pytest.mark.parametrize(
    ("endings", "restart", "memory_rank"),
    [
        (
            {
                0: Ending("lost touch", memory_step=7, detail="x"),
                1: Lost("died"),
                2: Ending("lost touch", memory_step=8),
            },
            Restart("worker 1 died", 8),
            2,
        ),
        ({0: Lost("died"), 1: Lost("was stuck")}, Restart("worker 0 died; worker 1 was stuck", None), None),
        (
            {0: Ending("lost touch", detail="reset"), 1: Ending("lost touch", memory_step=0, detail="gone")},
            Restart("workers lost touch with each other: reset", 0),
            1,
        ),
    ],
)
def test_a_gang_goes_on_from_the_newest_memory_that_is_left(
    endings: dict[int, Ending | Lost], restart: Restart, memory_rank: int | None
) -> None:
    assert restart_after(endings) == (restart, memory_rank)


def test_one_worker_trains_in_this_process_without_ray(tiny: Any, tmp_path: Path) -> None:
    ray_was_there = "ray" in sys.modules
    plan, watch = tiny.plan(), Watch()
    pids = set()
    build = partial(tiny.build, plan=plan, on_batch=lambda batch: pids.add(os.getpid()))
    result = train_gang(build, tiny.settings(plan), checkpoints=place_in(tmp_path), callbacks=watch.callbacks)
    assert result.steps == plan.total_steps
    assert watch.steps == watch.saved == list(range(1, 9))
    assert pids == {os.getpid()}
    assert ray_was_there or "ray" not in sys.modules


def test_one_worker_tells_of_damaged_checkpoints_and_goes_on(tiny: Any, tmp_path: Path) -> None:
    plan = tiny.plan()
    build = partial(tiny.build, plan=plan)
    whole = train_gang(build, tiny.settings(plan), checkpoints=place_in(tmp_path))
    newest = max((tmp_path / "data").glob(f"*{STATE_FILE}"), key=lambda file: file.stat().st_mtime_ns)
    newest.write_bytes(newest.read_bytes()[:-1])
    watch = Watch()
    again = train_gang(build, tiny.settings(plan), checkpoints=place_in(tmp_path), callbacks=watch.callbacks)
    assert len(watch.skipped) == 1
    assert watch.resumed == [7]
    assert watch.steps == [8]
    assert all(torch.equal(again.weights[name], whole.weights[name]) for name in whole.weights)


def test_a_run_is_resumed_from_each_kind_of_storage(tiny: Any, open_storage: Callable[[], Storage]) -> None:
    plan = tiny.plan()
    build, settings = partial(tiny.build, plan=plan, dropout=0.3), tiny.settings(plan)
    whole = train_gang(build, settings)
    first, second = Watch(stop_after=3), Watch()
    place = CheckpointPlace(open_storage(), "f")
    with pytest.raises(Interrupted):
        train_gang(build, settings, checkpoints=place, callbacks=first.callbacks)
    place = CheckpointPlace(open_storage(), "f")
    resumed = train_gang(build, settings, checkpoints=place, callbacks=second.callbacks)
    assert second.steps == list(range(first.steps[-1] + 1, 9))
    assert all(torch.equal(resumed.weights[name], whole.weights[name]) for name in whole.weights)


def test_a_driver_that_was_fenced_out_trains_nothing(tiny: Any, tmp_path: Path) -> None:
    storage = Storage.open(str(tmp_path))
    old = Fence.claim(storage, {"attempt": 1})
    Fence.claim(storage, {"attempt": 2})
    place = CheckpointPlace(storage.child("checkpoints"), "f", job_fence=old)
    plan = tiny.plan()
    with pytest.raises(FencedError):
        train_gang(partial(tiny.build, plan=plan), tiny.settings(plan), checkpoints=place)


def build_with_new_weights(worker: Worker, *, tiny: Any, plan: Any) -> TrainParts:
    parts: TrainParts = tiny.build(worker, plan=plan)
    torch.nn.init.normal_(parts.module.image[0].weight)
    return parts


def test_random_weights_of_a_build_come_out_the_same_each_time(tiny: Any) -> None:
    plan = tiny.plan()
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        results.append(train_gang(partial(build_with_new_weights, tiny=tiny, plan=plan), tiny.settings(plan)))
    assert all(torch.equal(results[0].weights[name], results[1].weights[name]) for name in results[0].weights)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    started = not ray.is_initialized()
    if started:
        ray.init(num_cpus=4, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    yield ray
    if started:
        ray.shutdown()


@pytest.fixture(scope="module")
def sendable(cluster: Any, tiny: Any) -> Iterator[Any]:
    """The tiny run, whose modules actors cannot import: they are sent whole."""
    modules = [sys.modules[tiny.build.__module__], sys.modules[__name__]]
    for module in modules:
        cluster.cloudpickle.register_pickle_by_value(module)
    yield tiny
    for module in modules:
        cluster.cloudpickle.unregister_pickle_by_value(module)


def build_hurt(
    worker: Worker,
    *,
    tiny: Any,
    plan: Any,
    victim: int,
    signal_number: int,
    before_batch: int,
    marks: str,
    times: int = 1,
) -> TrainParts:
    """The victim gets a signal before one of its batches, so many times."""
    left = before_batch

    def on_batch(batch: Any) -> None:
        nonlocal left
        left -= 1
        for index in range(times if worker.rank == victim and left < 0 else 0):
            mark = Path(marks, str(index))
            if not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal_number)

    parts: TrainParts = tiny.build(worker, plan=plan, dropout=0.3, on_batch=on_batch)
    return parts


def hurt_run(
    tiny: Any, folder: Path, *, settings: GangSettings | None = None, **hurt: Any
) -> tuple[TrainResult, Watch]:
    plan = tiny.plan()
    (folder / "marks").mkdir()
    build = partial(build_hurt, tiny=tiny, plan=plan, marks=str(folder / "marks"), **hurt)
    watch = Watch()
    result = train_gang(
        build,
        tiny.settings(plan, checkpoint_interval_seconds=600),
        num_workers=2,
        checkpoints=place_in(folder / "checkpoints"),
        callbacks=watch.callbacks,
        gang=settings,
    )
    return result, watch


@pytest.fixture(scope="module")
def undisturbed(sendable: Any) -> Any:
    """Weights of the run that nothing disturbed."""
    plan = sendable.plan()
    build = partial(sendable.build, plan=plan, dropout=0.3)
    return train_gang(build, sendable.settings(plan), num_workers=2).weights


@pytest.mark.ray
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_worker_costs_no_step_and_no_bit(
    sendable: Any, undisturbed: dict[str, torch.Tensor], tmp_path: Path, victim: int
) -> None:
    result, watch = hurt_run(sendable, tmp_path, victim=victim, signal_number=signal.SIGKILL, before_batch=3)
    assert [restart.memory_step for restart in watch.restarts] == [3]
    assert f"worker {victim} died" in watch.restarts[0].reason
    assert watch.resumed == [3], "from memory: the interval lets no checkpoint be written before the end"
    assert watch.saved == [8]
    assert all(torch.equal(result.weights[name], undisturbed[name]) for name in undisturbed)


@pytest.mark.ray
@pytest.mark.slow
def test_a_hung_worker_is_killed_and_costs_no_step(
    sendable: Any, undisturbed: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    settings = GangSettings(heartbeat_timeout_seconds=5)
    result, watch = hurt_run(
        sendable, tmp_path, settings=settings, victim=1, signal_number=signal.SIGSTOP, before_batch=2
    )
    assert "worker 1 did not answer for 5 s" in watch.restarts[0].reason
    assert all(torch.equal(result.weights[name], undisturbed[name]) for name in undisturbed)


@pytest.mark.ray
@pytest.mark.slow
def test_a_worker_that_dies_each_time_ends_the_run(sendable: Any, tmp_path: Path) -> None:
    settings = GangSettings(max_vain_restarts=1)
    with pytest.raises(GangLostError, match=r"lost 2 times in a row at step 0 \(worker 1 died"):
        hurt_run(sendable, tmp_path, settings=settings, victim=1, signal_number=signal.SIGKILL, before_batch=0, times=2)


@pytest.mark.ray
def test_a_driver_that_was_fenced_out_and_has_lost_a_worker_waits_for_no_other(
    cluster: Any, sendable: Any, tmp_path: Path
) -> None:
    """Its pods are gone for good: here, the places of its workers."""
    from ray import PlacementGroupID
    from ray.util.placement_group import PlacementGroup

    storage = Storage.open(str(tmp_path / "out"))
    place = CheckpointPlace(storage.child("checkpoints"), "f", Fence.claim(storage, {"attempt": 1}))

    def take_over(restart: Restart) -> None:
        Fence.claim(storage, {"attempt": 2})
        for identity, group in cluster.util.placement_group_table().items():
            if group["state"] == "CREATED":
                cluster.util.remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(identity)))

    plan = sendable.plan()
    hurt = {"victim": 1, "signal_number": signal.SIGKILL, "before_batch": 2, "marks": str(tmp_path)}
    with pytest.raises(FencedError, match=r"epoch 1 of .* is over"):
        train_gang(
            partial(build_hurt, tiny=sendable, plan=plan, **hurt),
            sendable.settings(plan),
            num_workers=2,
            checkpoints=place,
            callbacks=Callbacks(on_restart=take_over),
            gang=GangSettings(placement_timeout_seconds=60, join_attempts=1),
        )


def build_failing(worker: Worker, *, tiny: Any, plan: Any) -> TrainParts:
    def on_batch(batch: Any) -> None:
        if worker.rank == 1:
            raise LookupError("the user's own mistake")

    parts: TrainParts = tiny.build(worker, plan=plan, on_batch=on_batch)
    return parts


@pytest.mark.ray
def test_an_error_of_the_training_is_raised_as_it_is(sendable: Any) -> None:
    plan = sendable.plan()
    with pytest.raises(LookupError, match="the user's own mistake"):
        train_gang(partial(build_failing, tiny=sendable, plan=plan), sendable.settings(plan), num_workers=2)


@pytest.mark.ray
def test_a_gang_stops_when_asked_and_goes_on_later(sendable: Any, tmp_path: Path) -> None:
    plan = sendable.plan(epochs=200)
    build, settings = partial(sendable.build, plan=plan, dropout=0.3), sendable.settings(plan)
    first, second = Watch(stop_after=3), Watch(stop_after=3)
    with pytest.raises(Interrupted) as interrupted:
        train_gang(build, settings, num_workers=2, checkpoints=place_in(tmp_path), callbacks=first.callbacks)
    at = interrupted.value.step
    assert 3 <= at < plan.total_steps
    with pytest.raises(Interrupted):
        train_gang(build, settings, num_workers=2, checkpoints=place_in(tmp_path), callbacks=second.callbacks)
    assert second.resumed == [at]
    assert second.steps[0] == at + 1


@pytest.mark.ray
@pytest.mark.slow
def test_fifty_process_groups_in_a_row_come_up(sendable: Any) -> None:
    plan = sendable.plan(epochs=1)
    actors = GangActors(2, GangSettings(join_attempts=1))
    try:
        for _ in range(50):
            assert actors.join() == set()
            endings = actors.train(partial(sendable.build, plan=plan), sendable.settings(plan), None, None, Callbacks())
            assert [ending.kind for ending in endings.values() if isinstance(ending, Ending)] == ["finished"] * 2
    finally:
        actors.close()


@pytest.mark.ray
def test_a_gang_without_room_says_so_at_once_on_one_machine(sendable: Any) -> None:
    plan = sendable.plan()
    settings = GangSettings(cpus_per_worker=1000)
    with pytest.raises(TimeoutError, match=r"2 student workers with \{'CPU': 1000\} each had no room within 0 s"):
        train_gang(partial(sendable.build, plan=plan), sendable.settings(plan), num_workers=2, gang=settings)
