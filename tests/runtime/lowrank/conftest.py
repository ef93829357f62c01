"""Small models of real architectures as bundles, and inputs for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck_runtime.models import names
from limbeck_runtime.models.bundle import Architecture, ModelBundle
from limbeck_runtime.models.dual_encoder import dual_encoder_record
from limbeck_runtime.models.networks import timm_record, transformers_record
from limbeck_runtime.models.preprocessing import Preprocessing
from limbeck_runtime.models.rebuilding import rebuild
from limbeck_runtime.models.towers import image_tower_record, text_tower_record

_TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
_TEXT = {**_TOWER, "vocab_size": 60, "max_position_embeddings": 12, "pad_token_id": 0}
_IDS = {"bos_token_id": 2, "eos_token_id": 3}


def _bert() -> Architecture:
    from transformers import BertConfig

    text = text_tower_record(transformers_record("Encoder", BertConfig(**_TEXT)), "Mean", 32)
    return Architecture(names.TEXT_EMBEDDER, {"text": text, "embed_dim": 24, "projected": True})


def _clip() -> Architecture:
    from transformers import CLIPTextConfig, CLIPVisionConfig

    vision = CLIPVisionConfig(**_TOWER, image_size=16, patch_size=8)
    image = image_tower_record(transformers_record("Encoder", vision), "Pooler", 32)
    text = text_tower_record(transformers_record("Encoder", CLIPTextConfig(**_TEXT, **_IDS)), "Pooler", 32)
    return Architecture(names.DUAL_ENCODER, dual_encoder_record(image, text, 24))


def _llama() -> Architecture:
    from transformers import LlamaConfig

    config = LlamaConfig(**_TEXT, **_IDS, num_key_value_heads=2)
    return Architecture(names.CAUSAL_LANGUAGE_MODEL, {"network": transformers_record("CausalLM", config)})


def _gpt2() -> Architecture:
    from transformers import GPT2Config

    config = GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=60, n_positions=12, **_IDS)
    return Architecture(names.CAUSAL_LANGUAGE_MODEL, {"network": transformers_record("CausalLM", config)})


def _timm(name: str, **settings: Any) -> Callable[[], Architecture]:
    return lambda: Architecture(names.TIMM_CLASSIFIER, {"network": timm_record(name, {"num_classes": 4, **settings})})


MODELS: dict[str, Callable[[], Architecture]] = {
    "bert": _bert,
    "clip": _clip,
    "llama": _llama,
    "gpt2": _gpt2,
    "resnet": _timm("resnet18", channels=[8, 8, 16, 16]),
    "mobilenet": _timm("mobilenetv3_small_050"),
    "vit": _timm("vit_tiny_patch16_224", depth=2, img_size=32, embed_dim=48, num_heads=3),
}


@pytest.fixture(scope="session")
def make_bundle() -> Callable[[str], ModelBundle]:
    """A model by its name in MODELS, its weights from a seed, its biases not zero."""

    def make(name: str) -> ModelBundle:
        architecture = MODELS[name]()
        module = rebuild(architecture, seed=1)
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.dim() == 1:
                    parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
        return ModelBundle(module, architecture, Preprocessing(), names.TASK_OF_KIND[architecture.kind])

    return make


@pytest.fixture(scope="session")
def make_inputs() -> Callable[..., dict[str, Tensor]]:
    """Inputs that the model of a name reads; the last three tokens of the first text are padding."""

    def make(name: str, count: int = 3, seed: int = 0) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        side = 16 if name == "clip" else 32
        images = {"pixel_values": torch.randn(count, 3, side, side, generator=generator)}
        mask = torch.ones(count, 8, dtype=torch.long)
        mask[0, 5:] = 0
        texts = {"input_ids": torch.randint(4, 60, (count, 8), generator=generator), "attention_mask": mask}
        if name == "clip":
            return {**images, **texts}
        return images if name in ("resnet", "mobilenet", "vit") else texts

    return make
