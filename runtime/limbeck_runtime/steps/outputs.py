"""What a model gives for a batch, found out by asking it: widths, classes, scale. And how to get more out of it.

Left out: the outputs' meaning, which is the task's (models/adapters.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from limbeck_runtime.data.batch import Batch, Labels
from limbeck_runtime.data.index import DataIndex
from limbeck_runtime.data.loader import BatchLoader
from limbeck_runtime.models.bundle import ModelBundle
from limbeck_runtime.models.tap import resolve_names, tap

FEATURE_PREFIX = "features."
_NUM_SAMPLES = 2


@dataclass(frozen=True)
class Example:
    """Two samples as a model reads them, and what it gives for them; on the CPU."""

    batch: Batch
    outputs: Mapping[str, Tensor]


def example_of(
    bundle: ModelBundle, index: DataIndex, layers: Sequence[str] = (), labels: Labels = Labels.NONE
) -> Example:
    """Ask the model; outputs of `layers` are under `features.<path>`.

    Raises ValueError where the data lacks what the model reads, or a layer is not there.
    """
    with BatchLoader(index, bundle.preprocessing, labels=labels, num_threads=1) as loader:
        batch = loader.batch(index.positions()[:_NUM_SAMPLES])
    module = bundle.module.eval()
    with torch.no_grad(), tap(module, layers) as features:
        outputs = dict(module(batch.inputs))
        return Example(batch, outputs | {FEATURE_PREFIX + path: feature for path, feature in features.items()})


def paths_of(bundle: ModelBundle, patterns: Sequence[str]) -> tuple[str, ...]:
    """The layers that the patterns name, in the patterns' order. Raises ValueError for one that names none."""
    return resolve_names(bundle.module, patterns)


def add_features(module: nn.Module, layers: Sequence[str]) -> None:
    """From now on the module's outputs hold those of `layers` too, under `features.<path>`, with gradient."""
    kept: dict[str, Tensor] = {}

    def keep(path: str) -> None:
        def hook(_layer: nn.Module, _inputs: object, output: object) -> None:
            kept[FEATURE_PREFIX + path] = _first_tensor(output)

        module.get_submodule(path).register_forward_hook(hook)

    for layer in layers:
        keep(layer)

    def merge(_module: nn.Module, _inputs: object, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        merged = dict(outputs) | kept
        kept.clear()
        return merged

    module.register_forward_hook(merge)


def _first_tensor(output: object) -> Tensor:
    """The layer's output; of a tuple or mapping the first part."""
    if isinstance(output, Tensor):
        return output
    parts = list(output.values()) if isinstance(output, Mapping) else list(output) if isinstance(output, tuple) else []
    tensor = next((part for part in parts if isinstance(part, Tensor)), None)
    assert tensor is not None, "a layer without a tensor was refused by the dry run"
    return tensor
