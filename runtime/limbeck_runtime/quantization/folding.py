"""Takes batch norms into the convolutions before them, so that a layer's integers are those of the two together.

Which norm follows which convolution is seen by running one batch: a norm whose input is the very tensor that a
convolution gave. That nothing else reads this tensor cannot be seen, so the answers before and after are compared.
Left out on purpose: norms after linear layers, and norms whose statistics are the batch's own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from limbeck_runtime.models.errors import ArchitectureError

KIND = "fold_norms"
VERSION = 1
# Of the largest number in an answer: folding only rounds differently.
_TOLERANCE = 1e-3

Inputs = Mapping[str, torch.Tensor]
Pair = tuple[str, str]


def fold_norms(module: nn.Module, convolutions: Sequence[str], batch: Inputs) -> list[Pair]:
    """Fold in place what can be folded; the pairs (convolution, norm) that were. None where answers would change."""
    pairs = _find_pairs(module, convolutions, batch)
    if not pairs:
        return []
    kept = [(module.get_submodule(path), path) for pair in pairs for path in pair]
    states = [{name: value.clone() for name, value in layer.state_dict().items()} for layer, _ in kept]
    with torch.inference_mode():
        before = module(batch)
    _replace(module, pairs)
    with torch.inference_mode():
        after = module(batch)
    if all(_close(before[name], after[name]) for name in before):
        return pairs
    for (layer, path), state in zip(kept, states, strict=True):
        if isinstance(layer, nn.modules.conv._ConvNd) and "bias" not in state:
            layer.register_parameter("bias", None)
        layer.load_state_dict(state)
        module.set_submodule(path, layer)
    return []


def edit_of(pairs: Sequence[Pair]) -> dict[str, Any]:
    """The edit that an architecture record holds."""
    return {"kind": KIND, "version": VERSION, "pairs": [list(pair) for pair in pairs]}


def apply_edit(module: nn.Module, edit: Mapping[str, Any]) -> nn.Module:
    """`module` with the norms of the edit folded, its weights still to be loaded. Raises ArchitectureError."""
    if edit.get("version") != VERSION:
        raise ArchitectureError(
            f"a {KIND} edit must have version {VERSION}, got {edit.get('version')}; read the model with the limbeck "
            "that wrote it"
        )
    try:
        _replace(module, [(convolution, norm) for convolution, norm in edit["pairs"]])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ArchitectureError(f"a {KIND} edit cannot be replayed: {error!r}") from error
    return module


def _find_pairs(module: nn.Module, convolutions: Sequence[str], batch: Inputs) -> list[Pair]:
    outputs: dict[int, str] = {}
    alive: list[torch.Tensor] = []  # an id is only unique while its object lives
    pairs: list[Pair] = []
    calls: Counter[str] = Counter()

    def gave(path: str) -> Any:
        def hook(_layer: nn.Module, _arguments: Any, output: torch.Tensor) -> None:
            calls[path] += 1
            outputs[id(output)] = path
            alive.append(output)

        return hook

    def takes(path: str) -> Any:
        def hook(_layer: nn.Module, arguments: Sequence[Any]) -> None:
            calls[path] += 1
            if id(arguments[0]) in outputs:
                pairs.append((outputs[id(arguments[0])], path))

        return hook

    norms = {path: layer for path, layer in module.named_modules() if _can_be_folded(layer)}
    handles = [module.get_submodule(path).register_forward_hook(gave(path)) for path in convolutions]
    handles += [layer.register_forward_pre_hook(takes(path)) for path, layer in norms.items()]
    try:
        with torch.inference_mode():
            module(batch)
    finally:
        for handle in handles:
            handle.remove()
    followers = Counter(convolution for convolution, _ in pairs)
    return [
        (convolution, norm)
        for convolution, norm in pairs
        if calls[convolution] == calls[norm] == followers[convolution] == 1
    ]


def _can_be_folded(layer: nn.Module) -> bool:
    """torch's batch norms, and timm's, which hold an activation too; with running statistics."""
    return isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.running_mean is not None


def _replace(module: nn.Module, pairs: Sequence[Pair]) -> None:
    for convolution_path, norm_path in pairs:
        convolution: Any = module.get_submodule(convolution_path)
        norm: Any = module.get_submodule(norm_path)
        weight, bias = fuse_conv_bn_weights(
            convolution.weight,
            convolution.bias,
            norm.running_mean,
            norm.running_var,
            norm.eps,
            norm.weight,
            norm.bias,
        )
        convolution.weight = nn.Parameter(weight.detach(), requires_grad=False)
        convolution.bias = nn.Parameter(bias.detach(), requires_grad=False)
        module.set_submodule(norm_path, _what_follows(norm))


def _what_follows(norm: nn.Module) -> nn.Module:
    """What a norm of timm does after normalising; nothing for torch's own."""
    rest = [getattr(norm, name) for name in ("drop", "act") if hasattr(norm, name)]
    return nn.Sequential(*rest) if rest else nn.Identity()


def _close(before: torch.Tensor, after: torch.Tensor) -> bool:
    largest = float(before.abs().max()) if before.numel() else 0.0
    return bool(torch.allclose(before, after, rtol=0, atol=_TOLERANCE * max(largest, 1e-6)))
