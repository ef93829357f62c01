"""Trains the tiny run on one, two and three workers that talk over gloo. Not a test: a script.

It imports torch once and forks the workers. Writes FOLDER/WORLD.json: {case: {what: numbers}}.
Run: python forked_workers.py FOLDER
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import sys
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch._dynamo
import torch.distributed as dist
import torch.distributed.fsdp  # this and the compiler are imported on first use, which each worker would pay for
from torch import nn

from limbeck_runtime.storage import Storage
from limbeck_runtime.student.checkpoint import CheckpointPlace
from limbeck_runtime.student.collectives import RowGather
from limbeck_runtime.student.loop import TrainingRun, train
from limbeck_runtime.student.parts import TrainParts, Worker
from limbeck_runtime.student.records import Callbacks, Interrupted, StepRecord
from limbeck_runtime.student.update import Updater

WORLD_SIZES = (1, 2, 3)


class WithUnused(nn.Module):
    """The tiny model with a part that takes no part in the loss."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.pooler = model, nn.Linear(3, 3)

    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        outputs: dict[str, torch.Tensor] = self.model(inputs)
        return outputs


class LossWithWeights(nn.Module):
    """A loss that learns a projection, as feature losses do."""

    def __init__(self) -> None:
        super().__init__()
        self.projection = nn.Linear(4, 2, bias=False)
        nn.init.constant_(self.projection.weight, 0.3)

    def forward(self, outputs: dict[str, torch.Tensor], batch: Any) -> dict[str, torch.Tensor]:
        difference = self.projection(outputs["image_embedding"]) - outputs["text_embedding"][:, :2]
        return {"feature": (difference.square().mean() * outputs["logit_scale"])}


def gradients(parts: TrainParts, settings: Any, worker: Worker) -> list[list[float]]:
    """Terms and gradients of each step of an epoch, at the first weights."""
    found = []
    parts.module.double()  # so that only wrong arithmetic can differ, not its rounding
    batches = (batch.double() for batch in parts.stream(0, 0))
    first = next(batches)
    updater = Updater(parts, settings, worker, first)
    for step in range(parts.plan.steps_per_epoch):
        terms = updater.gradients(first if step == 0 else next(batches), step)
        sums = torch.stack([term.double() for term in terms.values()])
        if worker.world_size > 1:
            dist.all_reduce(sums)
        flat = [
            torch.zeros_like(parameter).flatten() if parameter.grad is None else parameter.grad.flatten()
            for parameter in updater.state.parameters.values()
        ]
        found.append(torch.cat([sums, *flat]).tolist())
        updater.state.optimizer.zero_grad()
    return found


def trace(parts: TrainParts, settings: Any, worker: Worker) -> list[list[float]]:
    """Losses of a whole run, then its weights."""
    records: list[StepRecord] = []
    result = train(parts, settings, worker, callbacks=Callbacks(on_step=records.append))
    weights = torch.cat([tensor.flatten() for _, tensor in sorted(result.weights.items())])
    return [[record.loss for record in records], weights.tolist()]


def stopped_and_resumed(parts: list[TrainParts], settings: Any, worker: Worker, folder: Path) -> list[list[float]]:
    """The same for a run that is stopped on the way; rank 0 alone has checkpoints and is asked to stop."""
    losses: list[float] = []
    for index, these in enumerate(parts):
        place = CheckpointPlace(Storage.open(str(folder)), "f")
        checkpoints = place.open(600, {}) if worker.rank == 0 else None
        callbacks = Callbacks(
            on_step=lambda record: losses.append(record.loss),
            should_stop=lambda index=index: index == 0 and len(losses) >= 2,  # type: ignore[misc]
        )
        try:
            result = train(these, settings, worker, checkpoints=checkpoints, callbacks=callbacks)
        except Interrupted:
            continue
        finally:
            if checkpoints is not None:
                checkpoints.close()
    weights = torch.cat([tensor.flatten() for _, tensor in sorted(result.weights.items())])
    return [losses, weights.tolist()]


class LostPeerError(Exception):
    """What a worker sees when another one dies."""


def from_memory(build: Any, settings: Any, worker: Worker) -> list[list[float]]:
    """The same for a run that fails on all workers; the last rank's memory is where the next gang starts."""
    losses: list[float] = []
    callbacks = Callbacks(on_step=lambda record: losses.append(record.loss))
    batches = iter(range(100))

    def fail(batch: Any) -> None:
        if next(batches) == 3:
            raise LostPeerError

    run = TrainingRun(build(on_batch=fail), settings, worker, callbacks=callbacks)
    with contextlib.suppress(LostPeerError):
        run.run()
    memory, last = run.memory(), worker.world_size - 1
    assert memory is not None
    assert memory.step == 3
    again = TrainingRun(build(), settings, worker, callbacks=callbacks)
    result = again.run(memory if worker.rank == last else None, source_rank=last)
    weights = torch.cat([tensor.flatten() for _, tensor in sorted(result.weights.items())])
    return [losses, weights.tolist()]


def work(tiny: Any, worker: Worker, folder: Path) -> dict[str, list[list[float]]]:
    """All cases on one worker."""
    plan = tiny.tiny_plan(batch_size=7)  # an epoch is 7, 7, 7 and 2 samples: uneven, and fewer than workers
    build = partial(tiny.build_tiny, worker, plan=plan)
    plain = tiny.tiny_settings(plan)
    in_parts = tiny.tiny_settings(plan, gradient_accumulation=3)
    averaged = tiny.tiny_settings(plan, ema_decay_percent=90)
    sharded = tiny.tiny_settings(plan, ema_decay_percent=90, parallelism="FullySharded")
    unused = build()
    learned = build()
    cases = {
        "separate": lambda: gradients(build(), plain, worker),
        "separate in parts": lambda: gradients(build(), in_parts, worker),
        "coupled": lambda: gradients(build(coupled=True), plain, worker),
        "coupled in parts": lambda: gradients(build(coupled=True), in_parts, worker),
        "unused parameters": lambda: gradients(tiny.replace(unused, module=WithUnused(unused.module)), plain, worker),
        "loss with weights": lambda: gradients(
            tiny.replace(learned, loss=LossWithWeights().double()), in_parts, worker
        ),
        "counted": lambda: gradients(tiny.counted(build()), in_parts, worker),
        "trace": lambda: trace(build(), averaged, worker),
        "stopped": lambda: stopped_and_resumed([build(), build()], averaged, worker, folder / "stopped"),
    }
    cases["from memory"] = lambda: from_memory(build, averaged, worker)
    if worker.world_size > 1:
        cases["sharded"] = lambda: trace(build(), sharded, worker)
        cases["sharded, stopped"] = lambda: stopped_and_resumed([build(), build()], sharded, worker, folder / "sharded")
    return {name: case() for name, case in cases.items()}


def worker_process(tiny: Any, rank: int, world_size: int, folder: Path) -> None:
    if world_size > 1:
        store = dist.FileStore(str(folder / f"store-{world_size}"), world_size)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=timedelta(seconds=120))
    worker = Worker(rank, world_size, gather=RowGather(rank, world_size))
    found = work(tiny, worker, folder / str(world_size))
    if rank == 0:
        (folder / f"{world_size}.json").write_text(json.dumps(found))
    if world_size > 1:
        dist.destroy_process_group()


def main(folder: Path) -> None:
    specification = importlib.util.spec_from_file_location("tiny", Path(__file__).with_name("conftest.py"))
    assert specification is not None
    assert specification.loader is not None
    tiny = importlib.util.module_from_spec(specification)
    sys.modules["tiny"] = tiny
    specification.loader.exec_module(tiny)
    torch.set_num_threads(1)
    children = []
    for world_size in WORLD_SIZES:
        for rank in range(world_size):
            child = os.fork()
            if not child:
                worker_process(tiny, rank, world_size, folder)
                os._exit(0)
            children.append(child)
    statuses = [os.waitpid(child, 0)[1] for child in children]
    sys.exit(any(statuses))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
