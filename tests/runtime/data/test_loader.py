"""Batches by position: what they hold, and that nothing but positions, view and settings decides it."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from limbeck.api.v1alpha1.data import Augmentation, Columns, DataFormat
from limbeck_runtime.data.batch import Batch, Labels
from limbeck_runtime.data.errors import ShardChangedError
from limbeck_runtime.data.index import DataIndex
from limbeck_runtime.data.loader import BatchLoader
from limbeck_runtime.data.samples import RawSample
from limbeck_runtime.models.preprocessing import Padding, Preprocessing

_AUGMENTATION = Augmentation(views=3, min_crop_percent=70, flip=True, color_percent=20)


def _assert_equal(one: Batch, other: Batch) -> None:
    assert one.keys == other.keys
    assert one.inputs.keys() == other.inputs.keys()
    for name, tensor in one.inputs.items():
        assert torch.equal(tensor, other.inputs[name]), name


def test_a_batch_holds_pixels_tokens_and_labels_of_the_samples_asked_for(
    tars: Any, preprocessing: Preprocessing
) -> None:
    index = tars.index()
    with BatchLoader(index, preprocessing) as loader:
        batch = loader.batch(np.array([[2, 6], [0, 3], [0, 3]]))
    assert batch.keys == ("s046", "s003", "s003")
    assert (batch.shards.tolist(), batch.rows.tolist(), batch.view) == ([2, 0, 0], [6, 3, 3], 0)
    assert batch.inputs["labels"].tolist() == [46 % 3, 0, 0]
    # [CLS] word4 thing1 [SEP], by the builders' vocabulary.
    assert batch.inputs["input_ids"][0].tolist() == [1, 5 + 46 % 7, 12 + 46 % 5, 2]
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 1, 1]] * 3
    assert {tensor.dtype for tensor in batch.inputs.values()} == {torch.float32, torch.int64}


def test_pixels_are_the_decoded_image_less_mean_over_deviation(builders: Any) -> None:
    index = builders.data_set(DataFormat.WEB_DATASET).add("d", {"k": builders.whole_sample(3)}).index()
    with BatchLoader(index, builders.preprocessing(size=12)) as loader:
        pixels = loader.batch(np.array([[0, 0]])).inputs["pixel_values"][0]
    image = np.asarray(Image.open(io.BytesIO(builders.encode_image(3)))).astype(np.float64) / 255
    expected = (image - [0.5, 0.4, 0.3]) / [0.2, 0.25, 0.3]
    assert np.abs(pixels.numpy() - expected.transpose(2, 0, 1)).max() < 1e-5


@pytest.mark.parametrize("num_threads", [2, 5])
def test_content_does_not_depend_on_threads_cache_or_order(
    tars: Any, preprocessing: Preprocessing, num_threads: int
) -> None:
    index = tars.index()
    batches = np.random.default_rng(0).permutation(index.positions())[:45].reshape(5, 9, 2)
    with BatchLoader(index, preprocessing, augmentation=_AUGMENTATION, num_threads=1) as plain:
        expected = [plain.batch(positions, view=1) for positions in batches]
    # Room for one shard of 20 images of 192 bytes only, so that shards come and go.
    with BatchLoader(
        index, preprocessing, augmentation=_AUGMENTATION, num_threads=num_threads, cache_bytes=8000
    ) as loader:
        found = [loader.batch(positions, view=1) for positions in reversed(batches)][::-1]
        with loader.stream((positions, 1) for positions in batches) as stream:
            streamed = list(stream)
        assert loader.stats.evictions > 10
        assert loader.stats.peak_bytes <= 8000
    for one, two, three in zip(expected, found, streamed, strict=True):
        _assert_equal(one, two)
        _assert_equal(one, three)


def test_views_change_images_by_the_settings_and_validation_shows_them_as_they_are(
    tars: Any, preprocessing: Preprocessing
) -> None:
    index = tars.index()
    positions = index.positions()[:6]
    with (
        BatchLoader(index, preprocessing, augmentation=_AUGMENTATION) as varied,
        BatchLoader(index, preprocessing, augmentation=_AUGMENTATION, seed=1) as reseeded,
        BatchLoader(index, preprocessing) as still,
    ):
        views = [varied.batch(positions, view).inputs["pixel_values"] for view in (0, 1, 0)]
        other_seed = reseeded.batch(positions, 0).inputs["pixel_values"]
        plain = [still.batch(positions, view).inputs["pixel_values"] for view in (0, 1)]
    assert torch.equal(views[0], views[2])
    assert not torch.equal(views[0], views[1])
    assert not torch.equal(views[0], other_seed)
    assert torch.equal(plain[0], plain[1])


def test_each_view_takes_its_wording(builders: Any, preprocessing: Preprocessing) -> None:
    data_set = builders.data_set(DataFormat.WEB_DATASET)
    data_set.add(
        "d",
        {
            "two": builders.whole_sample(0) | {"txt": b'["word1", "word2 thing3 thing4"]'},
            "one": builders.whole_sample(1) | {"txt": b"word5"},
        },
    )
    with BatchLoader(data_set.index(), preprocessing) as loader:
        views = [loader.batch(np.array([[0, 0], [0, 1]]), view).inputs for view in range(3)]
    assert [view["input_ids"].tolist() for view in views] == [
        [[1, 6, 2], [1, 10, 2]],
        [[1, 7, 15, 16, 2], [1, 10, 2, 0, 0]],
        [[1, 6, 2], [1, 10, 2]],
    ]
    assert views[1]["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]


def test_texts_are_cut_padded_and_led_by_image_tokens_as_the_model_wants(builders: Any) -> None:
    long = " ".join(["word1"] * 40).encode()
    data_set = builders.data_set(DataFormat.WEB_DATASET)
    data_set.add("long", {"k": builders.whole_sample(0) | {"txt": long}}).add("short", {"l": builders.whole_sample(1)})
    preprocessing = builders.preprocessing(
        padding=Padding.MAX_LENGTH,
        max_length=10,
        pad_id=3,
        image_token="<image>",
        image_token_id=4,
        num_image_tokens=3,
    )
    cut = [1, 4, 4, 4, 6, 6, 6, 6, 6, 2]
    padded = [1, 4, 4, 4, 6, 13, 2, 3, 3, 3]
    with BatchLoader(data_set.index(), preprocessing, labels=Labels.TOKENS) as loader:
        both = loader.batch(np.array([[1, 0], [0, 0]])).inputs
        short = loader.batch(np.array([[1, 0]])).inputs
    assert both["input_ids"].tolist() == [padded, cut]
    assert short["input_ids"].tolist() == [padded]
    assert short["attention_mask"].tolist() == [[1] * 7 + [0] * 3]
    assert both["labels"].tolist() == [
        [1, -100, -100, -100, 6, 13, 2, -100, -100, -100],
        [1, -100, -100, -100, 6, 6, 6, 6, 6, 2],
    ]


def test_a_part_of_a_split_index_loads_its_own_samples_only(tars: Any, preprocessing: Preprocessing) -> None:
    index = tars.index()
    train, validation = index.split(30)
    with BatchLoader(index, preprocessing) as whole:
        by_key = {
            key: row
            for key, row in zip(
                index.keys(index.positions()), whole.batch(index.positions()).inputs["pixel_values"], strict=True
            )
        }
    for part in (train, validation):
        with BatchLoader(part, preprocessing) as loader:
            batch = loader.batch(part.positions())
        for key, pixels in zip(batch.keys, batch.inputs["pixel_values"], strict=True):
            assert torch.equal(pixels, by_key[key])


def test_broken_samples_do_not_shift_the_rows(builders: Any, preprocessing: Preprocessing) -> None:
    samples = {f"k{number}": builders.whole_sample(number) for number in range(6)}
    samples["k0"]["png"] = b"broken"
    samples["k3"]["txt"] = b"\xff"
    index = builders.data_set(DataFormat.WEB_DATASET).add("d", samples).index(50)
    with BatchLoader(index, preprocessing) as loader:
        batch = loader.batch(index.positions())
    assert batch.keys == ("k1", "k2", "k4", "k5")
    assert batch.inputs["labels"].tolist() == [1, 2, 1, 2]
    assert batch.inputs["input_ids"][:, 1].tolist() == [5 + number % 7 for number in (1, 2, 4, 5)]


@pytest.mark.parametrize("data_format", list(DataFormat))
def test_raw_samples_of_every_format_come_without_reading_to_the_end(
    builders: Any, preprocessing: Preprocessing, data_format: DataFormat
) -> None:
    samples = {f"k{number:03d}": builders.whole_sample(number) for number in range(100)}
    index = builders.data_set(data_format).add("d", samples).index()
    with BatchLoader(index, preprocessing) as loader:
        [found] = loader.raw(np.array([[0, 1]]))
    assert found.key == index.shards[0].keys[1]
    assert found.image in [parts["png"] for parts in samples.values()]


def test_raw_samples_are_read_for_showing(tars: Any, preprocessing: Preprocessing, builders: Any) -> None:
    with BatchLoader(tars.index(), preprocessing) as loader:
        found = loader.raw(np.array([[1, 4], [0, 0], [1, 2]]))
    assert [sample.key for sample in found] == ["s024", "s000", "s022"]
    assert found[0] == RawSample(
        key="s024", image=builders.encode_image(24), texts=("word3 thing4",), label="0", slices={"category": "even"}
    )


@pytest.mark.parametrize("change", ["pixels", "text", "order", "added", "removed"])
def test_a_shard_that_changed_since_it_was_indexed_is_refused(
    builders: Any, preprocessing: Preprocessing, change: str
) -> None:
    samples = {f"k{number}": builders.whole_sample(number) for number in range(4)}
    data_set = builders.data_set(DataFormat.WEB_DATASET).add("d", samples)
    index = data_set.index()
    if change == "pixels":
        samples["k1"]["png"] = builders.encode_image(99)
    elif change == "text":
        samples["k2"]["txt"] = b"word6"
    elif change == "order":
        samples = dict(reversed(samples.items()))
    elif change == "added":
        samples["k9"] = builders.whole_sample(9)
    else:
        del samples["k3"]
    data_set.layout.write(data_set.folder, "d", samples)
    with BatchLoader(index, preprocessing) as loader, pytest.raises(ShardChangedError, match=r"d\.tar"):
        loader.batch(np.array([[0, 0]]))


def test_a_part_that_the_model_wants_and_the_data_lacks_is_refused(tars: Any, preprocessing: Preprocessing) -> None:
    tars.columns = Columns(image="png")
    with pytest.raises(ValueError, match=r"`spec.data.columns.text` must be given for this model"):
        BatchLoader(tars.index(), preprocessing)
    image_only = preprocessing.model_copy(update={"text": None})
    with pytest.raises(ValueError, match=r"`spec.data.columns.label` must be given for this model"):
        BatchLoader(tars.index(), image_only, labels=Labels.CLASSES)
    with BatchLoader(tars.index(), image_only) as loader:
        assert list(loader.batch(np.array([[0, 0]])).inputs) == ["pixel_values"]


def test_a_shard_larger_than_the_cache_is_refused_with_the_sum(tars: Any, preprocessing: Preprocessing) -> None:
    with pytest.raises(ValueError, match=r"a\.tar' with 20 samples and \d+ bytes; write smaller shards"):
        BatchLoader(tars.index(), preprocessing, cache_bytes=4000)


def test_the_largest_window_is_what_fits_into_the_cache(tars: Any, preprocessing: Preprocessing) -> None:
    index = tars.index()
    with BatchLoader(index, preprocessing) as loader:
        assert loader.largest_window == 3
        twice = int(loader.decoded_bytes[0] * 2 * 8 / 7) + 8
    with BatchLoader(index, preprocessing, cache_bytes=twice) as loader:
        assert loader.largest_window == 2


def test_an_index_from_json_loads_the_same_batches(tars: Any, preprocessing: Preprocessing) -> None:
    index = tars.index()
    positions = index.positions()[::5]
    with (
        BatchLoader(index, preprocessing) as one,
        BatchLoader(DataIndex.from_json(index.to_json()), preprocessing) as other,
    ):
        _assert_equal(one.batch(positions), other.batch(positions))


def test_a_position_out_of_range_is_an_error(tars: Any, preprocessing: Preprocessing) -> None:
    with BatchLoader(tars.index(), preprocessing) as loader, pytest.raises(IndexError):
        loader.batch(np.array([[2, 7]]))
