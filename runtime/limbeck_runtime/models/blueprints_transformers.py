"""Blueprints of transformers networks: BERT-like, ViT, the towers of CLIP and SigLIP, Llama-like language models.

Other networks can lose layers where their layers are one list; width needs a table here.
Left out on purpose: convolutional networks of transformers (timm's are read), encoder-decoder models.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from limbeck_runtime.models.errors import ShrinkError
from limbeck_runtime.models.networks import Record, config_of, transformers_record
from limbeck_runtime.models.slicing import Axes, Axis, Blueprint, Kept, part

# A shrunk network is too small to learn by heart, and what a teacher says is better learned without noise (Beyer et
# al., "Knowledge distillation: a good teacher is patient and consistent", CVPR 2022); on a CPU dropout takes a tenth
# of a step.
_DROPOUTS = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "attention_dropout",
    "activation_dropout",
    "dropout",
)

_CHANNEL_MULTIPLE = 8  # widths that matrix units like; only where there are enough channels

# Names in the tables below: H the residual stream; within a layer A attention heads, K groups of heads that share a
# key and value head, M the inner channels of its MLP; "." an axis that stays whole. A pattern's group is the layer.
_BERT = {
    r"embeddings\.(?:word|position|token_type)_embeddings\.weight": ". H",
    r"embeddings\.LayerNorm\.(?:weight|bias)": "H",
    r"(encoder\.layer\.\d+)\.attention\.self\.(?:query|key|value)\.weight": "A H",
    r"(encoder\.layer\.\d+)\.attention\.self\.(?:query|key|value)\.bias": "A",
    r"(encoder\.layer\.\d+)\.attention\.output\.dense\.weight": "H A",
    r"(encoder\.layer\.\d+)\.intermediate\.dense\.weight": "M H",
    r"(encoder\.layer\.\d+)\.intermediate\.dense\.bias": "M",
    r"(encoder\.layer\.\d+)\.output\.dense\.weight": "H M",
    r"(encoder\.layer\.\d+)\.(?:attention\.)?output\.(?:dense\.bias|LayerNorm\.weight|LayerNorm\.bias)": "H",
}
_CLIP_LAYERS = {
    r"(encoder\.layers\.\d+)\.self_attn\.[qkv]_proj\.weight": "A H",
    r"(encoder\.layers\.\d+)\.self_attn\.[qkv]_proj\.bias": "A",
    r"(encoder\.layers\.\d+)\.self_attn\.out_proj\.weight": "H A",
    r"(encoder\.layers\.\d+)\.mlp\.fc1\.weight": "M H",
    r"(encoder\.layers\.\d+)\.mlp\.fc1\.bias": "M",
    r"(encoder\.layers\.\d+)\.mlp\.fc2\.weight": "H M",
    r"(encoder\.layers\.\d+)\.(?:self_attn\.out_proj|mlp\.fc2)\.bias": "H",
    r"(encoder\.layers\.\d+)\.layer_norm[12]\.(?:weight|bias)": "H",
}
_CLIP_TEXT = _CLIP_LAYERS | {
    r"embeddings\.(?:token|position)_embedding\.weight": ". H",
    r"final_layer_norm\.(?:weight|bias)": "H",
    r"head\.weight": ". H",  # SigLIP's way into the shared space
}
_CLIP_VISION = _CLIP_LAYERS | {
    r"embeddings\.class_embedding": "H",
    r"embeddings\.patch_embedding\.weight": "H . . .",
    r"embeddings\.patch_embedding\.bias": "H",
    r"embeddings\.position_embedding\.weight": ". H",
    r"(?:pre_layrnorm|post_layernorm)\.(?:weight|bias)": "H",
    # SigLIP's pooling by attention: a layer of its own.
    r"head\.probe": ". . H",
    r"(head)\.attention\.in_proj_weight": "A3 H",
    r"(head)\.attention\.in_proj_bias": "A3",
    r"(head)\.attention\.out_proj\.weight": "H A",
    r"head\.attention\.out_proj\.bias": "H",
    r"head\.layernorm\.(?:weight|bias)": "H",
    r"(head)\.mlp\.fc1\.weight": "M H",
    r"(head)\.mlp\.fc1\.bias": "M",
    r"(head)\.mlp\.fc2\.weight": "H M",
    r"head\.mlp\.fc2\.bias": "H",
}
_VIT = {
    r"(?:vit\.)?embeddings\.(?:cls_token|position_embeddings)": ". . H",
    r"(?:vit\.)?embeddings\.patch_embeddings\.projection\.weight": "H . . .",
    r"(?:vit\.)?embeddings\.patch_embeddings\.projection\.bias": "H",
    r"((?:vit\.)?layers\.\d+)\.attention\.[qkv]_proj\.weight": "A H",
    r"((?:vit\.)?layers\.\d+)\.attention\.[qkv]_proj\.bias": "A",
    r"((?:vit\.)?layers\.\d+)\.attention\.o_proj\.weight": "H A",
    r"((?:vit\.)?layers\.\d+)\.mlp\.fc1\.weight": "M H",
    r"((?:vit\.)?layers\.\d+)\.mlp\.fc1\.bias": "M",
    r"((?:vit\.)?layers\.\d+)\.mlp\.fc2\.weight": "H M",
    r"((?:vit\.)?layers\.\d+)\.(?:attention\.o_proj|mlp\.fc2)\.bias": "H",
    r"((?:vit\.)?layers\.\d+)\.layernorm_(?:before|after)\.(?:weight|bias)": "H",
    r"(?:vit\.)?layernorm\.(?:weight|bias)": "H",
    r"classifier\.weight": ". H",
}
_LLAMA = {
    r"model\.(?:language_model\.)?embed_tokens\.weight": ". H",
    r"(model\.(?:language_model\.)?layers\.\d+)\.self_attn\.q_proj\.weight": "Q H",
    r"(model\.(?:language_model\.)?layers\.\d+)\.self_attn\.q_proj\.bias": "Q",
    r"(model\.(?:language_model\.)?layers\.\d+)\.self_attn\.[kv]_proj\.weight": "K H",
    r"(model\.(?:language_model\.)?layers\.\d+)\.self_attn\.[kv]_proj\.bias": "K",
    r"(model\.(?:language_model\.)?layers\.\d+)\.self_attn\.o_proj\.weight": "H Q",
    r"(model\.(?:language_model\.)?layers\.\d+)\.mlp\.(?:gate|up)_proj\.weight": "M H",
    r"(model\.(?:language_model\.)?layers\.\d+)\.mlp\.down_proj\.weight": "H M",
    r"(model\.(?:language_model\.)?layers\.\d+)\.(?:input|post_attention)_layernorm\.weight": "H",
    r"model\.(?:language_model\.)?norm\.weight": "H",
    r"model\.multi_modal_projector\.linear_1\.weight": "H .",
    r"model\.multi_modal_projector\.linear_2\.weight": "H H",
    r"model\.multi_modal_projector\.linear_[12]\.bias": "H",
    r"lm_head\.weight": ". H",
}
_TABLES: dict[str, Mapping[str, str]] = {
    "bert": _BERT,
    "camembert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "vit": _VIT,
    "clip_text_model": _CLIP_TEXT,
    "siglip_text_model": _CLIP_TEXT,
    "clip_vision_model": _CLIP_VISION,
    "siglip_vision_model": _CLIP_VISION,
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
}
_LANGUAGE_MODELS = frozenset({"llama", "mistral", "qwen2", "qwen3"})
# Their last step leads from the stream into a space of fixed width.
_OUTPUT_STAYS = frozenset({"siglip_text_model"})


@dataclass(frozen=True)
class _Widths:
    """Sizes of a network that the tables' letters stand for."""

    hidden: int
    heads: int
    groups: int
    head_width: int
    inner: int

    @classmethod
    def of(cls, config: Any) -> _Widths:
        heads = config.num_attention_heads
        return cls(
            hidden=config.hidden_size,
            heads=heads,
            groups=getattr(config, "num_key_value_heads", None) or heads,
            head_width=getattr(config, "head_dim", None) or config.hidden_size // heads,
            inner=config.intermediate_size,
        )

    def kept(self, percent: int, *, free_hidden: bool) -> _Widths:
        """`free_hidden`: the stream need not be heads times head width, as it must in BERT and ViT."""
        groups = part(self.groups, percent)
        heads = groups * (self.heads // self.groups)
        hidden = part(self.hidden, percent, _multiple(self.hidden)) if free_hidden else heads * self.head_width
        inner = part(self.inner, percent, _multiple(self.inner))
        return replace(self, hidden=hidden, heads=heads, groups=groups, inner=inner)

    def of_space(self, name: str) -> int:
        return {"H": self.hidden, "A": self.heads, "K": self.groups, "M": self.inner}[name]


def _multiple(channels: int) -> int:
    return _CHANNEL_MULTIPLE if channels >= 8 * _CHANNEL_MULTIPLE else 1


def transformers_blueprint(network: nn.Module, record: Record, width_percent: int, *, field: str) -> Blueprint:
    """The blueprint of a transformers network. Raises ShrinkError for one that cannot be cut so."""
    whole = config_of(record)
    config = whole.get_text_config() if hasattr(whole, "text_config") else whole
    stage, count = _layers(network, config.num_hidden_layers, field)
    table = _TABLES.get(config.model_type)
    if table is None and width_percent < 100:
        raise ShrinkError(
            f"`{field}.widthPercent` cannot be used on a {config.model_type}; use depthPercent, or give a smaller "
            f"model (width is known for {', '.join(sorted(_TABLES))})"
        )
    free = config.model_type in _LANGUAGE_MODELS
    widths = _Widths.of(config) if table is not None else None
    smaller = widths.kept(width_percent, free_hidden=free) if widths else None

    def resized(kept: Kept) -> Record:
        new_whole = config_of(record)
        new = new_whole.get_text_config() if hasattr(new_whole, "text_config") else new_whole
        new.num_hidden_layers = len(kept.layers[stage])
        if getattr(new, "layer_types", None):
            new.layer_types = [new.layer_types[index] for index in kept.layers[stage]]
        for name in _DROPOUTS:
            if getattr(new, name, None):
                setattr(new, name, 0.0)
        if smaller is not None and width_percent < 100:
            new.hidden_size, new.intermediate_size = smaller.hidden, smaller.inner
            new.num_attention_heads = smaller.heads
            if free:
                new.num_key_value_heads, new.head_dim = smaller.groups, smaller.head_width
        return transformers_record(record["head"], new_whole, record["arguments"])

    axes: dict[str, Axes] = {}
    spaces: dict[str, int] = {}
    wanted: dict[str, int] = {}
    if table is not None and widths is not None and smaller is not None and width_percent < 100:
        for name in network.state_dict():
            axes[name] = _axes(name, table, widths)
            for axis in axes[name]:
                if axis is not None:
                    letter = axis.space.rpartition("@")[2]
                    spaces[axis.space], wanted[axis.space] = widths.of_space(letter), smaller.of_space(letter)
    output = "H" if "H" in spaces and config.model_type not in _OUTPUT_STAYS else None
    return Blueprint({stage: count}, spaces, wanted, axes, resized, output)


def _axes(name: str, table: Mapping[str, str], widths: _Widths) -> Axes:
    for pattern, letters in table.items():
        match = re.fullmatch(pattern, name)
        if match:
            layer = match[1] if match.re.groups else ""
            return tuple(_axis(letter, layer, widths) for letter in letters.split())
    return ()


def _axis(letter: str, layer: str, widths: _Widths) -> Axis | None:
    if letter == ".":
        return None
    if letter == "H":
        return Axis("H")
    if letter == "M":
        return Axis(f"{layer}@M")
    if letter == "Q":  # query heads go with the key and value head that they share
        return Axis(f"{layer}@K", per_unit=widths.head_width * (widths.heads // widths.groups))
    repeats = 3 if letter == "A3" else 1
    return Axis(f"{layer}@{letter[0]}", per_unit=widths.head_width, repeats=repeats)


def _layers(network: nn.Module, count: int, field: str) -> tuple[str, int]:
    """The path of the one list of layers that is as long as the configuration says."""
    lists = [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count and "vision" not in name
    ]
    outermost = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
    if len(outermost) != 1:
        raise ShrinkError(
            f"`{field}` cannot be used on a {type(network).__name__}, whose layers are not one list; "
            "give a smaller model instead"
        )
    return outermost[0], count
