"""Tiny models of the real transformers classes in directories, as a user would have them, and a tokenizer for them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

CAPTIONS = (
    "a red apple",
    "a grinning face with big eyes",
    "a house with a garden",
    "two cats asleep on a red sofa",
    "a bicycle",
)
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "<image>")


@pytest.fixture(scope="session")
def captions() -> tuple[str, ...]:
    return CAPTIONS


@pytest.fixture(scope="session")
def tokenizer_json() -> str:
    """A word-piece tokenizer trained on the captions; [CLS] text [SEP]."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=90, special_tokens=list(_SPECIAL), show_progress=False)
    tokenizer.train_from_iterator(CAPTIONS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer.to_str()


@pytest.fixture(scope="session")
def save_model(tmp_path_factory: pytest.TempPathFactory, tokenizer_json: str) -> Callable[..., Path]:
    """Saves a network of the given class and configuration with weights from a seed, tokenizer and all."""

    def save(name: str, network: Any, **files: dict[str, Any]) -> Path:
        directory = tmp_path_factory.mktemp(name)
        network.save_pretrained(directory)
        (directory / "tokenizer.json").write_text(tokenizer_json)
        settings = {"pad_token": "[PAD]", "eos_token": "[SEP]", "model_max_length": 12}
        (directory / "tokenizer_config.json").write_text(json.dumps(settings))
        for file, content in files.items():
            (directory / f"{file}.json").write_text(json.dumps(content))
        return directory

    return save


_TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
_TEXT = {
    **_TOWER,
    "vocab_size": 90,
    "max_position_embeddings": 12,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
_VISION = {**_TOWER, "image_size": 16, "patch_size": 8}
_IMAGES = {
    "do_center_crop": True,
    "crop_size": {"height": 16, "width": 16},
    "size": {"shortest_edge": 20},
    "image_mean": [0.4, 0.5, 0.6],
    "image_std": [0.2, 0.3, 0.4],
    "resample": 3,
}


@pytest.fixture(scope="session")
def clip_network() -> Any:
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(1)
    return CLIPModel(CLIPConfig(text_config=dict(_TEXT), vision_config=dict(_VISION), projection_dim=24)).eval()


@pytest.fixture(scope="session")
def clip_directory(save_model: Callable[..., Path], clip_network: Any) -> Path:
    return save_model("clip", clip_network, preprocessor_config=_IMAGES)


@pytest.fixture(scope="session")
def siglip_network() -> Any:
    from transformers import SiglipConfig, SiglipModel

    torch.manual_seed(2)
    return SiglipModel(SiglipConfig(text_config=dict(_TEXT), vision_config=dict(_VISION))).eval()


@pytest.fixture(scope="session")
def siglip_directory(save_model: Callable[..., Path], siglip_network: Any) -> Path:
    images = {"size": {"height": 16, "width": 16}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 3}
    return save_model("siglip", siglip_network, preprocessor_config=images)


@pytest.fixture(scope="session")
def bert_network() -> Any:
    from transformers import BertConfig, BertModel

    torch.manual_seed(3)
    return BertModel(BertConfig(**_TEXT)).eval()


@pytest.fixture(scope="session")
def bert_directory(save_model: Callable[..., Path], bert_network: Any) -> Path:
    return save_model("bert", bert_network)


@pytest.fixture(scope="session")
def vit_directory(save_model: Callable[..., Path]) -> Path:
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(4)
    return save_model("vit", ViTForImageClassification(ViTConfig(**_VISION, num_labels=5)), preprocessor_config=_IMAGES)


@pytest.fixture(scope="session")
def llama_network() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(5)
    return LlamaForCausalLM(LlamaConfig(**_TEXT, num_key_value_heads=2)).eval()


@pytest.fixture(scope="session")
def llama_directory(save_model: Callable[..., Path], llama_network: Any) -> Path:
    return save_model("llama", llama_network)


@pytest.fixture(scope="session")
def llava_network() -> Any:
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    torch.manual_seed(6)
    text = {**_TEXT, "model_type": "llama", "max_position_embeddings": 24}
    vision = {**_VISION, "model_type": "clip_vision_model"}
    return LlavaForConditionalGeneration(
        LlavaConfig(text_config=text, vision_config=vision, image_token_index=4)
    ).eval()


@pytest.fixture(scope="session")
def llava_directory(save_model: Callable[..., Path], llava_network: Any) -> Path:
    return save_model("llava", llava_network, preprocessor_config=_IMAGES)


@pytest.fixture(scope="session")
def whisper_network() -> Any:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    torch.manual_seed(7)
    config = WhisperConfig(
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_mel_bins=8,
        vocab_size=90,
        max_source_positions=10,
        max_target_positions=12,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        decoder_start_token_id=2,
        begin_suppress_tokens=None,
    )
    return WhisperForConditionalGeneration(config).eval()


@pytest.fixture(scope="session")
def whisper_directory(save_model: Callable[..., Path], whisper_network: Any) -> Path:
    return save_model("whisper", whisper_network, preprocessor_config={"feature_size": 8, "chunk_length": 0.2})


@pytest.fixture(scope="session")
def make_inputs() -> Callable[..., dict[str, torch.Tensor]]:
    """A batch as the data loader would make it of the captions and of random images."""

    def make(preprocessing: Any, *, seed: int = 0) -> dict[str, torch.Tensor]:
        from limbeck_runtime.models.preprocessing import Padding

        inputs: dict[str, torch.Tensor] = {}
        generator = torch.Generator().manual_seed(seed)
        if preprocessing.image is not None:
            side = preprocessing.image.size
            inputs["pixel_values"] = torch.randn(len(CAPTIONS), 3, side, side, generator=generator)
        text = preprocessing.text
        if text is not None:
            rows = text.encode(text.build_tokenizer(), CAPTIONS)
            length = text.max_length if text.padding is Padding.MAX_LENGTH else max(map(len, rows))
            inputs["input_ids"] = torch.tensor([row + [text.pad_id] * (length - len(row)) for row in rows])
            mask = [[1] * len(row) + [0] * (length - len(row)) for row in rows]
            inputs["attention_mask"] = torch.tensor(mask)
        return inputs

    return make


@pytest.fixture(scope="session")
def tied_directory(save_model: Callable[..., Path]) -> Path:
    """A language model whose output matrix is its embedding table."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(8)
    settings = {**_TEXT, "num_key_value_heads": 2, "tie_word_embeddings": True, "layer_types": ["full_attention"] * 4}
    return save_model("qwen2", Qwen2ForCausalLM(Qwen2Config(**settings)))
