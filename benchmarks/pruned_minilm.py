"""Structured pruning of MiniLM: limbeck's step against the same cut by torch-pruning directly.

    python -m benchmarks.pruned_minilm

Both take 30 % of heads and of MLP width by L2 and leave the same number of parameters. Ours also tries its cut out
against silencing the units, counts operations before and after, hashes both models and keeps what undo needs;
`find_and_cut` is the part that both do.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from benchmarks.quantized_minilm import NUM_THREADS, _batches, _captions, _minilm
from benchmarks.timing import alternate
from limbeck.api.v1alpha1.compression import Criterion, Prune, PruneScope
from limbeck.api.v1alpha1.model import Loader, Model
from limbeck_runtime.models.loading import load_model
from limbeck_runtime.pruning.attention import find_heads
from limbeck_runtime.pruning.choosing import lowest
from limbeck_runtime.pruning.cutting import cut
from limbeck_runtime.pruning.dependency import find_widths
from limbeck_runtime.pruning.discovery import DEFAULT_UNITS
from limbeck_runtime.pruning.pruning import prune
from limbeck_runtime.pruning.scores import Evidence, unit_scores

SHARE = 0.3

Inputs = Mapping[str, torch.Tensor]


def measure() -> dict[str, Any]:
    """How much longer ours takes, as a whole and for what both do."""
    torch.set_num_threads(NUM_THREADS)
    model = load_model(Model(loader=Loader.TRANSFORMERS, uri=str(_minilm())), "TextEmbedding")
    example = {name: value[:2] for name, value in _batches(model, _captions()[:32])[0].items()}
    settings = Prune(method=Criterion.L2, sparsity_percent=round(100 * SHARE))
    ours = prune(model, settings, example).bundle.num_parameters()
    parts = (_find_and_cut(model.module, example), _by_library(model.module, example))
    assert len({ours, *(sum(p.numel() for p in part.parameters()) for part in parts)}) == 1, "they cut differently"
    whole = alternate(lambda: prune(model, settings, example), lambda: _by_library(model.module, example))
    part = alternate(lambda: _find_and_cut(model.module, example), lambda: _by_library(model.module, example))
    return {"step": whole.ratio.to_json(), "find_and_cut": part.ratio.to_json(), "parameters": ours}


def _find_and_cut(module: nn.Module, example: Inputs) -> nn.Module:
    module = copy.deepcopy(module)
    heads = find_heads(module)
    found = [*heads.spaces, *find_widths(module, example, heads).spaces]
    spaces = [space for space in found if space.kind in DEFAULT_UNITS]
    cut(module, lowest(unit_scores(module, spaces, Criterion.L2, Evidence()), SHARE, PruneScope.LAYER))
    return module


def _by_library(module: nn.Module, example: Inputs) -> nn.Module:
    import torch_pruning  # type: ignore[import-untyped]

    module = copy.deepcopy(module)
    attention: list[Any] = [layer for layer in module.modules() if type(layer).__name__ == "BertSelfAttention"]
    heads = {part: 12 for layer in attention for part in (layer.query, layer.key, layer.value)}
    streams = [layer for path, layer in module.named_modules() if path.endswith("output.dense")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about parameters outside layers, which it leaves alone
        torch_pruning.pruner.BasePruner(
            module,
            example,
            importance=torch_pruning.importance.MagnitudeImportance(p=2),
            pruning_ratio=SHARE,
            num_heads=heads,
            prune_num_heads=True,
            prune_head_dims=False,
            head_pruning_ratio=SHARE,
            ignored_layers=streams,
            forward_fn=lambda network, given: network(given),
            output_transform=lambda outputs: outputs["text_embedding"],
            root_module_types=[nn.Linear],
        ).step()
    return module


if __name__ == "__main__":
    print(json.dumps(measure(), indent=1))
