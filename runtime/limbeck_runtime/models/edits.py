"""Replays what was done to a module after it was built: pruning, low rank, quantization.

Left out on purpose: the edits themselves. Each part that edits modules keeps a literal table of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from limbeck_runtime.models.errors import ArchitectureError
from limbeck_runtime.models.names import EDIT_LOW_RANK, EDIT_MERGE_LOW_RANK

if TYPE_CHECKING:
    from torch import nn


def is_factorised(edits: Sequence[Mapping[str, Any]]) -> bool:
    """Whether layers are pairs of low-rank factors after these edits; merging brings all of them back."""
    kinds = [edit["kind"] for edit in edits if edit["kind"] in (EDIT_LOW_RANK, EDIT_MERGE_LOW_RANK)]
    return kinds[-1:] == [EDIT_LOW_RANK]


def apply_edits(module: nn.Module, edits: Sequence[Mapping[str, Any]]) -> nn.Module:
    """`module` with `edits` done in their order; raises ArchitectureError for a kind that nobody knows.

    An edit gives modules of the right shapes and types, whose state is plain tensors; weights are loaded afterwards.
    """
    if not edits:
        return module
    from limbeck_runtime import lowrank, pruning, quantization

    known = pruning.EDITS | lowrank.EDITS | quantization.EDITS
    for edit in edits:
        kind = edit["kind"]
        if kind not in known:
            raise ArchitectureError(
                f"an edit's kind must be one of {sorted(known)}, got {kind!r}; read the model with the limbeck "
                "that wrote it"
            )
        module = known[kind](module, edit)
    return module
