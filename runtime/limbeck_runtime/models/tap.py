"""Features from inside a model, by the paths of its modules.

Left out on purpose: hooks on parameters and gradients, and what functions (not modules) compute in between.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from limbeck_runtime.models.errors import ModelError


def resolve_names(module: nn.Module, patterns: Sequence[str]) -> tuple[str, ...]:
    """Module paths that shell patterns name, each once, in the order of the patterns and then of the model.

    Raises ModelError for a pattern that names nothing, with the nearest paths.
    """
    known = [name for name, _ in module.named_modules() if name]
    found: dict[str, None] = {}
    for pattern in patterns:
        matches = fnmatch.filter(known, pattern)
        if not matches:
            raise ModelError(f"no layer of the model is named {pattern!r}; {_near(pattern, known)}")
        found.update(dict.fromkeys(matches))
    return tuple(found)


def _near(pattern: str, known: Sequence[str]) -> str:
    plain = pattern.replace("*", "").replace("?", "")
    near = difflib.get_close_matches(plain, known, n=5, cutoff=0.5)
    if not near:
        near = [name for name in known if "." not in name][:10]
        return f"its outermost layers are {', '.join(near)}"
    return f"near it are {', '.join(near)}"


@contextmanager
def tap(module: nn.Module, names: Sequence[str]) -> Iterator[Mapping[str, torch.Tensor]]:
    """Within the block, each forward pass of `module` fills the yielded mapping: path -> the layer's output.

    Gradients flow through the features. Of a layer that gives a tuple or a mapping the first tensor is taken.
    The mapping holds the last pass only; the hooks go when the block ends.
    """
    features: dict[str, torch.Tensor] = {}
    handles = []
    for path in resolve_names(module, names):

        def keep(_layer: nn.Module, _inputs: Any, output: Any, path: str = path) -> None:
            features[path] = _first_tensor(output, path)

        handles.append(module.get_submodule(path).register_forward_hook(keep))
    try:
        yield features
    finally:
        for handle in handles:
            handle.remove()


def _first_tensor(output: Any, path: str) -> torch.Tensor:
    if isinstance(output, torch.Tensor):
        return output
    values = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple) else ()
    for value in values:
        if isinstance(value, torch.Tensor):
            return value
    raise ModelError(f"the layer {path} gives no tensor but {type(output).__name__}; name another layer")
