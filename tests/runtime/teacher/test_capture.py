"""A captured shard holds what the teacher says of each sample alone, whatever it was batched with."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from limbeck.api.v1alpha1.data import Augmentation
from limbeck_runtime.data.errors import ShardChangedError
from limbeck_runtime.models.preprocessing import TextPreprocessing
from limbeck_runtime.store import EmbeddingCodec, FeatureCodec, SampledCodec, ShardReader, TopKCodec
from limbeck_runtime.teacher import capture
from limbeck_runtime.teacher.capture import Capturer, Turns

Make = Callable[..., Any]


def captured(of: Any, place: int = 0) -> ShardReader:
    """Capture the task at `place` of the plan and open what was stored."""
    capturer = Capturer(of.settings)
    try:
        capturer.capture(of.tasks[place])
    finally:
        capturer.close()
    return of.store.open(of.tasks[place].identity)


def read_all(reader: ShardReader) -> dict[str, np.ndarray]:
    return reader.read(np.arange(reader.num_samples))


@pytest.mark.parametrize("batch_size", [2, 64])
def test_embeddings_are_those_of_each_sample_under_its_key(make_capture: Make, batch_size: int) -> None:
    of = make_capture().with_(batch_size=batch_size)
    reader, task = captured(of), of.tasks[0]
    assert reader.keys == of.index.shards[task.shard].keys
    expected = torch.stack(of.expected(task)["image_embedding"]).numpy()
    np.testing.assert_allclose(read_all(reader)["image_embedding"], expected, atol=1e-3)


def test_the_teacher_sees_the_view_that_the_task_names(make_capture: Make) -> None:
    augmented = Augmentation(views=2, min_crop_percent=50, flip=True, color_percent=40)
    of = make_capture().with_(augmentation=augmented, epochs=2)
    second = next(place for place, task in enumerate(of.tasks) if task.view == 1)
    stored = read_all(captured(of, second))["image_embedding"]
    expected = torch.stack(of.expected(of.tasks[second])["image_embedding"]).numpy()
    np.testing.assert_allclose(stored, expected, atol=1e-3)
    plain = make_expected_without_augmentation(of, second)
    assert np.abs(stored - plain).max() > 0.05


def make_expected_without_augmentation(of: Any, place: int) -> np.ndarray:
    plain = of.with_(augmentation=Augmentation(views=1))
    return torch.stack(plain.expected(of.tasks[place])["image_embedding"]).numpy()


def test_token_logits_are_kept_without_padding_and_cut_to_the_shared_vocabulary(make_capture: Make) -> None:
    of = make_capture(codecs={"logits": TopKCodec(3, vocabulary=7, value_bits=16)}).with_(batch_size=2)
    stored = read_all(captured(of))
    for row, logits_TV in enumerate(of.expected(of.tasks[0])["logits"]):
        log_probs_TV = logits_TV[:, :7].log_softmax(-1)
        values, indices = log_probs_TV.topk(3)
        length = stored["logits.lengths"][row]
        assert length == len(logits_TV) == 1 + int(of.index.keys(np.array([[of.tasks[0].shard, row]]))[0][1:]) % 4
        np.testing.assert_array_equal(np.sort(stored["logits.indices"][row, :length]), np.sort(indices))
        np.testing.assert_allclose(
            np.sort(stored["logits.log_probs"][row, :length]), np.sort(values.numpy()), atol=2e-3
        )


def test_full_logits_by_token_and_by_sample_are_kept_whole(make_capture: Make) -> None:
    codecs = {"logits": FeatureCodec("float32"), "class_logits": FeatureCodec("float32")}
    of = make_capture(codecs=codecs).with_(batch_size=2)
    stored, expected = read_all(captured(of)), of.expected(of.tasks[0])
    np.testing.assert_allclose(stored["class_logits"], torch.stack(expected["class_logits"]).numpy(), rtol=1e-4)
    for row, logits_TV in enumerate(expected["logits"]):
        assert stored["logits.lengths"][row] == len(logits_TV)
        np.testing.assert_allclose(stored["logits"][row, : len(logits_TV)], logits_TV.numpy(), rtol=1e-5)


def test_inner_layers_are_captured_by_their_path(make_capture: Make) -> None:
    of = make_capture(codecs={"features.image": FeatureCodec("float32")})
    stored = read_all(captured(of))["features.image"]
    np.testing.assert_allclose(stored, torch.stack(of.expected(of.tasks[0])["class_logits"]).numpy(), rtol=1e-4)


def test_draws_of_a_shard_are_the_same_whoever_makes_them_and_differ_between_batches(
    make_capture: Make, tmp_path_factory: pytest.TempPathFactory
) -> None:
    of = make_capture(codecs={"class_logits": SampledCodec(16, vocabulary=6)}).with_(batch_size=2)
    again = of.with_(folder=tmp_path_factory.mktemp("again"))
    first, second = read_all(captured(of)), read_all(captured(again))
    for name, values in first.items():
        np.testing.assert_array_equal(values, second[name])


def test_equal_rows_in_two_batches_get_draws_of_their_own(make_capture: Make) -> None:
    module = ConstantTeacher()
    of = make_capture(module=module, codecs={"class_logits": SampledCodec(8, vocabulary=64)}).with_(batch_size=1)
    stored = read_all(captured(of))["class_logits.indices"]
    assert len({row.tobytes() for row in stored}) > 1


def test_one_shard_is_in_the_model_at_a_time_while_the_next_is_made_ready(make_capture: Make) -> None:
    module = ShardNotingTeacher()
    of = make_capture(num_shards=2, module=module).with_(batch_size=2)
    capturer = Capturer(of.settings)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(capturer.capture, of.tasks[0])
        assert module.entered.wait(20)
        second = threads.submit(capturer.capture, of.tasks[1])
        results = [first.result(), second.result()]
    capturer.close()
    assert [result.num_samples for result in results] == [5, 5]
    assert not module.overlapped


class ShardNotingTeacher(torch.nn.Module):
    """Stays in its first pass for as long as another one might begin beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.entered, self.beside = threading.Event(), threading.Event()
        self.overlapped = False

    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if self.entered.is_set():
            self.beside.set()
        else:
            self.entered.set()
            self.overlapped = self.beside.wait(0.3)
        return {"image_embedding": torch.ones(len(inputs["pixel_values"]), 4)}


class ConstantTeacher(torch.nn.Module):
    """Says the same of every sample."""

    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"class_logits": torch.zeros(len(inputs["pixel_values"]), 64)}


def test_a_shard_that_is_there_is_not_computed_again(make_capture: Make) -> None:
    of = make_capture(module=CountingTeacher())
    capturer = Capturer(of.settings)
    results = [capturer.capture(of.tasks[0]) for _ in range(2)]
    capturer.close()
    assert [result.already_there for result in results] == [False, True]
    assert of.module.num_samples == of.tasks[0].num_samples


class CountingTeacher(torch.nn.Module):
    """Counts what it is asked."""

    num_samples = 0

    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        self.num_samples += len(inputs["pixel_values"])
        return {"image_embedding": torch.ones(len(inputs["pixel_values"]), 4)}


def test_a_shard_whose_data_has_changed_is_not_captured(make_capture: Make) -> None:
    of = make_capture()
    tars = sorted((of.folder / "data").iterdir())
    shard = of.tasks[0].shard
    tars[shard].write_bytes(tars[shard - 1].read_bytes())
    with pytest.raises(ShardChangedError):
        captured(of)
    assert of.store.identities() == set()


def test_a_batch_is_smaller_where_logits_by_token_would_take_too_much(make_capture: Make) -> None:
    vocabulary = 2**21
    of = make_capture(codecs={"logits": TopKCodec(3, vocabulary)}).with_(batch_size=64)
    text = of.preprocessing.text
    assert isinstance(text, TextPreprocessing)
    assert capture._batch_size(of.settings) == capture.LOGIT_BYTES // (4 * vocabulary * text.max_length)
    embeddings = of.with_(codecs={"image_embedding": EmbeddingCodec()})
    assert capture._batch_size(embeddings.settings) == 64


def test_turns_come_in_the_order_in_which_they_were_taken() -> None:
    turns, order = Turns(), list[int]()
    first = turns.taken()
    first.__enter__().wait()
    in_line = [threading.Event() for _ in range(4)]

    def stand_in_line(number: int) -> None:
        with turns.taken() as turn:
            in_line[number].set()
            turn.wait()
            order.append(number)

    threads = []
    for number in range(4):
        threads.append(threading.Thread(target=stand_in_line, args=(number,)))
        threads[-1].start()
        assert in_line[number].wait(10)
    first.__exit__(None, None, None)
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2, 3]
