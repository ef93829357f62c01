"""Samples side by side: the right picture, the truth, and both answers in words."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import nn

from limbeck.api.v1alpha1.data import Columns, DataFormat, DataSource
from limbeck_runtime.comparison import compare_samples
from limbeck_runtime.data.index import DataIndex, build_index
from limbeck_runtime.data.sources import resolve_shards
from limbeck_runtime.evaluation.evaluation import Answers, Evaluation
from limbeck_runtime.evaluation.scores import SampleScores
from limbeck_runtime.models.bundle import Architecture, ModelBundle
from limbeck_runtime.models.preprocessing import ImagePreprocessing, Preprocessing, TextPreprocessing

MakeIndex = Callable[..., DataIndex]


@pytest.fixture
def make_index(data: Path) -> MakeIndex:
    """The index of the validation drawings."""

    def make(**columns: Any) -> DataIndex:
        source = DataSource(uri=f"{data}/validation.tar", format=DataFormat.WEB_DATASET)
        return build_index(resolve_shards(source), Columns(**columns), source.format)

    return make


@pytest.fixture
def make_bundle(tokenizer_json: str) -> Callable[[str], ModelBundle]:
    """Only what is read before a model is: a comparison asks no model."""

    def make(task: str) -> ModelBundle:
        image = ImagePreprocessing(size=16, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        text = TextPreprocessing(tokenizer_json=tokenizer_json, max_length=12, pad_id=0)
        reads = {
            "ImageClassification": Preprocessing(image=image),
            "ImageText": Preprocessing(image=image, text=text),
        }.get(task, Preprocessing(text=text))
        return ModelBundle(nn.Identity(), Architecture("toy"), reads, task)

    return make


def _evaluation(ids: list[int], correct: list[int], weights: list[int] | None = None) -> Evaluation:
    answers = Answers(np.array(ids), np.linspace(0.5, 0.9, len(ids)), np.array(correct, np.int8))
    scores = {} if weights is None else {"perplexity": SampleScores(np.ones(len(weights)), np.array(weights, float))}
    return Evaluation(metrics={}, main_metric="", answers=answers, scores=scores, keys=())


def test_classes_are_named_and_the_picture_is_the_samples(
    make_index: MakeIndex, make_bundle: Callable[[str], ModelBundle], samples: dict[str, dict[str, bytes]]
) -> None:
    index = make_index(image="png", label="cls")
    ids = [index.classes.index(key.partition("-")[0]) for key in index.shards[0].keys]
    student, teacher = _evaluation([2] * 12, [int(number == 2) for number in ids]), _evaluation(ids, [1] * 12)
    compared = compare_samples(index, make_bundle("ImageClassification"), student, teacher, 3)
    assert [one.key for one in compared] == [index.shards[0].keys[place] for place in (0, 6, 11)]
    for one in compared:
        shape = one.key.partition("-")[0]
        assert one.truth == shape
        assert one.teacher is not None
        assert (one.teacher.text, one.teacher.correct) == (shape, True)
        assert (one.student.text, one.student.correct) == (index.classes[2], index.classes[2] == shape)
        assert one.agree is (index.classes[2] == shape)
        assert one.image is not None
        picture = Image.open(io.BytesIO(base64.b64decode(one.image.partition(",")[2])))
        original = Image.open(io.BytesIO(samples[one.key]["png"]))
        assert picture.convert("RGB").tobytes() == original.convert("RGB").tobytes()


def test_a_class_that_only_the_model_knows_is_a_number(
    make_index: MakeIndex, make_bundle: Callable[[str], ModelBundle]
) -> None:
    index = make_index(image="png", label="cls")
    (compared,) = compare_samples(index, make_bundle("ImageClassification"), _evaluation([9] * 12, [0] * 12), None, 1)
    assert compared.student.text == "class 9"
    assert compared.teacher is None
    assert compared.agree is None


def test_an_image_is_answered_by_the_text_that_the_model_found(
    make_index: MakeIndex, make_bundle: Callable[[str], ModelBundle], samples: dict[str, dict[str, bytes]]
) -> None:
    index = make_index(image="png", text="txt")
    keys = index.shards[0].keys
    (compared,) = compare_samples(index, make_bundle("ImageText"), _evaluation([5] * 12, [0] * 12), None, 1)
    assert compared.truth == samples[keys[0]]["txt"].decode()
    assert compared.student.text == samples[keys[5]]["txt"].decode()
    assert compared.question == ""


def test_tokens_of_a_text_are_found_among_those_of_all(
    make_index: MakeIndex, make_bundle: Callable[[str], ModelBundle]
) -> None:
    index, bundle = make_index(text="txt"), make_bundle("CausalLM")
    assert bundle.preprocessing.text is not None
    tokenizer = bundle.preprocessing.text.build_tokenizer()
    counts = [2] * 11 + [3]
    red, blue = (tokenizer.token_to_id(word) for word in ("red", "blue"))
    ids = [red] * 22 + [blue] * 3
    evaluation = _evaluation(ids, [0] * 24 + [1], counts)
    first, last = compare_samples(index, bundle, evaluation, None, 2)
    assert first.student.text == "red red"
    assert last.student.text == "blue blue blue"
    assert last.student.score == pytest.approx(1 / 3)
    assert first.image is None
    assert first.question == first.truth


def test_no_sample_is_shown_where_none_is_wanted(
    make_index: MakeIndex, make_bundle: Callable[[str], ModelBundle]
) -> None:
    assert compare_samples(make_index(text="txt"), make_bundle("CausalLM"), _evaluation([], []), None, 0) == []
