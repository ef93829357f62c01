"""Replays what was done to a module after it was built: pruning, quantization.

Left out on purpose: the edits themselves. Each part that edits modules keeps a literal table of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from limbeck_runtime.models.errors import ArchitectureError

if TYPE_CHECKING:
    from torch import nn


def apply_edits(module: nn.Module, edits: Sequence[Mapping[str, Any]]) -> nn.Module:
    """`module` with `edits` done in their order; raises ArchitectureError for a kind that nobody knows.

    An edit gives modules of the right shapes and types, whose state is plain tensors; weights are loaded afterwards.
    """
    if not edits:
        return module
    from limbeck_runtime import pruning, quantization

    known = pruning.EDITS | quantization.EDITS
    for edit in edits:
        kind = edit["kind"]
        if kind not in known:
            raise ArchitectureError(
                f"an edit's kind must be one of {sorted(known)}, got {kind!r}; read the model with the limbeck "
                "that wrote it"
            )
        module = known[kind](module, edit)
    return module
