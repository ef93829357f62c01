"""A network that was widened with what does nothing shrinks back to the network it came from, family by family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import nn

from limbeck_runtime.models.blueprints_timm import timm_blueprint
from limbeck_runtime.models.blueprints_transformers import transformers_blueprint
from limbeck_runtime.models.networks import Record, build_network, timm_record, transformers_record
from limbeck_runtime.models.shrink import shrink_network
from limbeck_runtime.models.slicing import Axis, Blueprint

IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randint(5, 60, (3, 9), generator=torch.Generator().manual_seed(0))


def _sizes(scale: int) -> dict[str, int]:
    return {
        "hidden_size": 16 * scale,
        "intermediate_size": 24 * scale,
        "num_attention_heads": 2 * scale,
        "num_hidden_layers": 2,
    }


def _text(name: str, scale: int, **settings: Any) -> Record:
    from transformers import AutoConfig

    sizes = {"vocab_size": 60, "max_position_embeddings": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    head = {"llama": "CausalLM", "qwen2": "CausalLM", "siglip_text_model": "SiglipText"}.get(name, "Encoder")
    arguments = {"add_pooling_layer": False} if name == "bert" else {}
    config = AutoConfig.for_model(name, **_sizes(scale), **sizes, **settings)
    return transformers_record(head, config, arguments)


def _vision(name: str, scale: int) -> Record:
    from transformers import AutoConfig

    config = AutoConfig.for_model(name, **_sizes(scale), image_size=32, patch_size=16)
    return transformers_record("ImageClassification" if name == "vit" else "Encoder", config)


FAMILIES: dict[str, Callable[[int], Record]] = {
    "bert": lambda scale: _text("bert", scale),
    "clip text": lambda scale: _text("clip_text_model", scale),
    "siglip text": lambda scale: _text("siglip_text_model", scale, projection_size=12),
    "llama": lambda scale: _text("llama", scale, num_key_value_heads=2 * scale),
    "grouped llama": lambda scale: _text("llama", scale, num_key_value_heads=scale, head_dim=6),
    "qwen2": lambda scale: _text("qwen2", scale, num_key_value_heads=scale),
    "vit": lambda scale: _vision("vit", scale),
    "clip vision": lambda scale: _vision("clip_vision_model", scale),
    "siglip vision": lambda scale: _vision("siglip_vision_model", scale),
    "timm vit": lambda scale: timm_record(
        "vit_small_patch14_reg4_dinov2",
        {
            "img_size": 32,
            "patch_size": 16,
            "embed_dim": 16 * scale,
            "num_heads": 2 * scale,
            "depth": 2,
            "num_classes": 5,
        },
    ),
    "convnext": lambda scale: timm_record(
        "convnext_atto",
        {"dims": [8 * scale, 16 * scale, 24 * scale, 32 * scale], "depths": [1, 1, 2, 1], "num_classes": 5},
    ),
    "resnet of basic blocks": lambda scale: timm_record(
        "resnet18",
        {"channels": [8 * scale, 16 * scale, 16 * scale, 24 * scale], "layers": [2, 2, 1, 1], "num_classes": 5},
    ),
    "resnet of bottlenecks": lambda scale: timm_record(
        "resnet26",
        {"channels": [24 * scale, 8 * scale, 16 * scale, 16 * scale], "layers": [2, 1, 1, 1], "num_classes": 5},
    ),
    "resnet with pooled shortcuts": lambda scale: timm_record(
        "resnet26d",
        {"channels": [24 * scale, 8 * scale, 16 * scale, 16 * scale], "layers": [1, 1, 1, 1], "num_classes": 5},
    ),
}


def _run(network: nn.Module, record: Record) -> torch.Tensor:
    with torch.no_grad():
        if record["library"] == "timm":
            result: torch.Tensor = network(IMAGES)
            return result
        reads_text = "vocab_size" in record["config"]
        output = network(input_ids=TOKENS) if reads_text else network(pixel_values=IMAGES)
    for name in ("logits", "pooler_output", "last_hidden_state"):
        found = getattr(output, name, None)
        if isinstance(found, torch.Tensor):
            return found
    raise AssertionError(output)


def _blueprint(network: nn.Module, record: Record) -> Blueprint:
    find = timm_blueprint if record["library"] == "timm" else transformers_blueprint
    return find(network, record, 50, field="shrink")


def _reads(name: str, dimension: int, rank: int) -> bool:
    """Whether this axis of a tensor takes the stream in, rather than writing to it."""
    writes = ("embed", "token", "pos", "probe")
    return rank > 1 and dimension == 1 and not any(word in name for word in writes)


def _widen(name: str, small: torch.Tensor, blueprint: Blueprint, chosen: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The small tensor at the chosen units. Other units of a layer's own spaces are zero; those of the stream repeat
    what is written, which leaves mean and variance as they are, and are not read."""
    wide = small
    for dimension, axis in enumerate(blueprint.axes.get(name, ())):
        if axis is None:
            continue
        units = chosen[axis.space]
        others = torch.tensor([unit for unit in range(blueprint.spaces[axis.space]) if unit not in units.tolist()])
        num_units = blueprint.spaces[axis.space]
        result = torch.zeros(*wide.shape[:dimension], _length(axis, num_units), *wide.shape[dimension + 1 :])
        result.index_copy_(dimension, axis.indices(units, num_units), wide)
        if "@" not in axis.space and not _reads(name, dimension, small.dim()):
            result.index_copy_(dimension, axis.indices(others, num_units), wide)
        wide = result
    return wide


def _length(axis: Axis, num_units: int) -> int:
    return num_units * axis.per_unit * axis.repeats


def _shake(network: nn.Module, seed: int) -> None:
    """Weights of random sign and equal size: no unit is stronger than another but by what it is joined to."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                sign = torch.randint(0, 2, tensor.shape, generator=generator) * 2 - 1
                tensor.copy_(torch.full_like(tensor, 1.3) if "running_var" in name else 0.3 * sign)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_widened_network_shrinks_back_to_what_it_was(family: str) -> None:
    make = FAMILIES[family]
    small, large = build_network(make(1)), build_network(make(2))
    _shake(small, seed=1)
    blueprint = _blueprint(large, make(2))
    generator = torch.Generator().manual_seed(2)
    chosen = {
        space: torch.randperm(units, generator=generator)[: units // 2].sort().values
        for space, units in sorted(blueprint.spaces.items())
    }
    state = {name: _widen(name, tensor, blueprint, chosen) for name, tensor in small.state_dict().items()}
    large.load_state_dict(state)
    expected = _run(small, make(1))
    wide = _run(large, make(2))
    if wide.shape != expected.shape:  # it is the stream itself
        assert blueprint.output is not None
        wide = wide[..., chosen[blueprint.output]]
    torch.testing.assert_close(wide, expected, rtol=1e-3, atol=1e-4)

    shrunk, record, kept, _ = shrink_network(large, make(2), 100, 50, field="shrink")

    assert kept.units == {space: tuple(units.tolist()) for space, units in chosen.items()}
    torch.testing.assert_close(_run(shrunk, record), expected, rtol=1e-4, atol=1e-5)


def test_a_narrower_first_stage_takes_its_channels_of_the_stem() -> None:
    settings = {"channels": [64, 32, 32, 32], "layers": [2, 1, 1, 1], "num_classes": 5}
    record = timm_record("resnet18", settings)
    large = build_network(record)
    _shake(large, seed=3)
    chosen = torch.arange(0, 64, 2)
    others = torch.arange(1, 64, 2)
    with torch.no_grad():
        for name, tensor in large.state_dict().items():
            # Nothing reads the other half of the first stage, but for its first convolution, which reads the stem.
            if name in ("layer1.1.conv1.weight", "layer2.0.conv1.weight", "layer2.0.downsample.0.weight"):
                tensor[:, others] = 0.0
    whole = {name: tensor.clone() for name, tensor in large.state_dict().items()}
    shrunk, new_record, kept, _ = shrink_network(large, record, 100, 50, field="shrink")
    assert kept.units["layer1"] == tuple(chosen.tolist())
    # The deeper stages are cut too; what leaves the first one is what the large network has there.
    with torch.no_grad():
        inner = {name for name in kept.units if name.startswith("layer1.")}
        for name in inner:
            gone = [unit for unit in range(64) if unit not in kept.units[name]]
            block = name.split("@")[0]
            whole[f"{block}.conv2.weight"][:, gone] = 0.0
        large.load_state_dict(whole)
        expected = large.layer1(large.maxpool(large.act1(large.bn1(large.conv1(IMAGES)))))
        found = shrunk.layer1(shrunk.maxpool(shrunk.act1(shrunk.bn1(shrunk.conv1(IMAGES)))))
    torch.testing.assert_close(found, expected[:, chosen], rtol=1e-3, atol=1e-3)
    assert new_record["arguments"]["channels"][0] == 32
