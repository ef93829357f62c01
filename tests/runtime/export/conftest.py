"""Tiny models of the real classes, made in memory, and batches for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.api.v1alpha1.model import Model
from limbeck_runtime.models.bundle import ModelBundle
from limbeck_runtime.models.loading import load_model

_SPECIAL = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "<image>": 4}
_WORDS = ("a", "red", "apple", "green", "pear", "car", "house", "with", "big", "eyes")
TEXTS = ("a red apple", "a green pear with big eyes", "car", "a house")


@pytest.fixture(scope="session")
def tokenizer_json() -> str:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = _SPECIAL | {word: 5 + number for number, word in enumerate(_WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(list(_SPECIAL))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer.to_str()


_TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
_TEXT = {
    **_TOWER,
    "vocab_size": 16,
    "max_position_embeddings": 24,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
_VISION = {**_TOWER, "image_size": 16, "patch_size": 8}


def _clip() -> Any:
    from transformers import CLIPConfig, CLIPModel

    return CLIPModel(CLIPConfig(text_config=dict(_TEXT), vision_config=dict(_VISION), projection_dim=24))


def _bert() -> Any:
    from transformers import BertConfig, BertModel

    return BertModel(BertConfig(**_TEXT))


def _tied_language_model() -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(**_TEXT, num_key_value_heads=2, tie_word_embeddings=True, layer_types=["full_attention"])
    return Qwen2ForCausalLM(config)


def _llava() -> Any:
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    text = {**_TEXT, "model_type": "llama"}
    vision = {**_VISION, "num_hidden_layers": 2, "model_type": "clip_vision_model"}
    return LlavaForConditionalGeneration(LlavaConfig(text_config=text, vision_config=vision, image_token_index=4))


NETWORKS: dict[str, tuple[str, Callable[[], Any]]] = {
    "clip": ("ImageText", _clip),
    "bert": ("TextEmbedding", _bert),
    "language": ("CausalLM", _tied_language_model),
    "llava": ("CausalLM", _llava),
}


@pytest.fixture(scope="session")
def make_bundle(tmp_path_factory: pytest.TempPathFactory, tokenizer_json: str) -> Callable[[str], ModelBundle]:
    """A tiny model of one of NETWORKS, read from a directory as a user's would be."""
    import json

    def make(name: str) -> ModelBundle:
        task, build = NETWORKS[name]
        torch.manual_seed(0)
        directory: Path = tmp_path_factory.mktemp(name)
        build().save_pretrained(directory)
        (directory / "tokenizer.json").write_text(tokenizer_json)
        settings = {"pad_token": "[PAD]", "eos_token": "[SEP]", "model_max_length": 24}
        (directory / "tokenizer_config.json").write_text(json.dumps(settings))
        images = {"size": {"height": 16, "width": 16}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        (directory / "preprocessor_config.json").write_text(json.dumps(images))
        return load_model(Model.model_validate({"loader": "Transformers", "uri": str(directory)}), task)

    return make


@pytest.fixture(scope="session")
def make_inputs() -> Callable[[ModelBundle], dict[str, torch.Tensor]]:
    def make(bundle: ModelBundle) -> dict[str, torch.Tensor]:
        inputs: dict[str, torch.Tensor] = {}
        preprocessing = bundle.preprocessing
        if preprocessing.image is not None:
            side = preprocessing.image.size
            pixels = torch.randn(len(TEXTS), 3, side, side, generator=torch.Generator().manual_seed(1))
            inputs["pixel_values"] = pixels
        if (text := preprocessing.text) is not None:
            rows = text.encode(text.build_tokenizer(), TEXTS)
            width = max(map(len, rows))
            inputs["input_ids"] = torch.tensor([row + [text.pad_id] * (width - len(row)) for row in rows])
            inputs["attention_mask"] = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        return inputs

    return make
