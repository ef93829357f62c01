"""Which layers become int8, and which stay in float and why.

Left out on purpose: what happens to a chosen layer (conversion.py).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from fnmatch import fnmatchcase

from torch import nn

from limbeck.api.v1alpha1.compression import Activations
from limbeck_runtime.quantization.errors import QuantizationError


class LayerKind(StrEnum):
    """What can become int8."""

    LINEAR = "Linear"
    CONV = "Conv"
    EMBEDDING = "Embedding"


# By exact type: a subclass may compute something else (torch's attention reads its projection's weight itself).
LAYER_KINDS: dict[str, LayerKind] = {
    "torch.nn.modules.linear.Linear": LayerKind.LINEAR,
    "transformers.pytorch_utils.Conv1D": LayerKind.LINEAR,  # GPT-2's linear layer, its weight transposed
    "torch.nn.modules.conv.Conv1d": LayerKind.CONV,
    "torch.nn.modules.conv.Conv2d": LayerKind.CONV,
    "torch.nn.modules.conv.Conv3d": LayerKind.CONV,
    "torch.nn.modules.sparse.Embedding": LayerKind.EMBEDDING,
}


@dataclass(frozen=True)
class Selection:
    """Layers by path: those that become int8 with their kind, and the others that hold a matrix, with the reason."""

    chosen: Mapping[str, LayerKind]
    kept: Mapping[str, str] = field(default_factory=dict)


def select(module: nn.Module, skip: Sequence[str], *, embeddings: bool) -> Selection:
    """All layers that can become int8, but for those that `skip` names by shell patterns of their paths.

    Raises QuantizationError for a pattern that matches no module, and where no layer is left.
    """
    chosen: dict[str, LayerKind] = {}
    kept: dict[str, str] = {}
    paths = [path for path, _ in module.named_modules() if path]
    for pattern in skip:
        if not any(fnmatchcase(path, pattern) for path in paths):
            shown = ", ".join(path for path, child in module.named_modules() if kind_of(child))
            raise QuantizationError(
                f"`quantize.skip` must hold patterns that match layers, got {pattern!r}, which matches none of "
                f"{shown[:400]}; correct or remove it"
            )
    for path, child in module.named_modules():
        kind = kind_of(child)
        if kind is None:
            if _holds_a_matrix(child):
                kept[path] = f"{type(child).__name__} has no int8 layer"
        elif any(fnmatchcase(path, pattern) for pattern in skip):
            kept[path] = "`quantize.skip` names it"
        elif kind is LayerKind.EMBEDDING and not embeddings:
            kept[path] = "`quantize.embeddings` is false"
        elif reason := _why_not(child):
            kept[path] = reason
        else:
            chosen[path] = kind
    _keep_ties_together(module, chosen, kept)
    if not chosen:
        reasons = "; ".join(f"{path}: {reason}" for path, reason in kept.items())[:400]
        raise QuantizationError(
            f"`quantize` must find a Linear, Conv or Embedding layer to turn into int8, found none ({reasons})"
        )
    return Selection(chosen, kept)


def kind_of(module: nn.Module) -> LayerKind | None:
    """What a module can become; None where there is no int8 layer for it."""
    kind = type(module)
    return LAYER_KINDS.get(f"{kind.__module__}.{kind.__qualname__}")


def rounds_inputs(module: nn.Module) -> bool:
    """False for what only has int8 weights: embeddings, and depthwise convolutions (see kernels.py)."""
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return module.groups == 1 or module.in_channels > module.groups
    return not isinstance(module, nn.Embedding)


def activations_of(module: nn.Module, wanted: Activations) -> Activations:
    """`wanted`, or None for a layer whose inputs are not rounded."""
    return wanted if rounds_inputs(module) else Activations.NONE


def _why_not(module: nn.Module) -> str:
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and (
        module.padding_mode != "zeros" or isinstance(module.padding, str)
    ):
        return f"its padding ({module.padding_mode}, {module.padding}) has no int8 kernel"
    if isinstance(module, nn.Embedding) and module.max_norm is not None:
        return "it renormalises its rows as it reads them"
    return ""


def _holds_a_matrix(module: nn.Module) -> bool:
    return any(parameter.ndim > 1 for parameter in module.parameters(recurse=False))


def _keep_ties_together(module: nn.Module, chosen: dict[str, LayerKind], kept: dict[str, str]) -> None:
    """A weight that a float layer shares stays float everywhere: two copies would be larger than one."""
    owners: dict[int, list[str]] = defaultdict(list)
    for path, child in module.named_modules():
        for parameter in child.parameters(recurse=False):
            owners[id(parameter)].append(path)
    for paths in owners.values():
        floats = [path for path in paths if path not in chosen]
        for path in paths:
            if floats and path in chosen:
                del chosen[path]
                kept[path] = f"it shares its weight with {floats[0]}, which stays in float"
