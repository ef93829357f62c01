"""Blueprints of timm networks: ResNet, ConvNeXt, VisionTransformer.

Left out on purpose: grouped and wide ResNets in width, and searched networks (MobileNet, EfficientNet), which come in
many sizes by name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from limbeck_runtime.models.errors import ShrinkError
from limbeck_runtime.models.networks import Record, timm_record
from limbeck_runtime.models.slicing import Axes, Axis, Blueprint, Kept, part

_CHANNEL_MULTIPLE = 8


def timm_blueprint(network: nn.Module, record: Record, width_percent: int, *, field: str) -> Blueprint:
    """The blueprint of a timm network. Raises ShrinkError for one that cannot be cut so."""
    kind = type(network).__name__
    if kind not in _KINDS:
        raise ShrinkError(
            f"`{field}` cannot be used on {record['architecture']} (a {kind}); name a smaller model of timm instead"
        )
    return _KINDS[kind](network, record, width_percent, field)


def _with_arguments(record: Record, **arguments: Any) -> Record:
    return timm_record(record["architecture"], {**record["arguments"], **arguments})


def _vision_transformer(network: Any, record: Record, width_percent: int, field: str) -> Blueprint:
    attention = network.blocks[0].attn
    heads, hidden = attention.num_heads, network.embed_dim
    head_width, inner = hidden // heads, network.blocks[0].mlp.fc1.out_features
    kept_heads = part(heads, width_percent)
    ratio = inner / hidden
    kept_inner = int(kept_heads * head_width * ratio)
    sizes = {"H": (hidden, kept_heads * head_width), "A": (heads, kept_heads), "M": (inner, kept_inner)}
    table = {
        r"(?:cls_token|pos_embed|reg_token)": ". . H",
        r"patch_embed\.proj\.weight": "H . . .",
        r"patch_embed\.proj\.bias": "H",
        r"(?:norm|fc_norm|norm_pre)\.(?:weight|bias)": "H",
        r"head\.weight": ". H",
        r"(blocks\.\d+)\.attn\.qkv\.weight": "A3 H",
        r"(blocks\.\d+)\.attn\.qkv\.bias": "A3",
        r"(blocks\.\d+)\.attn\.proj\.weight": "H A",
        r"(blocks\.\d+)\.attn\.proj\.bias": "H",
        r"(blocks\.\d+)\.mlp\.fc1\.weight": "M H",
        r"(blocks\.\d+)\.mlp\.fc1\.bias": "M",
        r"(blocks\.\d+)\.mlp\.fc2\.weight": "H M",
        r"(blocks\.\d+)\.mlp\.fc2\.bias": "H",
        r"(blocks\.\d+)\.(?:norm[12]\.(?:weight|bias)|ls[12]\.gamma)": "H",
    }

    def axis(letter: str, layer: str) -> Axis | None:
        if letter == ".":
            return None
        if letter == "H":
            return Axis("H")
        width = head_width if letter[0] == "A" else 1
        return Axis(f"{layer}@{letter[0]}", per_unit=width, repeats=3 if letter == "A3" else 1)

    axes = _match(network, table, axis)
    spaces, wanted = _sizes(axes, lambda space: sizes[space.rpartition("@")[2]])

    def resized(kept: Kept) -> Record:
        return _with_arguments(
            record,
            depth=len(kept.layers["blocks"]),
            embed_dim=kept_heads * head_width,
            num_heads=kept_heads,
            mlp_ratio=ratio,
        )

    return Blueprint({"blocks": len(network.blocks)}, spaces, wanted, axes, resized, output="H")


def _convnext(network: Any, record: Record, width_percent: int, field: str) -> Blueprint:
    dims = [stage.blocks[0].conv_dw.out_channels for stage in network.stages]
    inners = [stage.blocks[0].mlp.fc1.weight.shape[0] for stage in network.stages]
    new_dims = [part(dim, width_percent, _CHANNEL_MULTIPLE if dim >= 32 else 1) for dim in dims]
    axes: dict[str, Axes] = {}
    spaces: dict[str, int] = {}
    wanted: dict[str, int] = {}
    for name, tensor in network.state_dict().items():
        axes[name] = _convnext_axes(name, tensor.dim(), len(dims))
        for axis in axes[name]:
            if axis is None:
                continue
            stage = int(re.sub(r"\D.*", "", axis.space.removeprefix("stages.")))
            inner = axis.space.endswith("@M")
            spaces[axis.space] = inners[stage] if inner else dims[stage]
            wanted[axis.space] = inners[stage] * new_dims[stage] // dims[stage] if inner else new_dims[stage]

    def resized(kept: Kept) -> Record:
        depths = [len(kept.layers[f"stages.{index}.blocks"]) for index in range(len(dims))]
        return _with_arguments(record, depths=depths, dims=new_dims)

    stages = {f"stages.{index}.blocks": len(stage.blocks) for index, stage in enumerate(network.stages)}
    return Blueprint(stages, spaces, wanted, axes, resized, output=f"stages.{len(dims) - 1}")


def _convnext_axes(name: str, rank: int, num_stages: int) -> Axes:
    rest = (None,) * (rank - 1)
    last = Axis(f"stages.{num_stages - 1}")
    if name.startswith("stem."):
        return (Axis("stages.0"), *rest)
    if name.startswith(("head.norm.", "norm_pre.")):
        return (last,)
    if name == "head.fc.weight":
        return (None, last)
    match = re.fullmatch(r"stages\.(\d+)\.downsample\.([01])\.(weight|bias)", name)
    if match:
        before, own = Axis(f"stages.{int(match[1]) - 1}"), Axis(f"stages.{match[1]}")
        if match[2] == "0":
            return (before,)
        return (own, before, None, None) if match[3] == "weight" else (own,)
    match = re.fullmatch(r"((stages\.\d+)\.blocks\.\d+)\.(.+)", name)
    if match is None:
        return ()
    stream, inner, leaf = Axis(match[2]), Axis(f"{match[1]}@M"), match[3]
    if leaf == "mlp.fc1.weight":
        return (inner, stream, *rest[1:])
    if leaf == "mlp.fc2.weight":
        return (stream, inner, *rest[1:])
    if leaf == "mlp.fc1.bias" or leaf.startswith("mlp.grn."):
        return (*rest, inner)
    return (stream, *rest)


def _resnet(network: Any, record: Record, width_percent: int, field: str) -> Blueprint:
    stages = [name for name, _ in network.named_children() if re.fullmatch(r"layer\d+", name)]
    blocks = {stage: len(network.get_submodule(stage)) for stage in stages}
    first = {stage: network.get_submodule(stage)[0] for stage in stages}
    expansion = first[stages[0]].expansion
    outputs = {stage: _last_convolution(first[stage]).out_channels for stage in stages}
    channels = {stage: outputs[stage] // expansion for stage in stages}
    multiple = max([_CHANNEL_MULTIPLE, *(m.num_groups for m in network.modules() if isinstance(m, nn.GroupNorm))])
    new_channels = {stage: part(channels[stage], width_percent, multiple) for stage in stages}
    axes: dict[str, Axes] = {}
    if width_percent < 100:
        _check_plain(network, first, channels, record, field)
        num_convolutions = 2 if expansion == 1 else 3
        axes = {
            name: _resnet_axes(name, tensor.dim(), stages, num_convolutions)
            for name, tensor in network.state_dict().items()
        }

    def sizes(space: str) -> tuple[int, int]:
        stage = space.partition(".")[0]
        factor = 1 if "@" in space else expansion
        return channels[stage] * factor, new_channels[stage] * factor

    spaces, wanted = _sizes(axes, sizes)

    def resized(kept: Kept) -> Record:
        return _with_arguments(
            record,
            layers=[len(kept.layers[stage]) for stage in stages],
            channels=[new_channels[stage] for stage in stages],
        )

    return Blueprint(blocks, spaces, wanted, axes, resized, stages[-1] if axes else None, _shortcut)


def _last_convolution(block: nn.Module) -> nn.Conv2d:
    convolutions = [module for name, module in block.named_children() if re.fullmatch(r"conv\d", name)]
    last = convolutions[-1]
    assert isinstance(last, nn.Conv2d)
    return last


def _check_plain(
    network: nn.Module, first: Mapping[str, Any], channels: Mapping[str, int], record: Record, field: str
) -> None:
    grouped = any(isinstance(module, nn.Conv2d) and module.groups > 1 for module in network.modules())
    wide = any(block.conv1.out_channels != channels[stage] for stage, block in first.items())
    if grouped or wide or any(getattr(block, "se", None) is not None for block in first.values()):
        raise ShrinkError(
            f"`{field}.widthPercent` cannot be used on {record['architecture']}, whose blocks are grouped, wide or "
            "gated; use depthPercent, or name a smaller model of timm"
        )


def _resnet_axes(name: str, rank: int, stages: Sequence[str], num_convolutions: int) -> Axes:
    last = Axis(stages[-1])
    if name == "fc.weight":
        return (None, last)
    match = re.fullmatch(r"(layer\d+)\.(\d+)\.(conv|bn|downsample)\.?(\d)\.\w+", name)
    if match is None or rank == 0:
        return ()
    stage, block, kind, number = match[1], int(match[2]), match[3], match[4]
    own, index = Axis(stage), stages.index(stage)
    # The stem keeps its width, which timm fixes.
    entry = own if block > 0 else Axis(stages[index - 1]) if index > 0 else None
    if kind == "downsample":
        return (own, entry, None, None) if rank == 4 else (own,)
    ends = [entry, *(Axis(f"{stage}.{block}@{place}") for place in range(1, num_convolutions)), own]
    before, after = ends[int(number) - 1], ends[int(number)]
    return (after, before, None, None) if kind == "conv" else (after,)


def _shortcut(name: str, like: torch.Tensor, kept: Kept) -> torch.Tensor | None:
    """Where the first stage was as wide as the stem it needed no shortcut of its own; narrower, it takes the kept
    channels of the stem by a matrix of ones and zeros, and normalises them by mean 0 and variance 1."""
    if not name.startswith("layer1.0.downsample."):
        return None
    if like.dim() == 4:
        selection = torch.zeros_like(like)
        for row, unit in enumerate(kept.units["layer1"]):
            selection[row, unit] = 1.0
        return selection
    return torch.ones_like(like) if name.endswith(("weight", "running_var")) else torch.zeros_like(like)


def _match(network: nn.Module, table: Mapping[str, str], axis: Callable[[str, str], Axis | None]) -> dict[str, Axes]:
    axes: dict[str, Axes] = {}
    for name in network.state_dict():
        for pattern, letters in table.items():
            match = re.fullmatch(pattern, name)
            if match:
                layer = match[1] if match.re.groups else ""
                axes[name] = tuple(axis(letter, layer) for letter in letters.split())
                break
    return axes


def _sizes(axes: Mapping[str, Axes], of: Callable[[str], tuple[int, int]]) -> tuple[dict[str, int], dict[str, int]]:
    found = {axis.space for tensor in axes.values() for axis in tensor if axis is not None}
    return {space: of(space)[0] for space in found}, {space: of(space)[1] for space in found}


_KINDS: dict[str, Callable[[Any, Record, int, str], Blueprint]] = {
    "VisionTransformer": _vision_transformer,
    "ConvNeXt": _convnext,
    "ResNet": _resnet,
}
