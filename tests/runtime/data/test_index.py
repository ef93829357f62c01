"""The index: keys, classes, the split, and the refusals that name shard and key."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.api.v1alpha1.data import Columns, DataFormat
from limbeck_runtime.data.errors import DataError, DuplicateKeyError, TooManyBadSamplesError
from limbeck_runtime.data.index import DataIndex, build_index, held_out
from limbeck_runtime.data.samples import BadReason
from limbeck_runtime.data.sources import resolve_shards


def test_the_index_lists_keys_classes_and_slices_in_the_files_order(tars: Any) -> None:
    index = tars.index()
    assert index.shard_sizes.tolist() == [20, 20, 7]
    assert index.num_samples == 47
    assert index.classes == ("0", "1", "2")
    positions = index.positions()
    assert positions[[0, 19, 20, 46]].tolist() == [[0, 0], [0, 19], [1, 0], [2, 6]]
    assert index.keys(positions[[0, 46]]) == ("s000", "s046")
    assert index.slice_values("category", positions[:3]) == ("even", "odd", "even")


def test_the_index_survives_json(tars: Any) -> None:
    index = tars.index()
    again = DataIndex.from_json(index.to_json())
    assert again == index
    assert [shard.identity for shard in again.shards] == [shard.identity for shard in index.shards]


def test_the_index_does_not_depend_on_the_number_of_threads(tars: Any) -> None:
    assert tars.index(num_threads=1).to_json() == tars.index(num_threads=7).to_json()


def test_progress_counts_shards_in_order(tars: Any) -> None:
    seen: list[tuple[int, int]] = []
    build_index(
        resolve_shards(tars.source),
        tars.columns,
        tars.layout.data_format,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("labels", "classes", "ids"),
    [
        (["dog", "cat", "dog"], ("cat", "dog"), (1, 0, 1)),
        (["2", "0", "2"], ("0", "1", "2"), (2, 0, 2)),
        (["007", "1", "1"], ("007", "1"), (0, 1, 1)),
        (["5000000", "1", "1"], ("1", "5000000"), (1, 0, 0)),
    ],
)
def test_labels_become_class_ids(
    builders: Any, labels: list[str], classes: tuple[str, ...], ids: tuple[int, ...]
) -> None:
    samples = {f"k{n}": builders.whole_sample(n) | {"cls": label.encode()} for n, label in enumerate(labels)}
    index = builders.data_set(DataFormat.WEB_DATASET).add("d", samples).index()
    assert index.classes == classes
    assert index.shards[0].class_ids == ids


def test_a_label_outside_of_the_given_classes_makes_its_sample_bad(tars: Any) -> None:
    refs = resolve_shards(tars.source)
    index = build_index(refs, tars.columns, tars.layout.data_format, classes=["2", "0"], max_bad_samples_percent=50)
    assert {bad.reason for bad in index.bad} == {BadReason.UNKNOWN_LABEL}
    assert len(index.bad) + index.num_samples == 47
    assert index.shards[0].keys[:2] == ("s000", "s002")
    assert index.shards[0].class_ids is not None
    assert index.shards[0].class_ids[:2] == (1, 0)


@pytest.mark.parametrize("data_format", [DataFormat.WEB_DATASET, DataFormat.PARQUET, DataFormat.JSON_LINES])
def test_a_key_in_two_shards_is_an_error_that_names_both(builders: Any, data_format: DataFormat) -> None:
    data_set = builders.data_set(data_format)
    data_set.add("a", {key: builders.whole_sample(1) for key in ("k0", "same")})
    data_set.add("b", {"k1": builders.whole_sample(2)})
    data_set.add("c", {key: builders.whole_sample(3) for key in ("same", "k2")})
    with pytest.raises(DuplicateKeyError, match="'same'") as duplicate:
        data_set.index()
    assert duplicate.value.first.endswith("/a" + data_set.layout.ending)
    assert duplicate.value.second.endswith("/c" + data_set.layout.ending)
    assert duplicate.value.first in str(duplicate.value)
    assert duplicate.value.second in str(duplicate.value)


def test_a_key_twice_in_one_shard_is_an_error(builders: Any) -> None:
    data_set = builders.data_set(DataFormat.JSON_LINES)
    (data_set.folder / "d.jsonl").write_text('{"__key__": "k", "txt": "a"}\n' * 2)
    data_set.names, data_set.columns = ["d"], Columns(text="txt")
    with pytest.raises(DuplicateKeyError, match="'k'") as duplicate:
        data_set.index()
    assert duplicate.value.first == duplicate.value.second


@pytest.mark.parametrize(("limit", "fails"), [(4, True), (5, False)])
def test_broken_samples_are_skipped_up_to_the_limit_and_no_further(builders: Any, limit: int, fails: bool) -> None:
    samples = {f"k{number}": builders.whole_sample(number) for number in range(40)}
    samples["k21"]["png"] = b"broken"
    samples["k30"]["txt"] = b""
    data_set = builders.data_set(DataFormat.WEB_DATASET)
    data_set.add("a", dict(list(samples.items())[:20])).add("b", dict(list(samples.items())[20:]))
    if not fails:
        assert [bad.key for bad in data_set.index(limit).bad] == ["k21", "k30"]
        return
    with pytest.raises(TooManyBadSamplesError, match=r"`spec.data.maxBadSamplesPercent`.* 2 of 40") as error:
        data_set.index(limit)
    assert (error.value.shard, error.value.key) == (f"{data_set.folder}/b.tar", "k21")
    assert f"'k21' in shard '{data_set.folder}/b.tar': NotAnImage" in str(error.value)


def test_a_misspelt_column_is_said_after_the_first_shard_with_what_there_is(tars: Any) -> None:
    tars.columns = Columns(image="png", text="caption")
    read: list[int] = []
    with pytest.raises(TooManyBadSamplesError, match=r"`spec.data.columns.text` .* 'caption'") as error:
        build_index(
            resolve_shards(tars.source),
            tars.columns,
            tars.layout.data_format,
            progress=lambda done, total: read.append(done),
        )
    assert "the sample has caption, category, cls, png, txt" not in str(error.value)
    assert "the sample has category, cls, png, txt" in str(error.value)
    assert read == []


def test_data_without_a_good_sample_is_refused(builders: Any) -> None:
    data_set = builders.data_set(DataFormat.WEB_DATASET).add("d", {"k": {"txt": b"text", "cls": b"1"}})
    with pytest.raises(DataError, match="at least one good sample"):
        data_set.index(max_bad_samples_percent=100)


def test_a_shard_without_a_good_sample_is_left_out_and_its_samples_are_named(builders: Any) -> None:
    data_set = builders.data_set(DataFormat.WEB_DATASET)
    data_set.add("a", {"k0": builders.whole_sample(0) | {"txt": b""}}).add("b", {"k1": builders.whole_sample(1)})
    index = data_set.index(max_bad_samples_percent=50)
    assert [shard.keys for shard in index.shards] == [("k1",)]
    assert [bad.key for bad in index.bad] == ["k0"]


def test_the_split_covers_all_samples_once_and_changes_the_shards_identities(tars: Any) -> None:
    index = tars.index()
    train, validation = index.split(20)
    train_keys, validation_keys = ([key for shard in part.shards for key in shard.keys] for part in (train, validation))
    assert sorted(train_keys + validation_keys) == sorted(key for shard in index.shards for key in shard.keys)
    assert validation_keys == [key for key in sorted(validation_keys) if held_out(key, 20)]
    assert train.classes == validation.classes == index.classes
    identities = {shard.identity for part in (index, train, validation) for shard in part.shards}
    assert len(identities) == sum(len(part.shards) for part in (index, train, validation))
    positions = train.positions()
    assert train.keys(positions) == tuple(train_keys)
    assert train.slice_values("category", positions) == tuple(("even", "odd")[int(key[1:]) % 2] for key in train_keys)


def test_a_split_that_leaves_one_side_empty_is_refused(builders: Any) -> None:
    index = builders.data_set(DataFormat.WEB_DATASET).add("d", {"k": builders.whole_sample(0)}).index()
    with pytest.raises(ValueError, match=r"`spec.data.validationPercent` must leave samples on both sides"):
        index.split(1)


@given(st.text(min_size=1), st.integers(1, 49))
def test_a_larger_validation_part_keeps_what_a_smaller_one_held_out(key: str, percent: int) -> None:
    key = key.encode("utf-8", "ignore").decode()
    assert held_out(key, percent) <= held_out(key, percent + 1)


def test_the_split_is_the_same_everywhere_and_always() -> None:
    assert "".join("01"[held_out(f"k{number}", 30)] for number in range(24)) == "000001011110111001011001"
    share = sum(held_out(f"k{number}", 30) for number in range(2000)) / 2000
    assert abs(share - 0.3) < 0.03


@pytest.mark.parametrize("data_format", list(DataFormat))
def test_the_index_of_every_format_survives_json(builders: Any, data_format: DataFormat) -> None:
    data_set = builders.data_set(data_format).add("d", {"k": builders.whole_sample(0)})
    if data_format is DataFormat.IMAGE_FOLDER:
        data_set.columns = Columns()
    index = data_set.index()
    assert DataIndex.from_json(index.to_json()) == index


def test_naming_slices_or_labels_does_not_change_a_shards_identity(tars: Any) -> None:
    with_all = tars.index()
    tars.columns = Columns(image="png", text="txt")
    with_less = tars.index()
    assert [shard.identity for shard in with_all.shards] == [shard.identity for shard in with_less.shards]
