"""Cuts a network smaller: layers are left out, channels are sliced, weights are copied.

A Blueprint says, as plain data, how a network's tensors hang together: which of their axes are indexed by the same
channels (a "space"), and which layers may go. Cutting then needs no knowledge of the network.
Left out on purpose: what the blueprints say (blueprints_*.py), and anything that needs data or gradients.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from limbeck_runtime.models.errors import ShrinkError
from limbeck_runtime.models.networks import Record, build_network

State = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Axis:
    """One axis of a tensor: `repeats` copies, each of the space's units, each unit `per_unit` entries wide.

    A fused query-key-value matrix of heads 32 wide has Axis("heads", per_unit=32, repeats=3).
    """

    space: str
    per_unit: int = 1
    repeats: int = 1

    def indices(self, kept: torch.Tensor, num_units: int) -> torch.Tensor:
        """Entries of this axis that belong to the kept units."""
        within = (kept[:, None] * self.per_unit + torch.arange(self.per_unit)).reshape(-1)
        starts = torch.arange(self.repeats)[:, None] * (num_units * self.per_unit)
        return (starts + within).reshape(-1)


Axes = tuple[Axis | None, ...]


@dataclass(frozen=True)
class Kept:
    """What stays: layer indices by stage, unit indices by space."""

    layers: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    units: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def count(self, space: str) -> int:
        """How many units of a space stay; of a layer's own space (stage@name) as many as in any layer."""
        if space in self.units:
            return len(self.units[space])
        return next(len(units) for name, units in self.units.items() if name.endswith(f"@{space}"))


@dataclass(frozen=True)
class Blueprint:
    """How a network hangs together.

    `stages`: path of a list of layers -> how many it holds. `spaces`: space -> its number of units, and
    `wanted`: space -> how many of them are to stay. `axes`: tensor name -> a space (or None) for each axis; a
    tensor that is not named is copied whole. `resized` gives the record of the smaller network, `added` the
    tensors that only the smaller one has, and `output` is the space of the network's output features, if it is cut.
    """

    stages: Mapping[str, int]
    spaces: Mapping[str, int]
    wanted: Mapping[str, int]
    axes: Mapping[str, Axes]
    resized: Callable[[Kept], Record]
    output: str | None = None
    added: Callable[[str, torch.Tensor, Kept], torch.Tensor | None] = lambda _name, _like, _kept: None


def evenly_spaced(count: int, percent: int) -> tuple[int, ...]:
    """Indices of round(count * percent / 100) layers, at least one, from the first to the last.

    The first always stays: in a stage of a convolutional network it changes the resolution.
    """
    kept = max(1, round(count * percent / 100))
    if kept == 1:
        return (0,)
    return tuple(round(index * (count - 1) / (kept - 1)) for index in range(kept))


def part(count: int, percent: int, multiple: int = 1) -> int:
    """round(count * percent / 100) as a multiple of `multiple`, at least one of these, at most `count`."""
    if percent >= 100:
        return count
    return min(count, max(multiple, round(count * percent / 100 / multiple) * multiple))


def cut(network: nn.Module, blueprint: Blueprint, depth_percent: int) -> tuple[nn.Module, Record, Kept]:
    """The smaller network with the kept weights, its record, and what was kept. `network` stays as it is."""
    state = {name: tensor.detach() for name, tensor in network.state_dict().items()}
    layers = {stage: evenly_spaced(count, depth_percent) for stage, count in blueprint.stages.items()}
    stays = {name: tensor for name, tensor in state.items() if _stays(name, layers)}
    units = {
        space: _strongest(space, blueprint, stays)
        for space in blueprint.spaces
        if _stays(space.replace("@", "."), layers)
    }
    kept = Kept(layers, units)
    record = blueprint.resized(kept)
    smaller = build_network(record)
    smaller.load_state_dict(
        {name: _tensor(name, like, state, blueprint, kept) for name, like in smaller.state_dict().items()}
    )
    return smaller, record, kept


def _layer_of(name: str, stages: Sequence[str]) -> tuple[str, int] | None:
    for stage in stages:
        match = re.match(rf"{re.escape(stage)}\.(\d+)\.", name)
        if match:
            return stage, int(match[1])
    return None


def _stays(name: str, layers: Mapping[str, tuple[int, ...]]) -> bool:
    place = _layer_of(name, tuple(layers))
    return place is None or place[1] in layers[place[0]]


def _strongest(space: str, blueprint: Blueprint, state: State) -> tuple[int, ...]:
    """The wanted number of units with the largest norm over all tensors that touch them, in ascending order.

    Each tensor has one vote: its squares are divided by their sum, so that a large embedding table does not decide
    alone. Ties go to the lower index.
    """
    num_units, wanted = blueprint.spaces[space], blueprint.wanted[space]
    if wanted == num_units:
        return tuple(range(num_units))
    votes = torch.zeros(num_units, dtype=torch.float64)
    for name, axes in blueprint.axes.items():
        tensor = state.get(name)
        if tensor is None or not tensor.is_floating_point() or "running_" in name:
            continue
        for dimension, axis in enumerate(axes):
            if axis is None or axis.space != space:
                continue
            squares = tensor.double().square().movedim(dimension, 0).reshape(tensor.shape[dimension], -1).sum(1)
            by_unit = squares.reshape(axis.repeats, num_units, axis.per_unit).sum((0, 2))
            votes += by_unit / by_unit.sum().clamp(min=1e-30)
    order = torch.argsort(votes, descending=True, stable=True)[:wanted]
    return tuple(sorted(order.tolist()))


def _tensor(name: str, like: torch.Tensor, state: State, blueprint: Blueprint, kept: Kept) -> torch.Tensor:
    old_name = _old_name(name, kept)
    if old_name not in state:
        added = blueprint.added(name, like, kept)
        assert added is not None, f"the blueprint does not say where {name} comes from"
        return added
    tensor = state[old_name]
    for dimension, axis in enumerate(blueprint.axes.get(old_name, ())):
        if axis is not None:
            units = torch.tensor(kept.units[axis.space])
            indices = axis.indices(units, blueprint.spaces[axis.space])
            tensor = tensor.index_select(dimension, indices.to(tensor.device))
    if tensor.shape != like.shape:
        raise ShrinkError(
            f"{name} would be {tuple(tensor.shape)} where the smaller network wants {tuple(like.shape)}; "
            "this network is put together in a way that limbeck does not know"
        )
    return tensor.clone()


def _old_name(name: str, kept: Kept) -> str:
    place = _layer_of(name, tuple(kept.layers))
    if place is None:
        return name
    stage, index = place
    return f"{stage}.{kept.layers[stage][index]}." + name[len(f"{stage}.{index}.") :]
