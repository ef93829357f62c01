"""A smaller model from a larger one: evenly spaced layers, the strongest channels, weights copied.

Depth by layer subset follows DistilBERT (Sanh et al., 2019), width by magnitude Minitron (Muralidharan et al., 2024)
in its data-free form. What a model gives keeps its shape: embeddings as wide, classes and tokens as many.
Left out on purpose: pruning with data or gradients (the prune step).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from pydantic import BaseModel, ConfigDict
from torch import nn

from limbeck_runtime.models import names
from limbeck_runtime.models.adapters import (
    CausalLanguageModel,
    TextEmbedder,
    TimmClassifier,
    TransformersClassifier,
)
from limbeck_runtime.models.blueprints_timm import timm_blueprint
from limbeck_runtime.models.blueprints_transformers import transformers_blueprint
from limbeck_runtime.models.bundle import Architecture, ModelBundle
from limbeck_runtime.models.dual_encoder import TOWERS, DualEncoder, dual_encoder_record
from limbeck_runtime.models.errors import ShrinkError
from limbeck_runtime.models.networks import Record
from limbeck_runtime.models.slicing import Kept, cut
from limbeck_runtime.models.towers import ImageTower, TextTower


class NetworkCut(BaseModel):
    """What stayed of one network: layer indices by list of layers, channel indices by space, both of the original.

    `H` is the residual stream; LAYER@A, LAYER@K and LAYER@M are a layer's heads, head groups and inner channels; of
    convolutional networks a stage's name is its stream, BLOCK@N what leaves the block's N-th convolution.
    """

    model_config = ConfigDict(frozen=True)

    layers: Mapping[str, tuple[int, ...]]
    channels: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, kept: Kept) -> Self:
        return cls(layers=kept.layers, channels=kept.units)


class ShrinkRecord(BaseModel):
    """How a model was made smaller, for audit. JSON by pydantic's model_dump_json."""

    model_config = ConfigDict(frozen=True)

    depth_percent: int
    width_percent: int
    num_parameters_before: int
    num_parameters_after: int
    networks: Mapping[str, NetworkCut]


@dataclass(frozen=True)
class ShrunkTower:
    """A smaller tower. `kept_outputs` says which of the original's output features it still gives, in their order."""

    tower: ImageTower | TextTower
    record: Record
    kept: Kept
    kept_outputs: tuple[int, ...]


def shrink(
    bundle: ModelBundle,
    depth_percent: int | None = None,
    width_percent: int | None = None,
    *,
    field: str = "spec.student.shrink",
) -> tuple[ModelBundle, ShrinkRecord]:
    """A smaller model of the same task, and what was kept. `bundle` stays as it is; None keeps all.

    Raises ShrinkError where the model's networks cannot be cut so.
    """
    depth, width = depth_percent or 100, width_percent or 100
    architecture = bundle.architecture
    if architecture.edits:
        raise ShrinkError(f"`{field}` cannot be used on a model that was compressed already; shrink it first")
    if architecture.kind not in _SHRINKERS:
        raise ShrinkError(
            f"`{field}` cannot be used on a {architecture.kind}; give the smaller model under `spec.student.model`"
        )
    module, settings, cuts = _SHRINKERS[architecture.kind](bundle.module, architecture.settings, depth, width, field)
    smaller = ModelBundle(module.eval(), Architecture(architecture.kind, settings), bundle.preprocessing, bundle.task)
    record = ShrinkRecord(
        depth_percent=depth,
        width_percent=width,
        num_parameters_before=bundle.num_parameters(),
        num_parameters_after=smaller.num_parameters(),
        networks={path: NetworkCut.of(kept) for path, kept in cuts.items()},
    )
    return smaller, record


def shrink_network(
    network: nn.Module, record: Record, depth_percent: int, width_percent: int, *, field: str
) -> tuple[nn.Module, Record, Kept, tuple[int, ...] | None]:
    """The smaller network, its record, what was kept, and the kept output features (None: all)."""
    find = timm_blueprint if record["library"] == "timm" else transformers_blueprint
    blueprint = find(network, record, width_percent, field=field)
    smaller, new_record, kept = cut(network, blueprint, depth_percent)
    return smaller, new_record, kept, kept.units.get(blueprint.output) if blueprint.output else None


def shrink_tower(
    tower: ImageTower | TextTower,
    record: Mapping[str, Any],
    depth_percent: int | None,
    width_percent: int | None,
    *,
    field: str,
) -> ShrunkTower:
    """A smaller tower; its output is narrower where the stream is. Raises ShrinkError."""
    network, network_record, kept, outputs = shrink_network(
        tower.network, record["network"], depth_percent or 100, width_percent or 100, field=field
    )
    kept_outputs = outputs if outputs is not None else tuple(range(tower.width))
    width = len(kept_outputs)
    smaller: ImageTower | TextTower
    if isinstance(tower, TextTower):
        smaller = TextTower(network, tower.pooling, width, masked=tower.masked)
    else:
        smaller = ImageTower(network, tower.pooling, width)
    new_record = {**record, "network": network_record, "width": width}
    return ShrunkTower(smaller.eval(), new_record, kept, kept_outputs)


def projection_matrix(projection: nn.Module, width: int) -> torch.Tensor:
    """The weights (D, W) of a projection; of an absent one, the identity."""
    if isinstance(projection, nn.Linear):
        return projection.weight.detach()
    return torch.eye(width)


Cut = tuple[nn.Module, dict[str, Any], dict[str, Kept]]


def _dual_encoder(module: Any, settings: Mapping[str, Any], depth: int, width: int, field: str) -> Cut:
    towers = {
        name: shrink_tower(module.get_submodule(name), settings[name], depth, width, field=field) for name in TOWERS
    }
    projected = tuple(
        name for name in TOWERS if name in settings["projected"] or towers[name].tower.width != module.embed_dim
    )
    image, text = towers["image"].tower, towers["text"].tower
    assert isinstance(image, ImageTower)
    assert isinstance(text, TextTower)
    has_bias = module.logit_bias is not None
    smaller = DualEncoder(image, text, module.embed_dim, projected=projected, has_logit_bias=has_bias)
    for name in projected:
        _narrow(smaller, module, name, towers[name])
    smaller.log_scale.data.copy_(module.log_scale.detach())
    if smaller.logit_bias is not None:
        smaller.logit_bias.data.copy_(module.logit_bias.detach())
    # Freezing was for the original: cut layers must learn.
    new_settings = dual_encoder_record(
        towers["image"].record,
        towers["text"].record,
        module.embed_dim,
        projected=projected,
        has_logit_bias=has_bias,
    )
    return smaller, new_settings, {name: tower.kept for name, tower in towers.items()}


def _text_embedder(module: Any, settings: Mapping[str, Any], depth: int, width: int, field: str) -> Cut:
    text = shrink_tower(module.text, settings["text"], depth, width, field=field)
    assert isinstance(text.tower, TextTower)
    projected = settings["projected"] or text.tower.width != module.embed_dim
    smaller = TextEmbedder(text.tower, module.embed_dim, projected=projected)
    if projected:
        _narrow(smaller, module, "text", text)
    new_settings = {"text": text.record, "embed_dim": module.embed_dim, "projected": projected}
    return smaller, new_settings, {"text": text.kept}


def _narrow(smaller: nn.Module, original: nn.Module, side: str, tower: ShrunkTower) -> None:
    """The projection of the kept features alone, so that embeddings keep their width and their meaning."""
    matrix_DW = projection_matrix(
        original.get_submodule(f"{side}_projection"),
        original.get_submodule(side).width,  # type: ignore[arg-type]
    )
    own = smaller.get_submodule(f"{side}_projection")
    assert isinstance(own, nn.Linear)
    own.weight.data.copy_(matrix_DW[:, list(tower.kept_outputs)])


def _whole_network(wrapper: type[nn.Module]) -> Any:
    def shrink_it(module: Any, settings: Mapping[str, Any], depth: int, width: int, field: str) -> Cut:
        network, record, kept, _ = shrink_network(module.network, settings["network"], depth, width, field=field)
        return wrapper(network), {**copy.deepcopy(dict(settings)), "network": record}, {"network": kept}

    return shrink_it


_SHRINKERS: dict[str, Any] = {
    names.DUAL_ENCODER: _dual_encoder,
    names.TEXT_EMBEDDER: _text_embedder,
    names.TIMM_CLASSIFIER: _whole_network(TimmClassifier),
    names.TRANSFORMERS_CLASSIFIER: _whole_network(TransformersClassifier),
    names.CAUSAL_LANGUAGE_MODEL: _whole_network(CausalLanguageModel),
}
