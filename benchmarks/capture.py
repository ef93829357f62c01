"""P4: teacher capture against a bare torch loop that writes the same shards, and against Ray Data.

    python -m benchmarks.capture [number of batches]...   # prints the figures

64 and 256 batches of 64 pictures (64 px PNG in WebDataset tars, 8 batches a shard) go through a small CNN; its
embeddings are stored. All start from a data index, a model in memory and a running Ray, and end when the last shard is
durable. The bare loop reads, decodes, computes (on two threads) and writes one after the other in this process.

Ours is the pool with two actors that are up already (`WarmActors`: a driver starts them when a run begins, and they
are ready long before the data is checked); `cold` says what it is when they are started inside of the time. Ray Data
reads the tars, decodes and computes in an actor pool and writes Parquet; its own actors start inside of the time, as
it offers no way to start them before.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks.timing import RUNS, Comparison, Figure, timed
from limbeck.api.v1alpha1.data import Augmentation, Columns, DataFormat, DataSource
from limbeck_runtime.data.decode import decode_image
from limbeck_runtime.data.index import DataIndex, build_index
from limbeck_runtime.data.read import read_shard
from limbeck_runtime.data.samples import RawSample
from limbeck_runtime.data.sources import resolve_shards
from limbeck_runtime.models.bundle import Architecture, ModelBundle
from limbeck_runtime.models.preprocessing import ImagePreprocessing, Preprocessing
from limbeck_runtime.storage import Storage
from limbeck_runtime.store import EmbeddingCodec, TeacherStore
from limbeck_runtime.teacher.capture import CaptureSettings
from limbeck_runtime.teacher.plan import CaptureTask, capture_plan
from limbeck_runtime.teacher.pool import TeacherPool
from limbeck_runtime.teacher.ray_workers import RayWorkers, WarmActors

BATCH, BATCHES_IN_SHARD, SIDE = 64, 8, 64
SIZES = (64, 256)
NUM_WORKERS = 2
PREPROCESSING = Preprocessing(image=ImagePreprocessing(size=SIDE, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)))
CODECS = {"image_embedding": EmbeddingCodec()}
AUGMENTATION = Augmentation(views=1)


class Teacher(nn.Module):
    """Three convolutions of width 64; 256 numbers a picture."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers: list[nn.Module] = [nn.Conv2d(3, 64, 8, stride=4, padding=2), nn.GELU()]
        for _ in range(3):
            layers += [nn.Conv2d(64, 64, 3, padding=1), nn.GroupNorm(8, 64), nn.GELU()]
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 256))

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"image_embedding": nn.functional.normalize(self.body(inputs["pixel_values"]), dim=-1)}


@dataclass(frozen=True)
class Problem:
    """The data of one size, and the three ways through it. Each run gets a folder of its own."""

    folder: Path
    index: DataIndex
    tars: list[str]
    module: Teacher

    @classmethod
    def make(cls, folder: Path, num_batches: int) -> Problem:
        """Write the tars and look at them once."""
        num_shards = num_batches // BATCHES_IN_SHARD
        for shard in range(num_shards):
            _write_tar(folder / f"{shard:03d}.tar", shard)
        source = DataSource(uri=f"{folder}/{{000..{num_shards - 1:03d}}}.tar", format=DataFormat.WEB_DATASET)
        index = build_index(resolve_shards(source), Columns(image="png", text=None), source.format)
        tars = [str(folder / f"{shard:03d}.tar") for shard in range(num_shards)]
        return cls(folder, index, tars, Teacher().eval())

    def store(self) -> TeacherStore:
        """An empty store."""
        place = Path(tempfile.mkdtemp(dir=self.folder))
        return TeacherStore(Storage.open(str(place)), place / "cache", CODECS)

    def tasks(self) -> list[CaptureTask]:
        """What is wanted."""
        return capture_plan(
            self.index,
            teacher_identity="benchmark",
            preprocessing_identity=PREPROCESSING.identity(),
            augmentation=AUGMENTATION,
            seed=0,
            codecs=CODECS,
            epochs=1,
        )

    def bare_loop(self, store: TeacherStore) -> None:
        """What one would write by hand, without a thought for anything but the result."""
        image = PREPROCESSING.image
        assert image is not None
        mean, std = (torch.tensor(values)[:, None, None] for values in (image.mean, image.std))
        for task in self.tasks():
            shard, outputs = self.index.shards[task.shard], []
            samples = read_shard(shard.ref, self.index.columns, self.index.data_format)
            pictures = [decode_image(s.image, image) for s in samples if isinstance(s, RawSample) and s.image]
            for start in range(0, len(pictures), BATCH):
                pixels_B3HW = torch.from_numpy(np.stack(pictures[start : start + BATCH])).float() / 255
                with torch.inference_mode():
                    answer = self.module({"pixel_values": (pixels_B3HW - mean) / std})
                outputs.append(answer["image_embedding"].numpy())
            provenance = {"shard": shard.ref.uri, "view": task.view}
            store.write(task.identity, shard.keys, {"image_embedding": np.concatenate(outputs)}, provenance)

    def pool(self, store: TeacherStore, warm: WarmActors | None) -> None:
        """Ours."""
        bundle = ModelBundle(self.module, Architecture("benchmark"), PREPROCESSING, "ImageClassification")
        settings = CaptureSettings(bundle, self.index, AUGMENTATION, 0, CODECS, store, BATCH)
        with TeacherPool(self.tasks(), store, lambda: RayWorkers(settings, warm=warm), max_workers=NUM_WORKERS) as pool:
            pool.wait()

    def ray_data(self) -> None:
        """Read, decode, compute in actors, write Parquet."""
        import ray

        ray.data.read_webdataset(self.tars, decoder=None).map_batches(_decoded, batch_size=BATCH).map_batches(
            _RayDataTeacher, fn_constructor_args=(self.module,), batch_size=BATCH, num_cpus=1, concurrency=1
        ).write_parquet(tempfile.mkdtemp(dir=self.folder))


def _decoded(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    image = PREPROCESSING.image
    assert image is not None
    return {"key": batch["__key__"], "pixels": np.stack([decode_image(data, image) for data in batch["png"]])}


class _RayDataTeacher:
    def __init__(self, module: Teacher) -> None:
        self._module = module

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        pixels_B3HW = (torch.from_numpy(batch["pixels"]).float() / 255 - 0.5) / 0.25
        with torch.inference_mode():
            answer = self._module({"pixel_values": pixels_B3HW})
        return {"key": batch["key"], "image_embedding": answer["image_embedding"].half().numpy()}


def measure(sizes: tuple[int, ...] = SIZES) -> dict[str, Any]:
    """Figures of P4."""
    _connect()
    torch.set_num_threads(NUM_WORKERS)
    figures: dict[str, Any] = {}
    for num_batches in sizes:
        with tempfile.TemporaryDirectory() as folder:
            problem = Problem.make(Path(folder), num_batches)
            _check_same_shards(problem)
            figures |= _compared(problem, num_batches)
    return figures


def _compared(problem: Problem, num_batches: int) -> dict[str, Any]:
    seconds: dict[str, list[float]] = {"bare": [], "ours": [], "cold": [], "ray_data": []}
    _seconds_of(problem, "ray_data")  # its first execution in a process takes longer
    for turn in range(RUNS):
        names = list(seconds)
        for name in names if turn % 2 == 0 else reversed(names):
            seconds[name].append(_seconds_of(problem, name))
    return {
        f"bare_{num_batches}": Comparison.of(seconds["ours"], seconds["bare"]).ratio.to_json(),
        f"cold_{num_batches}": Comparison.of(seconds["cold"], seconds["bare"]).ratio.to_json(),
        f"ray_data_{num_batches}": Comparison.of(seconds["ray_data"], seconds["ours"]).ratio.to_json(),
        f"ray_data_to_cold_{num_batches}": Comparison.of(seconds["ray_data"], seconds["cold"]).ratio.to_json(),
        f"ray_data_to_bare_{num_batches}": Comparison.of(seconds["ray_data"], seconds["bare"]).ratio.to_json(),
        f"seconds_{num_batches}": {name: Figure.of(values).to_json() for name, values in seconds.items()},
    }


def _seconds_of(problem: Problem, name: str) -> float:
    runs: dict[str, Callable[[], None]] = {
        "bare": lambda: problem.bare_loop(problem.store()),
        "cold": lambda: problem.pool(problem.store(), None),
        "ray_data": problem.ray_data,
    }
    if name in runs:
        return timed(runs[name])
    warm = WarmActors()
    warm.start(NUM_WORKERS)
    warm.wait()
    try:
        return timed(lambda: problem.pool(problem.store(), warm))
    finally:
        warm.close()


def _check_same_shards(problem: Problem) -> None:
    """Raise AssertionError unless the pool and the bare loop store the same."""
    stores = problem.store(), problem.store()
    problem.bare_loop(stores[0])
    problem.pool(stores[1], None)
    for task in problem.tasks():
        one, other = (store.open(task.identity) for store in stores)
        rows = np.arange(one.num_samples)
        assert one.keys == other.keys
        assert one.num_bytes == other.num_bytes
        difference = one.read(rows)["image_embedding"] - other.read(rows)["image_embedding"]
        assert np.abs(difference).max() < 2e-3, "other embeddings"


def _write_tar(path: Path, shard: int) -> None:
    random = np.random.default_rng(shard)
    with tarfile.open(path, "w") as tar:
        for number in range(BATCH * BATCHES_IN_SHARD):
            # Smooth, as drawings are: noise would not compress, and would take long to decode.
            coarse = Image.fromarray(random.integers(0, 256, (6, 6, 3), dtype=np.uint8))
            file = io.BytesIO()
            coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(file, "PNG")
            member = tarfile.TarInfo(f"{shard:03d}-{number:04d}.png")
            member.size = file.tell()
            file.seek(0)
            tar.addfile(member, file)


def _connect() -> None:
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    if not ray.is_initialized():
        ray.init(num_cpus=NUM_WORKERS, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False


if __name__ == "__main__":
    asked = tuple(int(argument) for argument in sys.argv[1:])
    for key, value in measure(asked or SIZES).items():
        print(f"{key:24} {value}")
