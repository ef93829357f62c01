"""The same samples train the same model, however they lie in files."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

Job = dict[str, Any]
Samples = Mapping[str, Mapping[str, bytes]]
RunHere = Callable[..., list[dict[str, Any]]]


def _json_lines(path: Path, samples: Samples) -> None:
    rows = [
        {
            "__key__": key,
            "png": base64.b64encode(parts["png"]).decode(),
            **{name: parts[name].decode() for name in ("txt", "cls", "color")},
        }
        for key, parts in samples.items()
    ]
    path.with_suffix(".jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _parquet(path: Path, samples: Samples) -> None:
    columns: dict[str, list[Any]] = {"__key__": list(samples), "png": [parts["png"] for parts in samples.values()]}
    columns |= {name: [parts[name].decode() for parts in samples.values()] for name in ("txt", "cls", "color")}
    pyarrow.parquet.write_table(pa.table(columns), path.with_suffix(".parquet"))


WRITERS = {"JsonLines": (_json_lines, "jsonl"), "Parquet": (_parquet, "parquet")}


@pytest.fixture(scope="module")
def parts(samples: Samples) -> dict[str, Samples]:
    """The files of the tars by name, and the samples in each."""
    items = list(samples.items())
    names = ["train-0", "train-1", "train-2", "validation"]
    return {name: dict(items[place * 12 : place * 12 + 12]) for place, name in enumerate(names)}


@pytest.fixture(scope="module")
def from_tars(classification: Callable[..., Job], run_here: RunHere, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output of a job that read WebDataset tars."""
    output = tmp_path_factory.mktemp("tars")
    run_here(classification(output))
    return output


@pytest.mark.parametrize("data_format", WRITERS)
def test_other_files_of_the_same_samples_give_the_same_bits(
    data_format: str,
    parts: dict[str, Samples],
    from_tars: Path,
    classification: Callable[..., Job],
    run_here: RunHere,
    tmp_path: Path,
) -> None:
    write, ending = WRITERS[data_format]
    for name, of_file in parts.items():
        write(tmp_path / name, of_file)
    job = classification(tmp_path / "out")
    job["spec"]["data"] |= {
        "train": {"uri": f"{tmp_path}/train-{{0..2}}.{ending}", "format": data_format},
        "validation": {"uri": f"{tmp_path}/validation.{ending}", "format": data_format},
    }
    run_here(job)
    weights = Path("model") / "model.safetensors"
    assert (tmp_path / "out" / weights).read_bytes() == (from_tars / weights).read_bytes()


def test_folders_are_classes(
    parts: dict[str, Samples], classification: Callable[..., Job], run_here: RunHere, tmp_path: Path
) -> None:
    for name, of_file in parts.items():
        for key, of_sample in of_file.items():
            folder = tmp_path / name.partition("-")[0] / of_sample["cls"].decode()
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{key}.png").write_bytes(of_sample["png"])
    job = classification(tmp_path / "out", columns={"image": "png", "label": "folder"})
    job["spec"]["data"] |= {
        "train": {"uri": f"{tmp_path}/train", "format": "ImageFolder"},
        "validation": {"uri": f"{tmp_path}/validation", "format": "ImageFolder"},
    }
    run_here(job)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["badSamples"]["seen"] == 48
    assert {sample["truth"] for sample in report["samples"]} <= {"circle", "square", "cross", "bar"}
