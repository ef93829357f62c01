"""Which layers can be factorised, and which stay whole and why.

Left out on purpose: whether a rank makes a layer smaller (factorising.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from limbeck_runtime.lowrank.errors import LowRankError
from limbeck_runtime.lowrank.layers import LowRank, matrix_shape, num_weights
from limbeck_runtime.pruning.discovery import is_ignored
from limbeck_runtime.quantization.selection import LayerKind, kind_of


@dataclass(frozen=True)
class Candidates:
    """Paths of layers, and of those that stay whole the reasons."""

    paths: tuple[str, ...]
    kept: Mapping[str, str]


def find_layers(module: nn.Module, wanted: Sequence[str], ignore: Sequence[str]) -> Candidates:
    """Linear and convolutional layers, the factorised ones as wholes. `wanted` and `ignore` are shell patterns of
    their paths or of what is around them; an empty `wanted` is all.

    Raises LowRankError for a pattern that matches nothing.
    """
    _check(module, wanted, "layers")
    _check(module, ignore, "ignore")
    paths: list[str] = []
    kept: dict[str, str] = {}
    inside: list[str] = []
    owners = _owners(module)
    for path, layer in module.named_modules():
        if any(path.startswith(f"{outer}.") for outer in inside):
            continue
        if isinstance(layer, LowRank):
            inside.append(path)
        elif kind_of(layer) not in (LayerKind.LINEAR, LayerKind.CONV):
            if any(parameter.ndim > 1 for parameter in layer.parameters(recurse=False)):
                kept[path] = f"it is a {type(layer).__name__}, which is not factorised"
            continue
        reason = _why_not(path, layer, wanted, ignore, owners)
        if reason:
            kept[path] = reason
        else:
            paths.append(path)
    return Candidates(tuple(paths), kept)


def _check(module: nn.Module, patterns: Sequence[str], field: str) -> None:
    paths = [path for path, _ in module.named_modules() if path]
    for pattern in patterns:
        if not any(fnmatchcase(path, pattern) for path in paths):
            raise LowRankError(
                f"`lowRank.{field}` must hold patterns that match layers, got {pattern!r}, which matches none of "
                f"{', '.join(paths)[:400]}; correct or remove it"
            )


def _owners(module: nn.Module) -> dict[int, str]:
    """Of weights that several layers share, one who has them beside the first."""
    first: dict[int, str] = {}
    shared: dict[int, str] = {}
    for path, layer in module.named_modules():
        for parameter in layer.parameters(recurse=False):
            if first.setdefault(id(parameter), path) != path:
                shared[id(parameter)] = first[id(parameter)]
    return shared


def _why_not(
    path: str, layer: nn.Module, wanted: Sequence[str], ignore: Sequence[str], shared: Mapping[int, str]
) -> str:
    name = f"{path}.weight"
    if is_ignored(name, ignore):
        return "`lowRank.ignore` names it"
    if wanted and not is_ignored(name, wanted):
        return "`lowRank.layers` does not name it"
    if any(id(parameter) in shared for parameter in layer.parameters()):
        return "it shares a weight with another layer"
    groups = getattr(layer, "groups", 1)
    if groups != 1:
        return f"it is a convolution in {groups} groups, each a thin matrix already"
    if sum(matrix_shape(layer)) >= num_weights(layer):
        outputs, inputs = matrix_shape(layer)
        return f"rank 1 would make it larger: {outputs} + {inputs} numbers instead of {num_weights(layer)}"
    return ""
