"""Attention heads as units of a space.

A head is its rows of query, key and value and its columns of the output matrix. Under grouped-query attention several
query heads share a key and value head: they go together. In fused matrices (timm's qkv, GPT-2's c_attn) a head's
rows lie in three places. torch's own MultiheadAttention computes its head width from the stream, so its heads stay.
Left out on purpose: key-value compression (multi-query conversion), and pruning inside a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from limbeck.api.v1alpha1.compression import PruneUnit
from limbeck_runtime.pruning.spaces import Role, Size, Slice, Space

_SEPARATE = (("query", "key", "value"), ("q_proj", "k_proj", "v_proj"), ("q_lin", "k_lin", "v_lin"))
_FUSED = ("qkv", "c_attn", "Wqkv", "qkv_proj")
_OUTPUTS = ("out_proj", "o_proj", "out_lin", "proj", "c_proj")
# BERT keeps the output matrix of `attention.self` in `attention.output.dense`.
_OUTPUTS_BESIDE = ("output.dense",)
_HEAD_WIDTHS = ("head_dim", "attention_head_size")
_HEAD_COUNTS = ("num_heads", "num_attention_heads", "n_heads", "num_key_value_heads")
_ALL_WIDTHS = ("all_head_size", "attn_dim", "split_size", "inner_dim")
# What also has one entry for each head, or goes over all heads, in some networks.
_UNKNOWN_PARTS = ("gate", "norm", "relative_position_bias_table", "relative_attention_bias", "distance_embedding")


@dataclass(frozen=True)
class Heads:
    """What was found of attention: spaces, tensors that only they may cut, and what stays whole and why.

    `outputs` are the paths of all output matrices, also of attention whose heads stay.
    """

    spaces: tuple[Space, ...]
    tensors: frozenset[str]
    outputs: tuple[str, ...]
    kept: dict[str, str]


def find_heads(module: nn.Module) -> Heads:
    """Every attention layer of a known make in `module`."""
    spaces: list[Space] = []
    tensors: set[str] = set()
    outputs: list[str] = []
    kept: dict[str, str] = {}
    for path, layer in module.named_modules():
        if isinstance(layer, nn.MultiheadAttention):
            kept[path] = "torch's MultiheadAttention computes its head width from the stream, so heads cannot go"
            tensors.update(f"{path}.{name}" for name, _ in layer.named_parameters())
            continue
        parts = _parts(module, path, layer)
        if parts is None:
            continue
        tensors.update(_names(parts))
        outputs.append(parts.output[0])
        reason = _why_not(layer, parts)
        if reason:
            kept[path] = reason
        else:
            spaces.append(_space(path, layer, parts))
    return Heads(tuple(spaces), frozenset(tensors), tuple(outputs), kept)


@dataclass(frozen=True)
class _Parts:
    """Paths and layers of the input matrices (one if fused, else query, key, value) and the output matrix."""

    inputs: tuple[tuple[str, Any], ...]
    output: tuple[str, Any]

    @property
    def fused(self) -> bool:
        return len(self.inputs) == 1


def _parts(module: nn.Module, path: str, layer: nn.Module) -> _Parts | None:
    inputs = next(
        (names for names in _SEPARATE if all(_is_matrix(getattr(layer, name, None)) for name in names)),
        next(((name,) for name in _FUSED if _is_matrix(getattr(layer, name, None))), None),
    )
    if inputs is None:
        return None
    inside = [f"{path}.{name}" for name in _OUTPUTS]
    beside = [f"{path.rpartition('.')[0]}.{name}" for name in _OUTPUTS_BESIDE]
    for output in (*inside, *beside):
        found = _submodule(module, output)
        if _is_matrix(found):
            return _Parts(tuple((f"{path}.{name}", getattr(layer, name)) for name in inputs), (output, found))
    return None


def _submodule(module: nn.Module, path: str) -> nn.Module | None:
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None


def _is_matrix(layer: object) -> bool:
    return isinstance(layer, nn.Linear) or is_transposed(layer)


def is_transposed(layer: object) -> bool:
    """GPT-2's linear layer, whose weight is (in, out)."""
    return f"{type(layer).__module__}.{type(layer).__qualname__}" == "transformers.pytorch_utils.Conv1D"


def _out_features(layer: Any) -> int:
    return int(layer.weight.shape[1 if is_transposed(layer) else 0])


def _in_features(layer: Any) -> int:
    return int(layer.weight.shape[0 if is_transposed(layer) else 1])


def _head_width(layer: nn.Module) -> int | None:
    widths = [getattr(layer, name) for name in _HEAD_WIDTHS if isinstance(getattr(layer, name, None), int)]
    return widths[0] if widths else None


def _why_not(layer: nn.Module, parts: _Parts) -> str:
    for name in _UNKNOWN_PARTS:
        part = getattr(layer, name, None)
        if part is not None and not isinstance(part, nn.Identity):
            return f"its {name} goes over heads in a way that limbeck does not know"
    width = _head_width(layer)
    if not width:
        return f"a {type(layer).__name__} does not say how wide its heads are"
    widths = [_out_features(part) for _, part in parts.inputs]
    query = widths[0] // 3 if parts.fused else widths[0]
    keys = query if parts.fused else widths[1]
    if query % width or keys % width or (parts.fused and widths[0] % 3) or query % keys:
        return f"its matrices of {widths} rows are not whole heads of {width}"
    if not parts.fused and widths[1] != widths[2]:
        return f"its keys ({widths[1]}) and values ({widths[2]}) differ in width"
    if _in_features(parts.output[1]) != query:
        return f"its output matrix reads {_in_features(parts.output[1])} features where the heads give {query}"
    return ""


def _space(path: str, layer: nn.Module, parts: _Parts) -> Space:
    width = _head_width(layer)
    assert width is not None
    widths = [_out_features(part) for _, part in parts.inputs]
    queries = widths[0] // 3 if parts.fused else widths[0]
    num_units = queries // width if parts.fused else widths[1] // width
    per_unit = queries // width // num_units
    slices: list[Slice] = []
    for place, (name, part) in enumerate(parts.inputs):
        if parts.fused:
            indices_UN = torch.cat([_rows(num_units, width) + start * queries for start in range(3)], dim=1)
        else:
            indices_UN = _rows(num_units, width * per_unit if place == 0 else width)
        slices += _writes(name, part, indices_UN)
    name, part = parts.output
    reads_UN = _rows(num_units, width * per_unit)
    slices.append(Slice(f"{name}.weight", 0 if is_transposed(part) else 1, reads_UN, Role.READS))
    return Space(path, PruneUnit.HEADS, num_units, tuple(slices), tuple(_sizes(path, layer, num_units, queries)))


def _rows(num_units: int, width: int) -> torch.Tensor:
    return torch.arange(num_units * width).reshape(num_units, width)


def _writes(name: str, part: Any, indices_UN: torch.Tensor) -> Iterator[Slice]:
    yield Slice(f"{name}.weight", 1 if is_transposed(part) else 0, indices_UN, Role.WRITES)
    if part.bias is not None:
        yield Slice(f"{name}.bias", 0, indices_UN, Role.WRITES, is_weight=False)


def _sizes(path: str, layer: nn.Module, num_units: int, queries: int) -> Iterator[Size]:
    """Counts that the layer keeps of its heads. Which are heads and which key-value heads, its values say."""
    for name in (*_HEAD_COUNTS, *_ALL_WIDTHS):
        value = getattr(layer, name, None)
        if isinstance(value, int) and value % num_units == 0 and (name in _HEAD_COUNTS or value == queries):
            yield Size(path, name, value // num_units)


def _names(parts: _Parts) -> Iterator[str]:
    for name, part in parts.inputs:
        yield f"{name}.weight"
        if part.bias is not None:
            yield f"{name}.bias"
    yield f"{parts.output[0]}.weight:reads"
