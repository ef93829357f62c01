"""Keeps track of what each entry of a model was before: from that follow the record's counts and the way back.

Left out on purpose: writing and reading (record_files.py).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from limbeck_runtime.pruning.cutting import Kept, named_tensors, select
from limbeck_runtime.pruning.holding import renamed


class History:
    """The model before, and for every tensor that changed its shape where its entries come from."""

    def __init__(self, module: nn.Module) -> None:
        saved = module.state_dict().keys()
        self.before = {name: value.detach().clone() for name, value in named_tensors(module).items() if name in saved}
        self.names = {name: name for name in self.before}  # now -> before
        self._origins: dict[str, Tensor] = {}  # by the name before
        self._gone: set[str] = set()
        self._zeroed: dict[str, Tensor] = {}

    def cut(self, kept: Kept) -> None:
        """Tensors were cut; `kept` by their names now."""
        for name, axes in kept.items():
            first = self.names[name]
            if first not in self._origins:
                shape = self.before[first].shape
                self._origins[first] = torch.arange(shape.numel(), dtype=torch.int64).reshape(shape)
            self._origins[first] = select(self._origins[first], axes)

    def dropped(self, path: str, indices: list[int]) -> None:
        """Of the list of layers at `path` only `indices` stay."""
        names = {}
        for now, first in self.names.items():
            new = renamed(now, path, indices)
            if new is None:
                self._gone.add(first)
            else:
                names[new] = first
        self.names = names

    def zeroed(self, masks: Mapping[str, Tensor]) -> None:
        """Entries were set to zero, all in all; by names now."""
        for name, mask in masks.items():
            self._zeroed[self.names[name]] = mask

    def removed(self) -> dict[str, Tensor]:
        """Masks, in the shapes before, of what went, by the names before."""
        masks: dict[str, Tensor] = {}
        for name, tensor in self.before.items():
            if name in self._gone:
                masks[name] = torch.ones(tensor.shape, dtype=torch.bool)
            elif name in self._origins:
                mask = torch.ones(tensor.numel(), dtype=torch.bool)
                mask[self._origins[name].reshape(-1)] = False
                masks[name] = mask.reshape(tensor.shape)
            elif name in self._zeroed:
                masks[name] = self._zeroed[name]
        return masks

    def renamed(self) -> dict[str, str]:
        """Before -> now, where these differ."""
        return {first: now for now, first in self.names.items() if first != now}
