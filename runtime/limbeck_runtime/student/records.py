"""What a training run tells while it runs, and how it ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from limbeck_runtime.commitlog import SkippedCommit
from limbeck_runtime.student.checkpoint import SavedCheckpoint


class Interrupted(Exception):  # noqa: N818  # not an error: it was asked for
    """The run was asked to stop: its state is in a checkpoint, and the same call again goes on from there."""

    def __init__(self, step: int) -> None:
        super().__init__(f"training was interrupted after step {step}; run it again to go on from there")
        self.step = step

    def __reduce__(self) -> tuple[type[Interrupted], tuple[int]]:
        return Interrupted, (self.step,)


class DivergedError(ValueError):
    """The loss is not a number any more; going on, or again, would not help."""


@dataclass(frozen=True)
class StepRecord:
    """One step over all workers; `step` counts from 1, `epoch` is passes over the data with their fraction.

    `loss`, `terms` and `gradient_norm` wait for the device the first time one of them is read.
    """

    step: int
    total_steps: int
    epoch: float
    num_samples: int
    learning_rate: float
    seconds: float
    data_wait_seconds: float
    names: tuple[str, ...]
    values: torch.Tensor | Sequence[float]  # the terms, then the gradient's norm

    @cached_property
    def _floats(self) -> list[float]:
        return self.values.tolist() if isinstance(self.values, torch.Tensor) else list(self.values)

    @property
    def terms(self) -> Mapping[str, float]:
        """Mean of each term over the batch, weighted as in the loss."""
        return dict(zip(self.names, self._floats, strict=False))

    @property
    def loss(self) -> float:
        """The sum of the terms."""
        return sum(self._floats[: len(self.names)])

    @property
    def gradient_norm(self) -> float:
        """Norm of the gradient before clipping."""
        return self._floats[-1]

    @property
    def samples_per_second(self) -> float:
        """Samples over all workers and the whole step's time, waits included."""
        return self.num_samples / self.seconds if self.seconds > 0 else 0.0

    def resolved(self) -> StepRecord:
        """The same without a tensor, to be sent to another process."""
        return replace(self, values=tuple(self._floats))


@dataclass(frozen=True)
class Restart:
    """Workers were lost: why, and the step from which the gang goes on (None: from the newest checkpoint)."""

    reason: str
    memory_step: int | None


@dataclass(frozen=True)
class Callbacks:
    """Whom a run tells (on rank 0), and whom it asks after each step whether to stop."""

    on_resume: Callable[[int], None] = lambda step: None  # steps that were done before
    on_step: Callable[[StepRecord], None] = lambda record: None
    on_checkpoint: Callable[[SavedCheckpoint], None] = lambda saved: None
    should_stop: Callable[[], bool] = lambda: False
    on_skipped: Callable[[SkippedCommit], None] = lambda skipped: None  # a damaged checkpoint was passed over
    on_restart: Callable[[Restart], None] = lambda restart: None  # workers were lost, and the gang starts again


@dataclass(frozen=True)
class TrainResult:
    """The end of a run. `weights` are the trained parameters (averaged, if asked) and buffers, on the CPU."""

    steps: int
    weights: Mapping[str, torch.Tensor]
