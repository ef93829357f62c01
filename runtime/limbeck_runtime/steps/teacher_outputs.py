"""What the teacher said about the training data, as the student reads it: found by shard, view and row.

Picklable: each worker opens the store itself. A shard that turns out to be corrupt is thrown away and waited for: the
teacher pool sees that it is gone and computes it again.
Left out: capturing (teacher/) and the shards' form (store/).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from limbeck_runtime.data.batch import Batch
from limbeck_runtime.storage import NotFoundError
from limbeck_runtime.store import CorruptShardError, ShardReader, TeacherStore, read_batch
from limbeck_runtime.teacher.sign import Sign

# How often a student that is ahead of the teacher looks for the next shard, and for the end of the teacher.
_POLL_SECONDS = 0.02
_LOST_POLL_SECONDS = 1.0


class TeacherLostError(RuntimeError):
    """The teacher pool gave up while the student waited for its outputs."""


@dataclass(frozen=True)
class TaughtBatch(Batch):
    """A batch with the teacher's outputs for its samples, decoded, by the store's names."""

    teacher: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class TeacherOutputs:
    """The outputs that one training run reads: an id for each (shard, view).

    `sign` says whether more outputs may come; without one they are waited for however long it takes.
    """

    store: TeacherStore
    shard_ids: Mapping[tuple[int, int], str]
    signals: tuple[str, ...]
    sign: Sign | None = None
    _seen: set[str] = field(default_factory=set, repr=False, compare=False)

    def wait_for(self, shard: int, view: int) -> None:
        """Return when the outputs of this shard and view are in the store, whole.

        Raises TeacherLostError when they will not come.
        """
        identity = self.shard_ids[shard, view]
        look_for_loss = time.monotonic()
        while identity not in self._seen:
            if self._reader(identity) is not None:
                self._seen.add(identity)
                return
            if time.monotonic() >= look_for_loss:
                if self.sign is not None and not self.sign.is_up():
                    raise TeacherLostError("the teacher pool gave up; its own error says why")
                look_for_loss = time.monotonic() + _LOST_POLL_SECONDS
            time.sleep(_POLL_SECONDS)

    def attach(self, batch: Batch) -> TaughtBatch:
        """`batch` with what the teacher said of its samples."""
        shards = np.unique(batch.shards).tolist()
        readers = {shard: self._opened(shard, batch.view) for shard in shards}
        arrays = read_batch(readers, batch.shards, batch.rows, self.signals)
        teacher = {name: torch.from_numpy(values) for name, values in arrays.items()}
        return TaughtBatch(batch.inputs, batch.keys, batch.shards, batch.rows, batch.view, teacher)

    def _opened(self, shard: int, view: int) -> ShardReader:
        identity = self.shard_ids[shard, view]
        while (reader := self._reader(identity)) is None:
            self._seen.discard(identity)
            self.wait_for(shard, view)
        return reader

    def _reader(self, identity: str) -> ShardReader | None:
        """The shard, its hash checked when it is first opened; None where it is not there, or was corrupt."""
        try:
            return self.store.open(identity)
        except NotFoundError:
            return None
        except CorruptShardError:
            self.store.discard(identity)
            return None
