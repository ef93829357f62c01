"""A small data set, a teacher whose answers are easy to compute, and all that a capture needs."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from limbeck.api.v1alpha1.data import Augmentation, Columns, DataFormat, DataSource
from limbeck_runtime.data.index import DataIndex, build_index
from limbeck_runtime.data.loader import BatchLoader
from limbeck_runtime.data.sources import resolve_shards
from limbeck_runtime.models.bundle import Architecture, ModelBundle
from limbeck_runtime.models.preprocessing import ImagePreprocessing, Preprocessing, TextPreprocessing
from limbeck_runtime.storage import LocalFiles, Storage
from limbeck_runtime.store import Codec, EmbeddingCodec, TeacherStore
from limbeck_runtime.teacher.capture import CaptureSettings
from limbeck_runtime.teacher.plan import CaptureTask, capture_plan

WIDTH, VOCABULARY = 6, 9


class TinyTeacher(nn.Module):
    """Answers that follow from the inputs by one matrix: embeddings of images, logits by sample and by token."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Linear(3 * 8 * 8, WIDTH, bias=False)
        self.token = nn.Embedding(32, VOCABULARY)
        with torch.no_grad():
            for weight in (self.image.weight, self.token.weight):
                weight.copy_(torch.linspace(-3, 3, weight.numel()).sin().view(weight.shape))

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        embedding_BD = self.image(inputs["pixel_values"].flatten(1))
        return {
            "image_embedding": nn.functional.normalize(embedding_BD, dim=-1),
            "class_logits": embedding_BD,
            "logits": self.token(inputs["input_ids"]),
        }


def _png(seed: int) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def _write_tar(path: Path, samples: range) -> None:
    with tarfile.open(path, "w") as tar:
        for number in samples:
            # Texts of one to four words.
            text = " ".join(f"word{number % 5}" for _ in range(1 + number % 4))
            for ending, data in {"png": _png(number), "txt": text.encode()}.items():
                member = tarfile.TarInfo(f"s{number:03d}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def _tokenizer_json() -> str:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    words = {word: number for number, word in enumerate(["[PAD]", "[UNK]", *(f"word{n}" for n in range(5))])}
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    return tokenizer.to_str()


@dataclass(frozen=True)
class Capture:
    """One capture: what is wanted, of whom, and where it goes."""

    index: DataIndex
    folder: Path
    module: nn.Module
    codecs: Mapping[str, Codec]
    augmentation: Augmentation = field(default_factory=lambda: Augmentation(views=1))
    epochs: int = 1
    batch_size: int = 4

    def with_(self, **changes: Any) -> Capture:
        return replace(self, **changes)

    @property
    def preprocessing(self) -> Preprocessing:
        return Preprocessing(
            image=ImagePreprocessing(size=8, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)),
            text=TextPreprocessing(tokenizer_json=_tokenizer_json(), max_length=8, pad_id=0),
        )

    @property
    def store(self) -> TeacherStore:
        """The store, opened anew, as another process would."""
        storage = Storage.open(str(self.folder / "store"), files=LocalFiles(durable=False))
        return TeacherStore(storage, self.folder / "cache", self.codecs)

    @property
    def settings(self) -> CaptureSettings:
        return CaptureSettings(
            teacher=ModelBundle(self.module, Architecture("tiny"), self.preprocessing, "ImageText"),
            index=self.index,
            augmentation=self.augmentation,
            seed=3,
            codecs=self.codecs,
            store=self.store,
            batch_size=self.batch_size,
        )

    @property
    def tasks(self) -> list[CaptureTask]:
        return capture_plan(
            self.index,
            teacher_identity="tiny",
            preprocessing_identity=self.preprocessing.identity(),
            augmentation=self.augmentation,
            seed=3,
            codecs=self.codecs,
            epochs=self.epochs,
        )

    def expected(self, task: CaptureTask) -> dict[str, list[Tensor]]:
        """What the teacher says of each sample of a task alone, computed one by one."""
        answers: dict[str, list[Tensor]] = {}
        with BatchLoader(self.index, self.preprocessing, augmentation=self.augmentation, seed=3) as loader:
            for row in range(task.num_samples):
                batch = loader.batch(np.array([[task.shard, row]]), task.view)
                with torch.inference_mode():
                    for name, values in self.module(batch.inputs).items():
                        answers.setdefault(name, []).append(values[0])
        return answers


@pytest.fixture
def make_capture(tmp_path: Path) -> Callable[..., Capture]:
    """A capture of `num_shards` shards of `shard_size` samples by the tiny teacher (or `module`)."""

    def make(
        num_shards: int = 3,
        shard_size: int = 5,
        module: nn.Module | None = None,
        codecs: Mapping[str, Codec] | None = None,
    ) -> Capture:
        data = tmp_path / "data"
        data.mkdir()
        for shard in range(num_shards):
            _write_tar(data / f"{shard:02d}.tar", range(shard * shard_size, (shard + 1) * shard_size))
        source = DataSource(uri=f"{data}/{{00..{num_shards - 1:02d}}}.tar", format=DataFormat.WEB_DATASET)
        index = build_index(resolve_shards(source), Columns(image="png", text="txt"), source.format)
        return Capture(index, tmp_path, module or TinyTeacher(), codecs or {"image_embedding": EmbeddingCodec()})

    return make
