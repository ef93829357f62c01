"""Zeros that stay zeros: which tensors of a model are sparse, said by its architecture record.

No mask is stored: an entry that is zero in a tensor named here stays zero. So masks cost no byte, and hold through
saving, loading, exporting and symmetric quantization. Training holds them by zeroing gradients (student/update.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from limbeck_runtime.models.errors import ArchitectureError
from limbeck_runtime.models.names import EDIT_LOW_RANK, EDIT_MERGE_LOW_RANK

if TYPE_CHECKING:
    from torch import nn

KIND = "hold_zeros"
VERSION = 1


def edit_of(names: Sequence[str]) -> dict[str, Any]:
    """The edit that an architecture record holds."""
    return {"kind": KIND, "version": VERSION, "tensors": sorted(names)}


def apply_edit(module: nn.Module, edit: Mapping[str, Any]) -> nn.Module:
    """`module` as it is, once it is sure that it has the tensors. Raises ArchitectureError."""
    if edit.get("version") != VERSION:
        raise ArchitectureError(
            f"a {KIND} edit must have version {VERSION}, got {edit.get('version')}; read the model with the limbeck "
            "that wrote it"
        )
    own = dict(module.named_parameters(remove_duplicate=False))
    missing = [name for name in edit.get("tensors", ()) if name not in own]
    if missing:
        raise ArchitectureError(f"a {KIND} edit names {missing[0]}, which the model does not have")
    return module


def held_names(edits: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Tensors whose zeros must stay, by the names that they have after all edits."""
    held: list[str] = []
    for edit in edits:
        if edit["kind"] == KIND:
            held += [name for name in edit["tensors"] if name not in held]
        for path, indices in edit.get("layers", {}).items() if edit["kind"] == "prune" else ():
            held = [name for name in (renamed(name, path, indices) for name in held) if name is not None]
        held = [name for name in held if not name.startswith(_replaced(edit))]
    return tuple(held)


def _replaced(edit: Mapping[str, Any]) -> tuple[str, ...]:
    """How names begin in the layers that an edit puts others in the place of: zeros do not survive a product."""
    paths = {EDIT_LOW_RANK: edit.get("ranks", ()), EDIT_MERGE_LOW_RANK: edit.get("paths", ())}.get(edit["kind"], ())
    return tuple(f"{path}." for path in paths)


def renamed(name: str, path: str, indices: Sequence[int]) -> str | None:
    """A tensor's name after only the layers `indices` of the list at `path` stay; None where its layer went."""
    if not name.startswith(f"{path}."):
        return name
    number, dot, rest = name[len(path) + 1 :].partition(".")
    place = int(number)
    return f"{path}.{list(indices).index(place)}{dot}{rest}" if place in indices else None
