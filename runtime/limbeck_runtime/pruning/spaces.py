"""What structured pruning can remove, as plain data: a space of units, and the slices of tensors that each unit is.

Cutting, scoring and undoing need nothing else, whatever the network. A unit's slices in the layers that write it are
of role WRITES, those in the layers that read it READS, and what lies between (norms) BETWEEN. Removing a unit is the
same as setting its READS slices to zero, except where a norm goes over all units of the space (`exact` is False).
Left out on purpose: where spaces come from (attention.py, dependency.py, discovery.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch

from limbeck.api.v1alpha1.compression import PruneUnit


class Role(StrEnum):
    """What a slice does with its unit."""

    WRITES = "Writes"
    READS = "Reads"
    BETWEEN = "Between"


@dataclass(frozen=True)
class Slice:
    """Entries of one axis of a tensor that belong to each unit: `indices`, N of them for each of U units."""

    tensor: str
    dim: int
    indices: torch.Tensor  # (U, N)
    role: Role
    is_weight: bool = True  # biases and running statistics go with their unit but do not speak for it


@dataclass(frozen=True)
class Size:
    """An attribute of a module that is `per_unit` times the number of units, e.g. num_heads."""

    path: str
    name: str
    per_unit: int


@dataclass(frozen=True, eq=False)
class Space:
    """Units that can be removed one by one. `name` is the path of the layer that writes them.

    Of a stack of blocks, whose units are whole, `blocks` names the weights of each; it has no slices.
    """

    name: str
    kind: PruneUnit
    num_units: int
    slices: tuple[Slice, ...] = ()
    sizes: tuple[Size, ...] = ()
    exact: bool = True
    blocks: tuple[tuple[str, ...], ...] = ()


# Space -> the units of it that go, ascending.
Removal = Mapping[Space, torch.Tensor]


def entries_of(piece: Slice, units: torch.Tensor) -> torch.Tensor:
    """Indices along the slice's axis that belong to `units`."""
    return piece.indices[units].reshape(-1)


def unit_sums(space: Space, values: Callable[[str], torch.Tensor], pieces: Sequence[Slice]) -> torch.Tensor:
    """(U,) float64: sums over each unit's entries in `pieces`, or over its whole weights, of `values` of a tensor."""
    if space.blocks:
        sums = [sum((values(name).double().sum() for name in names), torch.zeros(())) for names in space.blocks]
        return torch.stack(sums).double()
    return torch.stack([per_unit(values(piece.tensor), piece) for piece in pieces]).sum(0)


def per_unit(values: torch.Tensor, piece: Slice) -> torch.Tensor:
    """Sums of `values`, which has the shape of the slice's tensor, over the entries of each unit; (U,) float64."""
    along_I = values.double().movedim(piece.dim, 0).reshape(values.shape[piece.dim], -1).sum(1)
    return along_I[piece.indices.to(along_I.device)].sum(1)
