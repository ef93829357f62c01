"""Which units a model has: found, then tried out.

Some units of every space are cut out of a copy and set to silence in another, and the answers compared. What does not
run or answers otherwise stays whole, by name: a wrong guess about a network never reaches the model.
Left out on purpose: whole layers (layers.py).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn

from limbeck.api.v1alpha1.compression import PruneUnit
from limbeck_runtime.pruning.attention import find_heads
from limbeck_runtime.pruning.cutting import cut, silence
from limbeck_runtime.pruning.dependency import find_widths
from limbeck_runtime.pruning.errors import PruningError
from limbeck_runtime.pruning.spaces import Space

Inputs = Mapping[str, torch.Tensor]
DEFAULT_UNITS = (PruneUnit.CHANNELS, PruneUnit.HEADS, PruneUnit.MLP_WIDTH)
# Of the largest number in an answer: both ways only round differently.
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Found:
    """Spaces whose units can go, and the paths of layers that stay whole, each with the reason."""

    spaces: tuple[Space, ...]
    kept: Mapping[str, str]


def find_spaces(module: nn.Module, batch: Inputs, units: Sequence[PruneUnit], ignore: Sequence[str]) -> Found:
    """The spaces of the wanted kinds in `module`, which is left as it was; `batch` are a few samples' inputs.

    Raises PruningError for a pattern that matches nothing.
    """
    check_patterns(module, ignore)
    wanted = set(units or DEFAULT_UNITS)
    was_training = module.training
    module.eval()
    heads = find_heads(module)
    kept = dict(heads.kept)
    candidates = list(heads.spaces)
    if wanted & {PruneUnit.CHANNELS, PruneUnit.MLP_WIDTH, PruneUnit.RESIDUAL_WIDTH}:
        widths = find_widths(module, batch, heads)
        kept |= widths.kept
        candidates += widths.spaces
    spaces = []
    for space in candidates:
        reason = _why_not(space, wanted, ignore)
        if reason:
            kept[space.name] = reason
        else:
            spaces.append(space)
    sound = _sound(module, batch, spaces, kept)
    module.train(was_training)
    return Found(tuple(sound), kept)


def check_patterns(module: nn.Module, ignore: Sequence[str]) -> None:
    """Raise PruningError for a pattern that matches no module."""
    paths = [path for path, _ in module.named_modules() if path]
    for pattern in ignore:
        if not any(fnmatchcase(path, pattern) for path in paths):
            raise PruningError(
                f"`prune.ignore` must hold patterns that match layers, got {pattern!r}, which matches none of "
                f"{', '.join(paths)[:400]}; correct or remove it"
            )


def is_ignored(tensor: str, ignore: Sequence[str]) -> bool:
    """Whether a pattern names the layer of a tensor or one around it."""
    path = tensor.rpartition(".")[0]
    parts = path.split(".")
    paths = [".".join(parts[: count + 1]) for count in range(len(parts))]
    return any(fnmatchcase(outer, pattern) for outer in paths for pattern in ignore)


def _why_not(space: Space, wanted: set[PruneUnit], ignore: Sequence[str]) -> str:
    if any(is_ignored(piece.tensor, ignore) for piece in space.slices):
        return "`prune.ignore` names it or what hangs on it"
    if space.kind not in wanted:
        return f"`prune.units` leaves {space.kind.value} out"
    if space.num_units < 2:
        return "it has one unit only"
    return ""


def _sound(module: nn.Module, batch: Inputs, spaces: list[Space], kept: dict[str, str]) -> list[Space]:
    """The spaces that can be cut as they say; halves are tried where the whole fails."""
    if not spaces:
        return []
    reason = _try(module, batch, spaces)
    if not reason:
        return spaces
    if len(spaces) == 1:
        kept[spaces[0].name] = reason
        return []
    middle = len(spaces) // 2
    return [*_sound(module, batch, spaces[:middle], kept), *_sound(module, batch, spaces[middle:], kept)]


def _try(module: nn.Module, batch: Inputs, spaces: Sequence[Space]) -> str:
    """Why these spaces cannot be cut together; empty where they can."""
    removal = {space: _some(space.num_units) for space in spaces}
    smaller = copy.deepcopy(module)
    try:
        cut(smaller, removal)
        with torch.no_grad():
            after = smaller(batch)
    except Exception as error:  # what a network raises when shapes do not fit is its own
        return f"the model does not run without some of its units ({_first_line(error)})"
    exact = {space: units for space, units in removal.items() if space.exact}
    silenced = copy.deepcopy(module)
    silence(silenced, exact)
    with torch.no_grad():
        masked = silenced(batch)
    for name, value in masked.items():
        if after[name].shape != value.shape:
            return f"the model's {name} would change from {tuple(value.shape)} to {tuple(after[name].shape)}"
    if len(exact) < len(removal):
        return _try(module, batch, list(exact)) if exact else ""
    for name, value in masked.items():
        difference = float((after[name] - value).abs().max()) if value.numel() else 0.0
        if difference > _TOLERANCE * max(float(value.abs().max()), 1e-6):
            return f"cutting its units is not the same as silencing them ({name} differs by {difference:.2g})"
    return ""


def _some(num_units: int) -> torch.Tensor:
    """A few units from everywhere, never all."""
    return torch.tensor(sorted({0, num_units // 2, num_units - 1}))[: max(1, num_units // 2)]


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
