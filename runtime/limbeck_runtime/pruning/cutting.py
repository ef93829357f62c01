"""Cuts units out of a module in place, and does the same to the empty shell of a module when a record is replayed.

A record says the new shapes of tensors, the new values of attributes and the layers that stay: plain JSON from which
the module is rebuilt without torch-pruning, without data and without a pickle.
Left out on purpose: which units go (choosing.py), and bringing them back (undo.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from limbeck_runtime.models.errors import ArchitectureError
from limbeck_runtime.pruning.errors import PruningError
from limbeck_runtime.pruning.spaces import Removal, Role, entries_of

KIND = "prune"
VERSION = 1
# What a layer of torch says of its own shape, by the axis of its weight.
_CONV = nn.modules.conv._ConvNd
_ATTRIBUTES = frozenset(
    (
        *("in_features", "out_features", "in_channels", "out_channels", "groups", "nf", "nx", "embedding_dim"),
        *("num_features", "num_channels", "num_groups", "normalized_shape", "num_parameters"),
        *("num_heads", "num_attention_heads", "n_heads", "num_key_value_heads"),
        *("all_head_size", "attn_dim", "split_size", "inner_dim"),
    )
)

# Name of a tensor -> for each of its axes the indices that stay, None where all do.
Kept = dict[str, tuple[torch.Tensor | None, ...]]


def kept_of(module: nn.Module, removal: Removal) -> Kept:
    """What stays of each tensor that `removal` touches."""
    tensors = named_tensors(module)
    gone: dict[tuple[str, int], torch.Tensor] = {}
    for space, units in removal.items():
        for piece in space.slices:
            mask = gone.setdefault(
                (piece.tensor, piece.dim), torch.zeros(tensors[piece.tensor].shape[piece.dim], dtype=torch.bool)
            )
            mask[entries_of(piece, units)] = True
    kept: dict[str, list[torch.Tensor | None]] = {}
    for (name, dim), mask in gone.items():
        axes = kept.setdefault(name, [None] * tensors[name].dim())
        axes[dim] = torch.nonzero(~mask).squeeze(1)
        if not len(axes[dim]):  # type: ignore[arg-type]
            raise PruningError(f"`prune` must leave something of {name}, got all of it to remove; lower the target")
    return {name: tuple(axes) for name, axes in kept.items()}


def cut(module: nn.Module, removal: Removal) -> dict[str, Any]:
    """Remove the units from `module` itself; returns the edit that does the same to its architecture."""
    kept = kept_of(module, removal)
    tensors = named_tensors(module)
    before = _attributes(module)
    _replace(module, {name: select(tensors[name], axes) for name, axes in kept.items()})
    for space, units in removal.items():
        for size in space.sizes:
            layer = module.get_submodule(size.path)
            setattr(layer, size.name, size.per_unit * (space.num_units - len(units)))
    after = _attributes(module)
    attributes = {
        path: {name: value for name, value in values.items() if before[path].get(name) != value}
        for path, values in after.items()
        if values != before[path]
    }
    return edit_of({name: tuple(tensors_after.shape) for name, tensors_after in named_tensors(module).items()
                    if name in kept}, attributes)  # fmt: skip


def silence(module: nn.Module, removal: Removal) -> None:
    """Set what reads the units to zero, in place: where no norm goes over them, the same answers as without them."""
    tensors = named_tensors(module)
    with torch.no_grad():
        for space, units in removal.items():
            for piece in space.slices:
                if piece.role is Role.READS:
                    tensors[piece.tensor].index_fill_(piece.dim, entries_of(piece, units), 0.0)


def select(tensor: torch.Tensor, axes: tuple[torch.Tensor | None, ...]) -> torch.Tensor:
    """The entries of a tensor that stay."""
    chosen = tensor.detach()
    for dim, indices in enumerate(axes):
        if indices is not None:
            chosen = chosen.index_select(dim, indices.to(chosen.device))
    return chosen.clone(memory_format=torch.contiguous_format)


def named_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers by their first name."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def edit_of(
    shapes: Mapping[str, tuple[int, ...]],
    attributes: Mapping[str, Mapping[str, Any]],
    layers: Mapping[str, list[int]] | None = None,
) -> dict[str, Any]:
    """The edit that an architecture record holds; `layers` are done first."""
    return {
        "kind": KIND,
        "version": VERSION,
        "layers": dict(layers or {}),
        "tensors": {name: list(shape) for name, shape in sorted(shapes.items())},
        "attributes": {path: dict(values) for path, values in sorted(attributes.items())},
    }


def apply_edit(module: nn.Module, edit: Mapping[str, Any]) -> nn.Module:
    """`module` in the shapes of the edit, its weights still to be loaded. Raises ArchitectureError."""
    if edit.get("version") != VERSION:
        raise ArchitectureError(
            f"a {KIND} edit must have version {VERSION}, got {edit.get('version')}; read the model with the limbeck "
            "that wrote it"
        )
    try:
        for path, indices in edit["layers"].items():
            keep_layers(module, path, indices)
        tensors = named_tensors(module)
        _replace(module, {name: tensors[name].new_zeros(tuple(shape)) for name, shape in edit["tensors"].items()})
        for path, values in edit["attributes"].items():
            layer = module.get_submodule(path)
            for name, value in values.items():
                if name not in _ATTRIBUTES or not hasattr(layer, name):
                    raise ValueError(f"{path} has no size {name}")
                setattr(layer, name, tuple(value) if isinstance(value, list) else int(value))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ArchitectureError(f"a {KIND} edit cannot be replayed: {error!r}") from error
    return module


def keep_layers(module: nn.Module, path: str, indices: list[int]) -> None:
    """Of the list of layers at `path` keep those at `indices`, renumbered from 0."""
    layers = module.get_submodule(path)
    if not isinstance(layers, nn.ModuleList | nn.Sequential):
        raise ValueError(f"{path} is no list of layers")
    module.set_submodule(path, type(layers)(*_listed(layers, indices)))


def _listed(layers: nn.ModuleList | nn.Sequential, indices: list[int]) -> list[Any]:
    kept = [layers[index] for index in indices]
    return kept if isinstance(layers, nn.Sequential) else [kept]


def _replace(module: nn.Module, values: Mapping[str, torch.Tensor]) -> None:
    """Put tensors in place of the module's own, under all names that each has, and let layers know their sizes."""
    own = named_tensors(module)
    by_identity = {id(own[name]): value for name, value in values.items()}
    made: dict[int, nn.Parameter] = {}
    for layer in module.modules():
        touched = False
        for name, parameter in layer._parameters.items():
            if parameter is not None and id(parameter) in by_identity:
                new = made.get(id(parameter))
                if new is None:
                    new = nn.Parameter(by_identity[id(parameter)], requires_grad=parameter.requires_grad)
                    made[id(parameter)] = new
                layer._parameters[name] = new
                touched = True
        for name, buffer in layer._buffers.items():
            if buffer is not None and id(buffer) in by_identity:
                layer._buffers[name] = by_identity[id(buffer)]
                touched = True
        if touched:
            _know_sizes(layer)


def _know_sizes(layer: Any) -> None:
    """A layer's own account of its shape, from its weight."""
    weight = layer.weight if getattr(layer, "weight", None) is not None else getattr(layer, "running_mean", None)
    if not isinstance(weight, torch.Tensor):
        return
    if isinstance(layer, _CONV):
        _know_channels(layer, weight)
    elif isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = weight.shape
    elif isinstance(layer, nn.Embedding):
        layer.embedding_dim = weight.shape[1]
    elif isinstance(layer, nn.modules.batchnorm._BatchNorm | nn.modules.instancenorm._InstanceNorm):
        layer.num_features = weight.shape[0]
    elif isinstance(layer, nn.LayerNorm):
        layer.normalized_shape = tuple(weight.shape)
    elif isinstance(layer, nn.GroupNorm):
        if layer.num_groups == layer.num_channels:
            layer.num_groups = weight.shape[0]
        layer.num_channels = weight.shape[0]
    elif isinstance(layer, nn.PReLU):
        layer.num_parameters = weight.shape[0]
    elif hasattr(layer, "nf"):  # GPT-2's linear layer
        layer.nx, layer.nf = weight.shape


def _know_channels(layer: Any, weight: torch.Tensor) -> None:
    if layer.groups > 1:  # depthwise
        layer.groups = layer.in_channels = layer.out_channels = weight.shape[0]
    elif layer.transposed:
        layer.in_channels, layer.out_channels = weight.shape[:2]
    else:
        layer.out_channels, layer.in_channels = weight.shape[:2]


def _attributes(module: nn.Module) -> dict[str, dict[str, Any]]:
    """Every size that every layer keeps of itself."""
    return {
        path: {name: _plain(getattr(layer, name)) for name in _ATTRIBUTES if _is_size(layer.__dict__.get(name))}
        for path, layer in module.named_modules()
    }


def _is_size(value: object) -> bool:
    return isinstance(value, int | tuple | torch.Size) and not isinstance(value, bool)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
