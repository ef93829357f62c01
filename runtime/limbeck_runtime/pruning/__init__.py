"""Pruning: single weights, two of four, or whole channels, heads, widths and layers; with a record to undo it.

`EDITS` brings a pruned model back from its architecture record. pruning.py prunes, undo.py undoes; they are imported
where they are used, since a rebuilt model needs neither.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from limbeck_runtime.pruning import cutting, holding
from limbeck_runtime.pruning.errors import PruningError

if TYPE_CHECKING:
    from torch import nn

EDITS: dict[str, Callable[[nn.Module, Mapping[str, Any]], nn.Module]] = {
    cutting.KIND: cutting.apply_edit,
    holding.KIND: holding.apply_edit,
}

__all__ = ["EDITS", "PruningError"]
