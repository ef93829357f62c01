"""The records of factorising and of merging back, and how a rebuilt model takes them on: shapes first, then weights.

A layer that was factorised before is replaced by one of the new rank; it is not nested.
Left out on purpose: the factors themselves, which are weights as any other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from limbeck_runtime.lowrank.layers import LowRank, factorised, merged
from limbeck_runtime.models.errors import ArchitectureError
from limbeck_runtime.models.names import EDIT_LOW_RANK, EDIT_MERGE_LOW_RANK

VERSION = 1


def edit_of(ranks: Mapping[str, int]) -> dict[str, Any]:
    """The edit that an architecture record holds for factorised layers by path."""
    return {"kind": EDIT_LOW_RANK, "version": VERSION, "ranks": dict(ranks)}


def merge_edit_of(paths: Sequence[str]) -> dict[str, Any]:
    """The edit for layers that were merged back."""
    return {"kind": EDIT_MERGE_LOW_RANK, "version": VERSION, "paths": list(paths)}


def replace_layers(module: nn.Module, new: Mapping[str, nn.Module]) -> None:
    """Put layers in the place of those at these paths, under all names that each has."""
    by_identity = {id(module.get_submodule(path)): layer for path, layer in new.items()}
    for path, layer in list(module.named_modules(remove_duplicate=False)):
        if id(layer) in by_identity:
            module.set_submodule(path, by_identity[id(layer)])


def apply_edit(module: nn.Module, edit: Mapping[str, Any]) -> nn.Module:
    """`module` with factorised layers, their weights still to be loaded. Raises ArchitectureError."""
    _check_version(edit)
    try:
        ranks = {path: int(rank) for path, rank in edit["ranks"].items()}
        replace_layers(module, {path: factorised(module.get_submodule(path), rank) for path, rank in ranks.items()})
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ArchitectureError(f"a {EDIT_LOW_RANK} edit cannot be replayed: {error!r}") from error
    return module


def apply_merge(module: nn.Module, edit: Mapping[str, Any]) -> nn.Module:
    """`module` with plain layers where the edit says. Raises ArchitectureError."""
    _check_version(edit)
    try:
        new = {}
        for path in edit["paths"]:
            layer = module.get_submodule(path)
            if not isinstance(layer, LowRank):
                raise ValueError(f"{path} is no factorised layer")
            new[path] = merged(layer)
        replace_layers(module, new)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ArchitectureError(f"a {EDIT_MERGE_LOW_RANK} edit cannot be replayed: {error!r}") from error
    return module


def _check_version(edit: Mapping[str, Any]) -> None:
    if edit.get("version") != VERSION:
        raise ArchitectureError(
            f"a {edit['kind']} edit must have version {VERSION}, got {edit.get('version')}; read the model with the "
            "limbeck that wrote it"
        )


EDITS: dict[str, Callable[[nn.Module, Mapping[str, Any]], nn.Module]] = {
    EDIT_LOW_RANK: apply_edit,
    EDIT_MERGE_LOW_RANK: apply_merge,
}
