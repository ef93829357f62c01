"""Small models of real architectures as bundles, inputs for them, and what pruning asks of data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
from limbeck_runtime.pruning.scores import Evidence
from limbeck_runtime.pruning.signals import signed_outputs

_TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
_TEXT = {**_TOWER, "vocab_size": 60, "max_position_embeddings": 12, "pad_token_id": 0}
_IDS = {"bos_token_id": 2, "eos_token_id": 3}


def _bert(projected: bool = True) -> Architecture:
    from transformers import BertConfig

    text = text_tower_record(transformers_record("Encoder", BertConfig(**_TEXT)), "Mean", 32)
    settings = {"text": text, "embed_dim": 24 if projected else 32, "projected": projected}
    return Architecture(names.TEXT_EMBEDDER, settings)


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
    "embedder": lambda: _bert(projected=False),
    "clip": _clip,
    "llama": _llama,
    "gpt2": _gpt2,
    "resnet": _timm("resnet18", channels=[8, 8, 16, 16]),
    "mobilenet": _timm("mobilenetv3_small_050"),
    "vit": _timm("vit_tiny_patch16_224", depth=2, img_size=32, embed_dim=48, num_heads=3),
}


@pytest.fixture(scope="session")
def make_bundle() -> Callable[[str], ModelBundle]:
    """A model by its name in MODELS, its weights from a seed, its statistics not those of a fresh batch norm."""

    def make(name: str) -> ModelBundle:
        architecture = MODELS[name]()
        module = rebuild(architecture, seed=1)
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for own, buffer in module.named_buffers():
                if own.endswith(("running_mean", "running_var")):
                    buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
            for parameter in module.parameters():
                if parameter.dim() == 1:
                    parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
        return ModelBundle(module, architecture, Preprocessing(), names.TASK_OF_KIND[architecture.kind])

    return make


@pytest.fixture(scope="session")
def make_inputs() -> Callable[..., dict[str, Tensor]]:
    """Inputs that the model of a name reads."""

    def make(name: str, count: int = 3, seed: int = 0) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        side = 16 if name == "clip" else 32
        images = {"pixel_values": torch.randn(count, 3, side, side, generator=generator)}
        texts = {
            "input_ids": torch.randint(4, 60, (count, 8), generator=generator),
            "attention_mask": torch.ones(count, 8, dtype=torch.long),
        }
        if name == "clip":
            return {**images, **texts}
        return images if name in ("resnet", "mobilenet", "vit") else texts

    return make


@pytest.fixture(scope="session")
def make_evidence(make_inputs: Callable[..., dict[str, Tensor]]) -> Callable[..., Evidence]:
    """Two batches and a loss for the model of a name."""

    def make(name: str) -> Evidence:
        batches: list[Mapping[str, Tensor]] = [make_inputs(name, seed=seed) for seed in (5, 6)]
        return Evidence(batches, signed_outputs(3), seed=4)

    return make
