"""What the pipeline gives a worker to train, and the worker itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import nn

from limbeck_runtime.student.collectives import RowGather
from limbeck_runtime.student.sampler import SamplePlan


class TrainBatch(Protocol):
    """A frozen dataclass; every tensor, array or tuple in it that has one entry for each sample can be cut."""

    @property
    def inputs(self) -> Mapping[str, torch.Tensor]:
        """What the module's forward takes."""
        ...

    @property
    def keys(self) -> tuple[str, ...]:
        """The samples' keys: as many as the batch has samples."""
        ...


BatchT = TypeVar("BatchT", bound=TrainBatch)

# (outputs of the module, batch) -> terms, each a weighted mean over the batch; the loss is their sum.
Loss = Callable[[dict[str, torch.Tensor], Any], dict[str, torch.Tensor]]
# (epoch, step in the epoch) -> this worker's batches from there to the end of the run.
Stream = Callable[[int, int], Iterator[Any]]


@dataclass(frozen=True)
class Worker:
    """One of the workers that train together; `gather` gives a loss the rows of all of them."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    gather: RowGather = field(default_factory=RowGather)


@dataclass(frozen=True)
class TrainParts:
    """Everything that decides what is trained; how is in the API's `Training`.

    `plan` says which samples each step takes, and `stream` must follow it (`SamplePlan.rank_batches`).
    `couples_samples`: the loss compares samples with each other, so it must see the whole batch even where the
    forward pass is cut in parts. Whatever such a loss needs of the model must be in the module's outputs.
    `learning_rates`: (pattern of parameter names, rate) for parts of the model that do not take the run's rate.
    `count`: of what the loss is a mean, where it is not the samples (tokens, say): how many a batch holds.
    `held_zeros`: names of parameters whose zeros stay zeros (pruning/holding.py).
    """

    module: nn.Module
    loss: Loss
    stream: Stream
    plan: SamplePlan
    couples_samples: bool = False
    learning_rates: tuple[tuple[str, float], ...] = ()
    count: Callable[[Any], int] | None = None
    held_zeros: tuple[str, ...] = ()


# Runs on each worker, so it must be picklable (a function of a module, or a partial of one).
Build = Callable[[Worker], TrainParts]


def part_of(batch: BatchT, start: int, stop: int) -> BatchT:
    """The samples from `start` to `stop` of a batch."""
    num_samples = len(batch.keys)
    changes = {
        item.name: _cut(getattr(batch, item.name), num_samples, start, stop)
        for item in fields(batch)  # type: ignore[arg-type]  # a Protocol cannot ask for a dataclass
    }
    return replace(batch, **changes)  # type: ignore[type-var]


def to_device(batch: BatchT, device: torch.device) -> BatchT:
    """The batch with its tensors on the device."""
    changes = {
        item.name: _moved(getattr(batch, item.name), device)
        for item in fields(batch)  # type: ignore[arg-type]
    }
    return replace(batch, **changes)  # type: ignore[type-var]


def _cut(value: Any, num_samples: int, start: int, stop: int) -> Any:
    if isinstance(value, Mapping):
        return {key: _cut(entry, num_samples, start, stop) for key, entry in value.items()}
    if isinstance(value, torch.Tensor | np.ndarray):
        return value[start:stop] if value.ndim and len(value) == num_samples else value
    if isinstance(value, tuple) and len(value) == num_samples:
        return value[start:stop]
    return value


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Mapping):
        return {key: _moved(entry, device) for key, entry in value.items()}
    return value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
