"""Builders of small data sets, whole and broken, in all formats."""

from __future__ import annotations

import base64
import io
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from limbeck.api.v1alpha1.data import Columns, DataFormat, DataSource
from limbeck_runtime.data.index import DataIndex, build_index
from limbeck_runtime.data.sources import resolve_shards
from limbeck_runtime.models.preprocessing import Fit, ImagePreprocessing, Preprocessing, TextPreprocessing

COLUMNS = Columns(image="png", text="txt", label="cls", slices=["category"])


def encode_image(seed: int, width: int = 12, height: int = 12, image_format: str = "PNG") -> bytes:
    """A smooth random picture, so that resizing does not turn it grey."""
    coarse = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, image_format)
    return file.getvalue()


Parts = dict[str, bytes]


def whole_sample(number: int) -> Parts:
    """The parts of a good sample, by file ending."""
    return {
        "png": encode_image(number),
        "txt": f"word{number % 7} thing{number % 5}".encode(),
        "cls": str(number % 3).encode(),
        "category": (b"even", b"odd")[number % 2],
    }


def tar_bytes(samples: Mapping[str, Mapping[str, bytes]]) -> bytes:
    """A tar in WebDataset's layout, written with the standard library."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for key, parts in samples.items():
            for ending, data in parts.items():
                member = tarfile.TarInfo(f"{key}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return file.getvalue()


def _write_tar(folder: Path, name: str, samples: Mapping[str, Parts]) -> None:
    (folder / f"{name}.tar").write_bytes(tar_bytes(samples))


def _write_json_lines(folder: Path, name: str, samples: Mapping[str, Parts]) -> None:
    lines = []
    for key, parts in samples.items():
        fields = [b'"__key__": "%s"' % key.encode()]
        for ending, data in parts.items():
            # A text that is no UTF-8 goes between the quotes as it is, which no JSON library would write.
            plain = base64.b64encode(data) if ending == "png" else data.replace(b'"', b'\\"')
            fields.append(b'"%s": "%s"' % (ending.encode(), plain))
        lines.append(b"{" + b", ".join(fields) + b"}")
    (folder / f"{name}.jsonl").write_bytes(b"\n".join(lines) + b"\n")


def _write_parquet(folder: Path, name: str, samples: Mapping[str, Parts]) -> None:
    endings = sorted({ending for parts in samples.values() for ending in parts})
    columns: dict[str, pa.Array] = {"__key__": pa.array(list(samples))}
    for ending in endings:
        values = pa.array([parts.get(ending) for parts in samples.values()], pa.binary())
        # As a text column whose bytes nobody has checked, which is what careless writers leave.
        columns[ending] = values if ending == "png" else values.view(pa.string())
    pa.parquet.write_table(pa.table(columns), folder / f"{name}.parquet", row_group_size=5)


def _write_image_folder(folder: Path, name: str, samples: Mapping[str, Parts]) -> None:
    for key, parts in samples.items():
        place = folder / name / parts.get("cls", b"0").decode()
        place.mkdir(parents=True, exist_ok=True)
        for ending, data in parts.items():
            (place / f"{key}.{ending}").write_bytes(data)


@dataclass(frozen=True)
class Layout:
    """How one format is written by the tests, and what its source looks like."""

    data_format: DataFormat
    write: Callable[[Path, str, Mapping[str, Parts]], None]
    ending: str

    def source(self, folder: Path, names: str) -> DataSource:
        return DataSource(uri=f"{folder}/{names}{self.ending}", format=self.data_format)


LAYOUTS = {
    DataFormat.WEB_DATASET: Layout(DataFormat.WEB_DATASET, _write_tar, ".tar"),
    DataFormat.PARQUET: Layout(DataFormat.PARQUET, _write_parquet, ".parquet"),
    DataFormat.JSON_LINES: Layout(DataFormat.JSON_LINES, _write_json_lines, ".jsonl"),
    DataFormat.IMAGE_FOLDER: Layout(DataFormat.IMAGE_FOLDER, _write_image_folder, ""),
}


@dataclass
class DataSet:
    """Shards written to a folder in one format."""

    folder: Path
    layout: Layout
    columns: Columns = COLUMNS
    names: list[str] = field(default_factory=list)

    def add(self, name: str, samples: Mapping[str, Parts]) -> DataSet:
        """Write one more shard."""
        self.layout.write(self.folder, name, samples)
        self.names.append(name)
        return self

    @property
    def source(self) -> DataSource:
        names = self.names[0] if len(self.names) == 1 else "{" + ",".join(self.names) + "}"
        return self.layout.source(self.folder, names)

    def index(self, max_bad_samples_percent: int = 1, num_threads: int = 2) -> DataIndex:
        return build_index(
            resolve_shards(self.source),
            self.columns,
            self.layout.data_format,
            max_bad_samples_percent=max_bad_samples_percent,
            num_threads=num_threads,
        )


def make_preprocessing(size: int = 8, **text: Any) -> Preprocessing:
    """Square images of `size` pixels, and a tokenizer that knows the builders' words."""
    words = [f"word{number}" for number in range(7)] + [f"thing{number}" for number in range(5)]
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[CLS]", "[SEP]", "[UNK]", "<image>", *words])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.add_special_tokens(["<image>"])
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    return Preprocessing(
        image=ImagePreprocessing(size=size, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3), fit=Fit.STRETCH),
        text=TextPreprocessing(**{"tokenizer_json": tokenizer.to_str(), "max_length": 16, "pad_id": 0} | text),
    )


@dataclass(frozen=True)
class Builders:
    """What tests make their data with."""

    folder: Path

    encode_image = staticmethod(encode_image)
    whole_sample = staticmethod(whole_sample)
    tar_bytes = staticmethod(tar_bytes)
    preprocessing = staticmethod(make_preprocessing)

    def data_set(self, data_format: DataFormat, folder: str = "data") -> DataSet:
        """An empty data set of a format."""
        place = self.folder / folder
        place.mkdir(parents=True, exist_ok=True)
        return DataSet(place, LAYOUTS[data_format])


@pytest.fixture
def builders(tmp_path: Path) -> Builders:
    """Makers of samples, shards and data sets below the test's folder."""
    return Builders(tmp_path)


@pytest.fixture
def preprocessing() -> Preprocessing:
    """Images of 8 pixels and a tokenizer that knows the builders' words."""
    return make_preprocessing()


@pytest.fixture
def tars(builders: Builders) -> DataSet:
    """Three tars of 20, 20 and 7 good samples."""
    made = builders.data_set(DataFormat.WEB_DATASET)
    for name, numbers in (("a", range(20)), ("b", range(20, 40)), ("c", range(40, 47))):
        made.add(name, {f"s{number:03d}": whole_sample(number) for number in numbers})
    return made
