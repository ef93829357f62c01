"""Whole blocks as units: a stack of like blocks, each of which gives what it takes in shape, can lose some.

Left out on purpose: which blocks are worth most by trying each (evaluation is the judge after the step).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from limbeck.api.v1alpha1.compression import PruneUnit
from limbeck_runtime.pruning.cutting import edit_of, keep_layers
from limbeck_runtime.pruning.discovery import Found, is_ignored
from limbeck_runtime.pruning.spaces import Space

Inputs = Mapping[str, torch.Tensor]


def find_stacks(module: nn.Module, batch: Inputs, ignore: Sequence[str]) -> Found:
    """Every outermost list of blocks that lets blocks go."""
    spaces: list[Space] = []
    kept: dict[str, str] = {}
    shapes = _shapes(module, batch)
    for path, stack in module.named_modules():
        if not isinstance(stack, nn.ModuleList | nn.Sequential) or len({type(block) for block in stack}) != 1:
            continue
        if len(stack) < 3 or any(path.startswith(f"{space.name}.") for space in spaces):
            continue
        if not list(stack.parameters()):
            continue
        if any(is_ignored(f"{path}.{name}", ignore) for name, _ in stack.named_parameters()):
            kept[path] = "`prune.ignore` names it or a part of it"
        elif _differ_in_kind(module, len(stack)):
            kept[path] = "its blocks are of several kinds by the model's configuration (layer_types)"
        elif not all(shapes.get(id(block), False) for block in stack):
            kept[path] = "a block changes the shape of what it is given, or does not run"
        else:
            blocks = tuple(tuple(_weights(f"{path}.{place}", block)) for place, block in enumerate(stack))
            spaces.append(Space(path, PruneUnit.LAYERS, len(stack), blocks=blocks, exact=False))
    return Found(tuple(spaces), kept)


def drop(module: nn.Module, space: Space, units: torch.Tensor) -> dict[str, Any]:
    """Take the blocks out of `module` itself; returns the edit that does the same."""
    gone = set(units.tolist())
    indices = [place for place in range(space.num_units) if place not in gone]
    keep_layers(module, space.name, indices)
    return edit_of({}, {}, {space.name: indices})


def _weights(path: str, block: nn.Module) -> Iterator[str]:
    for name, parameter in block.named_parameters():
        if parameter.dim() > 1:
            yield f"{path}.{name}"


def _differ_in_kind(module: nn.Module, count: int) -> bool:
    for layer in module.modules():
        kinds = getattr(getattr(layer, "config", None), "layer_types", None)
        if kinds and len(kinds) == count and len(set(kinds)) > 1:
            return True
    return False


def _shapes(module: nn.Module, batch: Inputs) -> dict[int, bool]:
    """Of each module that ran, by identity: whether it gave a tensor of the shape that it was given."""
    same: dict[int, bool] = {}

    def see(layer: nn.Module, arguments: Any, output: Any) -> None:
        given = next((value for value in arguments if isinstance(value, torch.Tensor)), None)
        first = output[0] if isinstance(output, tuple) and output else output
        fits = given is not None and isinstance(first, torch.Tensor) and first.shape == given.shape
        same[id(layer)] = fits and same.get(id(layer), True)

    handles = [layer.register_forward_hook(see) for layer in module.modules()]
    try:
        with torch.no_grad():
            module.eval()(dict(batch))
    finally:
        for handle in handles:
            handle.remove()
    return same
