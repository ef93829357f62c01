"""Which files a source means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.api.v1alpha1.data import Columns, DataFormat, DataSource
from limbeck_runtime.data.index import build_index
from limbeck_runtime.data.loader import BatchLoader
from limbeck_runtime.data.sources import resolve_shards
from limbeck_runtime.storage import Storage


def _source(uri: str, data_format: DataFormat = DataFormat.WEB_DATASET) -> DataSource:
    return DataSource(uri=uri, format=data_format)


def test_a_pattern_gives_its_files_in_its_order_with_size_and_tag(tmp_path: Path) -> None:
    for name, size in (("t-00.tar", 3), ("t-01.tar", 4)):
        (tmp_path / name).write_bytes(b"x" * size)
    refs = resolve_shards(_source(f"{tmp_path}/t-{{01,00}}.tar"))
    assert [(ref.name, ref.size) for ref in refs] == [("t-01.tar", 4), ("t-00.tar", 3)]
    assert all(ref.etag for ref in refs)


def test_a_folder_gives_its_files_by_name_and_skips_hidden_and_foreign_ones(tmp_path: Path) -> None:
    for name in ("b.tar", "a.tar", ".hidden.tar", "notes.txt", "sub/c.tar.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    refs = resolve_shards(_source(f"{tmp_path}"))
    assert [Path(ref.uri).relative_to(tmp_path).as_posix() for ref in refs] == ["a.tar", "b.tar", "sub/c.tar.gz"]


def test_names_do_not_depend_on_where_the_data_set_lies(tmp_path: Path) -> None:
    names = []
    for place in ("here", "there"):
        for folder in ("x", "y"):
            (tmp_path / place / folder).mkdir(parents=True)
            (tmp_path / place / folder / "1.parquet").write_bytes(b"")
            (tmp_path / place / folder / "2.parquet").write_bytes(b"")
        refs = resolve_shards(_source(f"{tmp_path}/{place}/{{x,y}}/{{1..2}}.parquet", DataFormat.PARQUET))
        names.append([ref.name for ref in refs])
    assert names == [["x/1.parquet", "x/2.parquet", "y/1.parquet", "y/2.parquet"]] * 2


@pytest.mark.parametrize("written", ["{}/d", "{}/d/", "{}/d/t.tar", "{}/d/{{t,t2}}.tar"])
def test_a_files_name_does_not_depend_on_how_the_source_is_written(tmp_path: Path, written: str) -> None:
    (tmp_path / "d").mkdir()
    for name in ("t.tar", "t2.tar"):
        (tmp_path / "d" / name).write_bytes(b"x")
    assert resolve_shards(_source(written.format(tmp_path)))[0].name == "t.tar"


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("t-{0..1}.tar", "t-1.tar': neither a file nor a folder"),
        ("empty", "neither a file nor a folder with files that end in .tar"),
        ("t-{0,0}.tar", "must name each file once"),
    ],
)
def test_missing_and_repeated_files_are_refused_by_name(tmp_path: Path, pattern: str, message: str) -> None:
    (tmp_path / "t-0.tar").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="`uri` must name") as refusal:
        resolve_shards(_source(f"{tmp_path}/{pattern}"))
    assert message in str(refusal.value)


def test_an_image_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(ValueError, match="must name ImageFolder data"):
        resolve_shards(_source(str(tmp_path), DataFormat.IMAGE_FOLDER))


def test_a_new_image_changes_one_share_of_a_large_folder_only(tmp_path: Path) -> None:
    for number in range(1100):
        (tmp_path / f"{number:04d}.png").write_bytes(b"")
    before = resolve_shards(_source(str(tmp_path), DataFormat.IMAGE_FOLDER))
    (tmp_path / "new.png").write_bytes(b"")
    after = resolve_shards(_source(str(tmp_path), DataFormat.IMAGE_FOLDER))
    assert len(before) == len(after) == 2
    assert sum(old != new for old, new in zip(before, after, strict=True)) == 1
    assert sorted(file for ref in before for file in ref.files) == [f"{number:04d}.png" for number in range(1100)]


@pytest.mark.parametrize("data_format", [DataFormat.WEB_DATASET, DataFormat.IMAGE_FOLDER])
def test_data_in_a_memory_store_is_read_as_data_on_a_disk(builders: Any, data_format: DataFormat) -> None:
    on_disk = builders.data_set(data_format).add("d", {f"k{n}": builders.whole_sample(n) for n in range(5)})
    storage = Storage.open(f"memory://sources-{data_format.value.lower()}/deep/down")
    for file in sorted(on_disk.folder.rglob("*.*")):
        storage.create(file.relative_to(on_disk.folder).as_posix(), file.read_bytes())
    ending = ".tar" if data_format is DataFormat.WEB_DATASET else ""
    refs = resolve_shards(_source(f"{storage.uri}/d{ending}", data_format))
    index = build_index(refs, Columns.model_validate(on_disk.columns), data_format)
    assert [shard.identity for shard in index.shards] == [shard.identity for shard in on_disk.index().shards]
    assert index.num_samples == 5


@pytest.mark.s3
@pytest.mark.parametrize("data_format", list(DataFormat))
def test_data_on_s3_gives_the_same_batches_as_data_on_a_disk(
    builders: Any, s3_server: Any, data_format: DataFormat
) -> None:
    on_disk = builders.data_set(data_format)
    for name, numbers in (("a", range(30)), ("b", range(30, 50))):
        on_disk.add(name, {f"k{number:02d}": builders.whole_sample(number) for number in numbers})
    storage = s3_server.open()
    for file in sorted(on_disk.folder.rglob("*.*")):
        storage.create(file.relative_to(on_disk.folder).as_posix(), file.read_bytes())
    source = _source(f"{storage.uri}/{{a,b}}{on_disk.layout.ending}", data_format)
    refs = resolve_shards(source, s3_server.options)
    index = build_index(refs, on_disk.columns, data_format, storage_options=s3_server.options)
    local = on_disk.index()
    assert [shard.identity for shard in index.shards] == [shard.identity for shard in local.shards]
    positions = local.positions()[::3]
    with (
        BatchLoader(index, builders.preprocessing(), storage_options=s3_server.options) as remote,
        BatchLoader(local, builders.preprocessing()) as near,
    ):
        batches = [loader.batch(positions).inputs for loader in (remote, near)]
    for name, tensor in batches[0].items():
        assert torch.equal(tensor, batches[1][name])
