"""Capture by Ray actors: one killed, one stopped, in the middle of a shard; warm ones; what they ask of the cluster."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck_runtime.teacher.pool import TeacherPool
from limbeck_runtime.teacher.queue import CaptureFailedError
from limbeck_runtime.teacher.ray_workers import TEACHER_RESOURCE, RayWorkers, Share, WarmActors, share_of

Make = Callable[..., Any]
PATIENCE = 60.0  # seconds; only reached where a test fails


def node(alive: bool = True, **resources: float) -> dict[str, Any]:
    return {"Alive": alive, "Resources": resources}


@pytest.mark.parametrize(
    ("nodes", "num_started", "share"),
    [
        ([node(CPU=2)], 0, Share(0, 0, {})),
        ([node(CPU=2)], 1, Share(1, 0, {})),
        ([node(CPU=8, GPU=1)], 0, Share(0, 1, {})),
        ([node(CPU=4), node(CPU=16, limbeck_teacher=2)], 0, Share(8, 0, {TEACHER_RESOURCE: 1})),
        ([node(CPU=9, GPU=4, limbeck_teacher=4), node(CPU=4)], 3, Share(2, 1, {TEACHER_RESOURCE: 1})),
        ([node(alive=False, CPU=4, GPU=8, limbeck_teacher=1), node(CPU=4)], 0, Share(0, 0, {})),
    ],
)
def test_an_actor_asks_for_its_share_of_a_teacher_s_node(
    nodes: list[dict[str, Any]], num_started: int, share: Share
) -> None:
    assert share_of(nodes, num_started) == share


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """One local Ray for this file, or the one that is there already."""
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    started = not ray.is_initialized()
    if started:
        ray.init(num_cpus=2, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    yield ray
    if started:
        ray.shutdown()


@dataclass
class Gate:
    """Stops the first forward pass of all processes until the test lets it go on; two named pipes, no polling."""

    folder: Path

    def __post_init__(self) -> None:
        for name in ("here", "go"):
            if not (self.folder / name).exists():
                os.mkfifo(self.folder / name)

    def pass_through(self) -> None:
        """In the teacher: the first one to come waits."""
        try:
            os.close(os.open(self.folder / "taken", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
        (self.folder / "here").write_text(str(os.getpid()))
        (self.folder / "go").read_text()

    def wait_for_process(self) -> int:
        """In the test: the process that waits at the gate."""
        return int((self.folder / "here").read_text())


class GatedTeacher(torch.nn.Module):
    """Notes every forward pass in a file, and stops at the gate."""

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self.gate = gate

    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        self.gate.pass_through()
        with (self.gate.folder / "passes").open("a") as passes:
            passes.write(f"{os.getpid()} {len(inputs['pixel_values'])}\n")
        return {"image_embedding": inputs["pixel_values"].flatten(1)[:, :4]}

    def num_samples(self) -> int:
        return sum(int(line.split()[1]) for line in (self.gate.folder / "passes").read_text().splitlines())


@pytest.fixture
def gated(make_capture: Make, tmp_path: Path) -> Any:
    """A capture of six shards whose first batch stops at the gate."""
    folder = tmp_path / "gate"
    folder.mkdir()
    return make_capture(num_shards=6, module=GatedTeacher(Gate(folder)))


def pool_of_actors(of: Any, *, warm: WarmActors | None = None, **arguments: Any) -> TeacherPool:
    import ray

    # Actors cannot import test files: the teacher's class travels by value.
    ray.cloudpickle.register_pickle_by_value(sys.modules[type(of.module).__module__])
    settings = of.settings
    return TeacherPool(of.tasks, settings.store, lambda: RayWorkers(settings, warm=warm), **arguments)


def assert_whole(of: Any) -> None:
    """Every shard is in the store and says what the teacher says."""
    for task in of.tasks:
        reader = of.store.open(task.identity)
        assert reader.keys == of.index.shards[task.shard].keys


@pytest.mark.ray
def test_an_actor_killed_in_the_middle_of_a_shard_loses_its_shards_to_another(ray: Any, gated: Any) -> None:
    with pool_of_actors(gated, max_workers=1) as pool:
        os.kill(gated.module.gate.wait_for_process(), signal.SIGKILL)
        assert pool.wait(PATIENCE)
        progress = pool.progress()
    assert (progress.captured, progress.lost_workers) == (6, 1)
    assert_whole(gated)
    # What the killed actor had in the model was not committed; nothing else was computed twice.
    assert gated.module.num_samples() == gated.index.num_samples


@pytest.mark.ray
def test_an_actor_that_is_stopped_loses_its_shards_when_its_lease_runs_out(ray: Any, gated: Any) -> None:
    with pool_of_actors(gated, max_workers=1, lease_seconds=3) as pool:
        stopped = gated.module.gate.wait_for_process()
        os.kill(stopped, signal.SIGSTOP)
        assert pool.wait(PATIENCE)
        progress = pool.progress()
    assert (progress.captured, progress.lost_workers) == (6, 1)
    assert_whole(gated)
    assert gated.module.num_samples() == gated.index.num_samples
    assert_gone(stopped)


def assert_gone(pid: int) -> None:
    """The process ends, or is over already (a zombie is)."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    import select

    assert select.select([descriptor], [], [], PATIENCE)[0], f"process {pid} still lives"
    os.close(descriptor)


@pytest.mark.ray
def test_several_actors_capture_every_shard_once_and_a_second_run_none(ray: Any, make_capture: Make) -> None:
    of = make_capture(num_shards=8)
    for captured, reused in ((8, 0), (0, 8)):
        with pool_of_actors(of, max_workers=2) as pool:
            assert pool.wait(PATIENCE)
            progress = pool.progress()
        assert (progress.captured, progress.reused, progress.lost_workers) == (captured, reused, 0)
    assert_whole(of)


@pytest.mark.ray
def test_warm_actors_are_taken_first_and_those_left_over_end(ray: Any, make_capture: Make) -> None:
    of = make_capture(num_shards=2)
    warm = WarmActors()
    warm.start(2)
    warm.wait()
    places = ray.get([actor.where.remote() for actor in warm.actors])
    with pool_of_actors(of, warm=warm) as pool:
        assert pool.wait(PATIENCE)
    assert len(warm.actors) == 1
    warm.close()
    for place in places:
        assert_gone(place.pid)


def test_without_a_start_there_are_no_warm_actors_and_nothing_to_end() -> None:
    warm = WarmActors()
    assert warm.take() is None
    warm.close()


class UnloadableTeacher(torch.nn.Module):
    """Cannot be made ready."""

    def eval(self) -> UnloadableTeacher:
        raise OSError("the weights are cut short")


@pytest.mark.ray
def test_a_teacher_that_no_actor_can_load_ends_the_capture(ray: Any, make_capture: Make) -> None:
    of = make_capture(module=UnloadableTeacher())
    with (
        pool_of_actors(of) as pool,
        pytest.raises(CaptureFailedError, match="could not be loaded by its workers: OSError: the weights are cut"),
    ):
        pool.wait(PATIENCE)
