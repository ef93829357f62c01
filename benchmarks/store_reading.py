"""P5: the teacher's outputs as the student reads them, against Ray Data.

Both hold the image and text embeddings of a teacher as float16 and give float32 tensors, batch by batch, shuffled in a
window of the same size: ours from the store's files in the student's own order, Ray Data's
(`local_shuffle_buffer_size`) from its object store, where they are materialised before the clock starts. What it takes
without shuffling, which no student can use, stands in the details. `seek` is one sample anywhere, in a shard that the
process has not opened yet, so that its hash is checked too.

Shapes: N samples of a shard, D width, B batch.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.timing import RUNS, Figure, alternate, repeat
from limbeck_runtime.data.batch import Batch
from limbeck_runtime.steps.teacher_outputs import TeacherOutputs
from limbeck_runtime.storage import Storage
from limbeck_runtime.store import EmbeddingCodec, TeacherStore, shard_id
from limbeck_runtime.student.sampler import SamplePlan

SIGNALS = ("image_embedding", "text_embedding")


@dataclass(frozen=True)
class Workload:
    """What is read."""

    num_shards: int = 32
    samples_per_shard: int = 1000
    width: int = 384
    batch_size: int = 128
    window_shards: int = 8
    num_seeks: int = 200
    runs: int = RUNS

    @property
    def num_batches(self) -> int:
        """Batches of one pass."""
        return -(-self.num_shards * self.samples_per_shard // self.batch_size)

    def embeddings(self, shard: int) -> dict[str, np.ndarray]:
        """What the teacher said of one shard, each float32 (N, D)."""
        random = np.random.default_rng(shard)
        shape = (self.samples_per_shard, self.width)
        return {signal: random.standard_normal(shape, np.float32) for signal in SIGNALS}


def measure(workload: Workload = Workload()) -> dict[str, Any]:
    """Times of both, and what they mean."""
    with tempfile.TemporaryDirectory() as folder:
        ours = _Ours(workload, Path(folder))
        peer = _RayData(workload, Path(folder))
        try:
            per_batch = alternate(peer.read_all_shuffled, ours.read_all, runs=workload.runs)
            in_stored_order = alternate(peer.read_all, ours.read_all, runs=workload.runs)
            first_of_peer = repeat(peer.first_batch, runs=workload.runs, warmups=0)
        finally:
            peer.close()
        of_a_batch = 1e3 / workload.num_batches
        return {
            "per_batch": per_batch.ratio.to_json(),
            "first_batch_ms": repeat(ours.first_batch, runs=workload.runs).scaled(1e3).to_json(),
            "seek_ms": Figure.of(ours.seeks()).scaled(1e3).to_json(),
            "batch_ms": per_batch.second_seconds.scaled(of_a_batch).to_json(),
            "ray_data_batch_ms": per_batch.first_seconds.scaled(of_a_batch).to_json(),
            "ray_data_batch_ms_in_stored_order": in_stored_order.first_seconds.scaled(of_a_batch).to_json(),
            "per_batch_in_stored_order": in_stored_order.ratio.to_json(),
            "ray_data_first_batch_ms": first_of_peer.scaled(1e3).to_json(),
            "workload": f"{workload}",
        }


class _Ours:
    """The store, read as a training run reads it."""

    def __init__(self, workload: Workload, folder: Path) -> None:
        self._workload = workload
        self._folder = folder
        self._ids = {(shard, 0): _identity(shard) for shard in range(workload.num_shards)}
        sizes = (workload.samples_per_shard,) * workload.num_shards
        plan = SamplePlan(0, sizes, workload.window_shards, workload.batch_size, epochs=1)
        self._batches = [_without_inputs(positions) for positions in plan.batches(0)]
        store = self._store()
        for shard in range(workload.num_shards):
            keys = [f"{shard}-{row}" for row in range(workload.samples_per_shard)]
            store.write(self._ids[shard, 0], keys, workload.embeddings(shard), {})
        self._opened = self._outputs()

    def read_all(self) -> None:
        """A pass over all samples, from shards that are open already."""
        for batch in self._batches:
            self._opened.attach(batch)

    def first_batch(self) -> None:
        """The first batch of a student that begins: open the store, map and check the shards that it needs."""
        self._outputs().attach(self._batches[0])

    def seeks(self) -> list[float]:
        """Seconds for one sample anywhere, each in a store that has not seen its shard yet."""
        random = np.random.default_rng(0)
        seconds = []
        for _ in range(self._workload.num_seeks):
            shard = int(random.integers(self._workload.num_shards))
            row = int(random.integers(self._workload.samples_per_shard))
            outputs, batch = self._outputs(), _without_inputs(np.array([[shard, row]]))
            started = time.perf_counter()
            outputs.attach(batch)
            seconds.append(time.perf_counter() - started)
        return seconds

    def _outputs(self) -> TeacherOutputs:
        return TeacherOutputs(self._store(), self._ids, SIGNALS)

    def _store(self) -> TeacherStore:
        storage = Storage.open(str(self._folder / "store"))
        return TeacherStore(storage, self._folder / "cache", dict.fromkeys(SIGNALS, EmbeddingCodec("float16")))


class _RayData:
    """The same embeddings as a Ray data set, a block for each shard."""

    def __init__(self, workload: Workload, folder: Path) -> None:
        import ray
        import ray.data
        import torch

        self._ray = ray
        self._types = dict.fromkeys(SIGNALS, torch.float32)
        self._workload = workload
        self._files = folder / "parquet"
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
        ray.data.DataContext.get_current().enable_progress_bars = False
        pairs = [np.stack(list(workload.embeddings(shard).values()), axis=1) for shard in range(workload.num_shards)]
        ray.data.from_numpy(pairs).map_batches(_as_columns, batch_size=None).write_parquet(str(self._files))
        self._materialised = self._read().materialize()

    def read_all(self) -> None:
        """A pass over the materialised data set, in stored order."""
        for _ in self._batches(self._materialised):
            pass

    def read_all_shuffled(self) -> None:
        """The same with samples shuffled in a window as large as ours."""
        window = self._workload.window_shards * self._workload.samples_per_shard
        for _ in self._batches(self._materialised, local_shuffle_buffer_size=window):
            pass

    def first_batch(self) -> None:
        """The first batch of a student that begins, from files."""
        next(self._batches(self._read()))

    def close(self) -> None:
        """End this Ray."""
        self._ray.shutdown()

    def _read(self) -> Any:
        return self._ray.data.read_parquet(str(self._files))

    def _batches(self, dataset: Any, **options: Any) -> Iterator[Any]:
        return iter(dataset.iter_torch_batches(batch_size=self._workload.batch_size, dtypes=self._types, **options))


def _as_columns(rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A column for each signal out of one of pairs, float32 (N, 2, D)."""
    return {signal: rows["data"][:, place].astype(np.float16) for place, signal in enumerate(SIGNALS)}


def _identity(shard: int) -> str:
    fields = dict.fromkeys(("data", "teacher", "preprocessing", "view", "signals", "codec"), "benchmark")
    return shard_id({**fields, "data": str(shard)})


def _without_inputs(positions_B2: np.ndarray) -> Batch:
    """A batch as the loader makes it, but for the student's own inputs, which are not measured here."""
    shards, rows = positions_B2[:, 0], positions_B2[:, 1]
    keys = tuple(f"{shard}-{row}" for shard, row in positions_B2.tolist())
    return Batch({}, keys, shards, rows, view=0)
