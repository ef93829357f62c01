"""One worker's part of the capture: a shard of data through the teacher into the store.

Several shards are under way at a time, each in a thread of its caller: one is decoded and made into batches while
another is in the model and a third is encoded and written. The model takes them one after the other, in the order in
which they came, so that the shard that the student wants first is ready first.
Left out: which shard is whose turn (queue.py) and where workers run (workers.py).
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from limbeck.api.v1alpha1.data import Augmentation
from limbeck_runtime.data.batch import Batch, Labels
from limbeck_runtime.data.index import DataIndex
from limbeck_runtime.data.loader import BatchLoader
from limbeck_runtime.models.bundle import ModelBundle
from limbeck_runtime.models.tap import tap
from limbeck_runtime.store import Codec, TeacherStore
from limbeck_runtime.teacher.outputs import ShardOutputs
from limbeck_runtime.teacher.plan import CaptureTask

FEATURE_PREFIX = "features."
# What the logits of one batch may take: a batch is made smaller where a large vocabulary would take more.
LOGIT_BYTES = 2**30


@dataclass(frozen=True)
class CaptureSettings:
    """All that a worker needs to know; picklable.

    `num_threads` are the threads of a forward pass; None takes as many as the worker has processors.
    """

    teacher: ModelBundle
    index: DataIndex
    augmentation: Augmentation
    seed: int
    codecs: Mapping[str, Codec]
    store: TeacherStore
    batch_size: int = 64
    num_threads: int | None = None


@dataclass(frozen=True)
class CaptureResult:
    """What came of one task."""

    identity: str
    num_samples: int
    num_bytes: int
    already_there: bool
    seconds: float


class Capturer:
    """The teacher in one process, ready to capture; `capture` may be called by several threads."""

    def __init__(self, settings: CaptureSettings) -> None:
        self._settings = settings
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        module = settings.teacher.module.eval().to(self._device)
        self._module = module.to(memory_format=torch.channels_last)
        self._batch_size = _batch_size(settings)
        self._features = [name.removeprefix(FEATURE_PREFIX) for name in settings.codecs if is_feature(name)]
        self._turns = Turns()
        self._loader = BatchLoader(
            settings.index,
            settings.teacher.preprocessing,
            augmentation=settings.augmentation,
            seed=settings.seed,
            labels=Labels.NONE,
        )

    def capture(self, task: CaptureTask) -> CaptureResult:
        """Compute and store the outputs of one task, unless the store has them.

        Raises what the data, the teacher or the store raise.
        """
        started = time.monotonic()
        with self._turns.taken() as turn:
            if self._settings.store.has(task.identity):
                return CaptureResult(task.identity, task.num_samples, 0, True, time.monotonic() - started)
            with closing(self._loader.stream(self._batches(task))) as batches:
                turn.wait()
                outputs = self._forward(task, batches)
        shard = self._settings.index.shards[task.shard]
        provenance = {"shard": shard.ref.uri, "view": task.view}
        written = self._settings.store.write(task.identity, shard.keys, outputs.joined(), provenance)
        return CaptureResult(
            task.identity, task.num_samples, written.bytes, written.already_there, time.monotonic() - started
        )

    def close(self) -> None:
        """End the decoding threads."""
        self._loader.close()

    def _batches(self, task: CaptureTask) -> Iterator[tuple[np.ndarray, int]]:
        """Positions and view of each batch of the shard."""
        for start in range(0, task.num_samples, self._batch_size):
            rows = np.arange(start, min(start + self._batch_size, task.num_samples), dtype=np.int64)
            yield np.stack([np.full_like(rows, task.shard), rows], axis=1), task.view

    def _forward(self, task: CaptureTask, batches: Iterator[Batch]) -> ShardOutputs:
        collected = ShardOutputs(task.identity, self._settings.codecs)
        with (
            torch.inference_mode(),
            torch.autocast("cuda", torch.bfloat16, enabled=self._device.type == "cuda"),
            tap(self._module, self._features) as features,
        ):
            for batch in batches:
                inputs = {name: tensor.to(self._device, non_blocking=True) for name, tensor in batch.inputs.items()}
                outputs = dict(self._module(inputs))
                outputs |= {FEATURE_PREFIX + name: value for name, value in features.items()}
                collected.add(outputs, inputs.get("attention_mask"))
        return collected


class Turns:
    """Hands out turns in the order in which they were taken: who waits goes on when all before it are over."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._line: deque[Turn] = deque()

    @contextmanager
    def taken(self) -> Iterator[Turn]:
        """Stand in line at once; the place is given up at the end of the block, whether it was waited for or not."""
        turn = Turn(self)
        with self._changed:
            self._line.append(turn)
        try:
            yield turn
        finally:
            with self._changed:
                self._line.remove(turn)
                self._changed.notify_all()

    def wait_for(self, turn: Turn) -> None:
        """Return when nobody stands before `turn`."""
        with self._changed:
            self._changed.wait_for(lambda: self._line[0] is turn)


class Turn:
    """A place in line."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns

    def wait(self) -> None:
        """Return when it is this one's turn."""
        self._turns.wait_for(self)


def is_feature(name: str) -> bool:
    """Whether a signal is the output of an inner layer."""
    return name.startswith(FEATURE_PREFIX)


def _batch_size(settings: CaptureSettings) -> int:
    """Samples of one forward pass: as asked, or fewer where logits by token would take too much memory."""
    text = settings.teacher.preprocessing.text
    vocabularies = [getattr(codec, "vocabulary", 0) for codec in settings.codecs.values()]
    sample_bytes = 4 * max(vocabularies, default=0) * (1 if text is None else text.max_length)
    if sample_bytes == 0:
        return settings.batch_size
    return max(1, min(settings.batch_size, LOGIT_BYTES // sample_bytes))
