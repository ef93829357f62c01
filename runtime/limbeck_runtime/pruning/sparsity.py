"""Single weights: which go at a given share, and two of each four.

    Layer    the lowest of each tensor; Wanda's of each output row, as its authors compare (Sun et al., 2024)
    Global   the lowest of all tensors together
    TwoFour  the lower two of each four along the inputs, which sparse matrix units want (Mishra et al., 2021)

Zeros from before count as gone. Left out on purpose: embeddings, norms and biases, which stay whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from limbeck.api.v1alpha1.compression import Criterion, PruneScope
from limbeck_runtime.models.weights import tied_names
from limbeck_runtime.pruning.attention import is_transposed
from limbeck_runtime.pruning.discovery import is_ignored

_CONV = nn.modules.conv._ConvNd


@dataclass(frozen=True)
class Weights:
    """Names of the tensors whose entries may go, and what stays whole and why, by path."""

    names: tuple[str, ...]
    kept: Mapping[str, str]


def find_weights(module: nn.Module, ignore: Sequence[str], *, by_fours: bool = False) -> Weights:
    """Weights of linear and convolutional layers."""
    shared = set(tied_names(module).values())
    names: list[str] = []
    kept: dict[str, str] = {}
    for path, layer in module.named_modules():
        if not (isinstance(layer, nn.Linear | _CONV) or is_transposed(layer)):
            continue
        name = f"{path}.weight"
        weight = layer._parameters.get("weight")
        if is_ignored(name, ignore):
            kept[path] = "`prune.ignore` names it"
        elif not isinstance(weight, nn.Parameter):
            kept[path] = "its weight is not a plain parameter"
        elif name in shared or any(weight is other for other in _embeddings(module)):
            kept[path] = "it shares its weight with another layer"
        elif by_fours and weight.shape[input_dim(layer)] % 4:
            kept[path] = f"its {weight.shape[input_dim(layer)]} inputs are not a multiple of four"
        else:
            names.append(name)
    return Weights(tuple(names), kept)


def _embeddings(module: nn.Module) -> list[Tensor]:
    return [layer.weight for layer in module.modules() if isinstance(layer, nn.Embedding)]


def input_dim(layer: nn.Module) -> int:
    """The axis of a layer's weight along which it reads."""
    return 0 if is_transposed(layer) or getattr(layer, "transposed", False) else 1


def lowest_weights(
    scores: Mapping[str, Tensor], share: float, scope: PruneScope, rows: Mapping[str, int] | None = None
) -> dict[str, Tensor]:
    """Masks of what goes. `rows`: compare only within each index of this axis of a tensor, in the scope Layer."""
    if scope is PruneScope.GLOBAL:
        return _lowest_of_all(scores, share)
    masks = {}
    for name, values in scores.items():
        if rows is None:
            masks[name] = _lowest(values.reshape(1, -1), share).reshape(values.shape)
        else:
            by_row = values.movedim(rows[name], 0)
            mask = _lowest(by_row.reshape(len(by_row), -1), share).reshape(by_row.shape)
            masks[name] = mask.movedim(0, rows[name])
    return masks


def two_of_four(scores: Tensor, dim: int) -> Tensor:
    """Mask of the lower two of each four neighbours along `dim`; of equal ones the later go."""
    last = scores.movedim(dim, -1)
    fours = last.reshape(-1, 4)
    order = torch.argsort(fours, dim=1, descending=True, stable=True)
    mask = torch.zeros_like(fours, dtype=torch.bool).scatter_(1, order[:, 2:], True)
    return mask.reshape(last.shape).movedim(-1, dim)


def compares_rows(criterion: Criterion) -> bool:
    """Whether a criterion's scores mean something only within one output."""
    return criterion is Criterion.WANDA


def _lowest(values_RN: Tensor, share: float) -> Tensor:
    count = round(share * values_RN.shape[1])
    mask = torch.zeros_like(values_RN, dtype=torch.bool)
    if count:
        mask.scatter_(1, torch.topk(values_RN, count, dim=1, largest=False).indices, True)
    return mask


def _lowest_of_all(scores: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    flat = torch.cat([values.reshape(-1).double() for values in scores.values()])
    mask = _lowest(flat.reshape(1, -1), share).reshape(-1)
    parts = torch.split(mask, [values.numel() for values in scores.values()])
    return {name: part.reshape(scores[name].shape) for name, part in zip(scores, parts, strict=True)}
