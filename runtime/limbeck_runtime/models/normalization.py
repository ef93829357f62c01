"""Which layers of a model learn statistics of a batch, and why that matters on several workers.

Left out on purpose: replacing them. Name a network with GroupNorm or LayerNorm instead.
"""

from __future__ import annotations

from torch import nn


def batch_norm_layers(module: nn.Module) -> tuple[str, ...]:
    """Paths of the BatchNorm layers."""
    return tuple(name for name, layer in module.named_modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm))


def batch_norm_warning(module: nn.Module, num_workers: int) -> str | None:
    """What to tell the user where several workers train BatchNorm layers, else None."""
    layers = batch_norm_layers(module)
    if num_workers < 2 or not layers:
        return None
    return (
        f"{len(layers)} BatchNorm layers (the first is {layers[0]}) see only their worker's part of a batch: results "
        f"of {num_workers} workers differ from those of one; a network with LayerNorm (convnext, vit) or GroupNorm "
        "(a resnet with settings {norm_layer: groupnorm}) does not have this"
    )
