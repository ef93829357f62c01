"""Channels and widths as units of a space, by torch-pruning's dependency graph (Fang et al., CVPR 2023).

The graph says which axes of which layers hang together; what it says is turned into plain data here, and nothing of
the library is used for cutting. Its tracing takes what it does not know for element by element, so every space is
tried out before it counts (discovery.py).
Left out on purpose: grouped convolutions, group norms of several groups, recurrent layers: what touches them stays.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from limbeck.api.v1alpha1.compression import PruneUnit
from limbeck_runtime.pruning.attention import Heads
from limbeck_runtime.pruning.spaces import Role, Slice, Space

Inputs = Mapping[str, torch.Tensor]
_CONV = nn.modules.conv._ConvNd
_CHANNELWISE = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.PReLU,
)


@dataclass(frozen=True)
class Widths:
    """What the graph holds, and what stays whole and why."""

    spaces: tuple[Space, ...]
    kept: dict[str, str]


class _StaysError(Exception):
    """A group that must stay whole; the message says why."""


def find_widths(module: nn.Module, batch: Inputs, heads: Heads) -> Widths:
    """Every group of coupled channels of `module`, but for what attention cuts.

    The module runs once, with gradients, on `batch`.
    """
    names = _traced(module, batch, heads)
    spaces: list[Space] = []
    kept: dict[str, str] = {}
    seen: set[str] = set()
    for group in names.graph.get_all_groups(root_module_types=(_CONV, nn.Linear)):
        root = names.of(group[0].dep.target.module)
        if root in seen:
            continue
        try:
            space = _space(root, group, names, heads.tensors)
        except _StaysError as reason:
            kept[root] = str(reason)
            continue
        if space is not None:
            spaces.append(space)
            seen.update(piece.tensor.rpartition(".")[0] for piece in space.slices if piece.role is Role.WRITES)
    return Widths(tuple(spaces), kept)


def _traced(module: nn.Module, batch: Inputs, heads: Heads) -> _Names:
    """torch-pruning's graph of the module.

    Float inputs are parameters of their own, so that what hangs on them is seen. Attention is left out, since the
    library takes minutes for grouped queries: what reads the stream there is added by whose output it reads.
    """
    import torch_pruning  # type: ignore[import-untyped]

    traced = {
        name: nn.Parameter(value.detach().clone()) if value.is_floating_point() else value
        for name, value in batch.items()
    }
    unwrapped = [(value, _channel_dim(value)) for value in traced.values() if isinstance(value, nn.Parameter)]
    frozen = [parameter for parameter in module.parameters() if not parameter.requires_grad]
    graph = torch_pruning.DependencyGraph()
    readers: list[tuple[nn.Module, Any]] = []
    handles = [
        layer.register_forward_pre_hook(lambda own, arguments: readers.append((own, arguments[0].grad_fn)))
        for layer in module.modules()
        if isinstance(layer, nn.Linear | _CONV) or _is_norm(layer)
    ]
    handles += [
        module.get_submodule(path).register_forward_pre_hook(lambda _own, given: (given[0].detach(), *given[1:]))
        for path in heads.outputs
    ]
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")
        for parameter in frozen:
            parameter.requires_grad_(True)
        try:
            graph.build_dependency(
                module,
                traced,
                forward_fn=lambda network, given: network(given),
                output_transform=lambda outputs: [value for value in outputs.values() if value.requires_grad],
                unwrapped_parameters=unwrapped,
                verbose=False,
            )
        finally:
            for parameter in frozen:
                parameter.requires_grad_(False)
            for handle in handles:
                handle.remove()
    return _Names(module, graph, traced, readers)


def _channel_dim(value: torch.Tensor) -> int:
    """Of images and sound the second axis, of features the last."""
    return 1 if value.dim() >= 3 else value.dim() - 1


class _Names:
    """What the graph's nodes stand for."""

    def __init__(self, module: nn.Module, graph: Any, traced: Inputs, readers: Iterable[tuple[nn.Module, Any]]) -> None:
        self.graph = graph
        self._modules = {id(layer): path for path, layer in module.named_modules()}
        self._parameters = {id(value): name for name, value in module.named_parameters()}
        self._buffers = {id(value): name for name, value in module.named_buffers()}
        self._inputs = {id(value): name for name, value in traced.items()}
        self._traced = traced  # an id is only unique while its object lives
        nodes = {node.grad_fn: node.module for node in graph.module2node.values()}
        self._readers: dict[int, list[nn.Module]] = {}
        for layer, grad_fn in readers:
            if layer not in graph.module2node and getattr(layer, "weight", None) not in graph.module2node:
                source = _first_known(grad_fn, nodes)
                self._readers.setdefault(id(source), []).append(layer)

    def readers(self, thing: object) -> list[nn.Module]:
        """Layers outside the graph that read what a node gives."""
        return self._readers.get(id(thing), [])

    def of(self, thing: object) -> str:
        return self._modules.get(id(thing)) or self._parameters.get(id(thing)) or ""

    def tensor(self, value: torch.Tensor) -> str:
        """The canonical name: of what is tied the first."""
        return self._parameters.get(id(value)) or self._buffers[id(value)]

    def input(self, thing: object) -> str | None:
        return self._inputs.get(id(thing))

    def is_output(self, thing: object) -> bool:
        return type(thing).__name__ == "_OutputOp"

    def writes(self, handler: Any) -> bool:
        return bool(self.graph.is_out_channel_pruning_fn(handler))

    def dim_of(self, parameter: nn.Parameter) -> int:
        return int(self.graph.module2node[parameter].pruning_dim)


def _space(root: str, group: Any, names: _Names, taken: Set[str]) -> Space | None:
    """The group as a space; None where attention cuts it already."""
    num_units = len(group[0].idxs)
    slices: list[Slice] = []
    producers: list[nn.Module] = []
    mixing = adds = False
    for item in group:
        layer = item.dep.target.module
        if names.is_output(layer):
            raise _StaysError("its channels are the model's output")
        if (given := names.input(layer)) is not None:
            raise _StaysError(f"the stream that it adds to is the model's input {given}")
        indices_UN = _indices(item, num_units)
        writes = names.writes(item.dep.handler) and not _reads(item.dep.handler)
        for piece in _slices(layer, writes, indices_UN, names):
            mark = piece.tensor if piece.role is not Role.READS else f"{piece.tensor}:reads"
            if mark in taken:
                return None
            slices.append(piece)
        if writes and isinstance(layer, nn.Linear | _CONV) and not _is_depthwise(layer):
            producers.append(layer)
        for reader in names.readers(layer):
            slices += _of_reader(reader, indices_UN, names)
        mixing = mixing or _mixes(layer)
        adds = adds or _adds(item.dep.target)
    merged = _merged(slices)
    if not any(piece.role is Role.READS for piece in merged):
        raise _StaysError("no layer reads its channels: they are the model's output")
    return Space(root, _kind(producers, adds), num_units, merged, exact=not mixing)


def _reads(handler: Any) -> bool:
    return "in_channels" in getattr(handler, "__name__", "")


def _indices(item: Any, num_units: int) -> torch.Tensor:
    """(U, N): the entries of each unit, by the unit at the root that they follow from."""
    roots, own = torch.tensor(item.root_idxs), torch.tensor(item.idxs)
    if len(own) == 0 or len(own) % num_units:
        raise _StaysError("its channels do not follow one pattern")
    order = torch.argsort(roots, stable=True)
    per_unit = len(own) // num_units
    if not torch.equal(roots[order], torch.arange(num_units).repeat_interleave(per_unit)):
        raise _StaysError("its channels do not follow one pattern")
    return own[order].reshape(num_units, per_unit)


def _is_depthwise(layer: nn.Module) -> bool:
    return isinstance(layer, _CONV) and layer.groups == layer.out_channels == layer.in_channels and layer.groups > 1


def _mixes(layer: object) -> bool:
    """Whether a unit's going changes the others: norms over all channels, and the streams that go with them."""
    if isinstance(layer, nn.GroupNorm):
        return layer.num_groups != layer.num_channels
    return isinstance(layer, nn.LayerNorm | nn.RMSNorm | nn.Embedding | nn.Parameter)


def _adds(node: Any) -> bool:
    """Whether a node is the sum of two branches, as where a block adds to the stream."""
    grad_fn = node.grad_fn
    if "AddBackward" not in type(grad_fn).__name__:
        return False
    sources = [source for source, _ in grad_fn.next_functions if source is not None]
    return len(sources) > 1 and not any("AccumulateGrad" in type(source).__name__ for source in sources)


def _kind(producers: list[nn.Module], adds: bool) -> PruneUnit:
    if adds and len(producers) > 1:
        return PruneUnit.RESIDUAL_WIDTH
    return PruneUnit.CHANNELS if any(isinstance(layer, _CONV) for layer in producers) else PruneUnit.MLP_WIDTH


def _first_known(grad_fn: Any, nodes: Mapping[Any, object]) -> object:
    """What gave a tensor, through slices and reshapes of it that the graph does not hold."""
    while grad_fn is not None and grad_fn not in nodes:
        sources = (source for source, _ in grad_fn.next_functions if source is not None)
        grad_fn = next((source for source in sources if "AccumulateGrad" not in type(source).__name__), None)
    return nodes.get(grad_fn)


def _slices(layer: Any, writes: bool, indices_UN: torch.Tensor, names: _Names) -> Iterator[Slice]:
    """The tensors of a layer that have an axis of the group. Raises _StaysError for a layer that limbeck cannot cut."""
    if isinstance(layer, nn.Parameter):
        yield Slice(names.tensor(layer), names.dim_of(layer), indices_UN, Role.BETWEEN)
    elif isinstance(layer, nn.LSTM | nn.MultiheadAttention):
        raise _StaysError(f"a {type(layer).__name__} cannot be cut")
    elif isinstance(layer, nn.Linear | _CONV):
        yield from _of_matrix(layer, writes, indices_UN, names)
    elif isinstance(layer, nn.Embedding):
        yield Slice(names.tensor(layer.weight), 1, indices_UN, Role.WRITES)
    elif isinstance(layer, nn.GroupNorm) and 1 < layer.num_groups < layer.num_channels:
        raise _StaysError(f"a GroupNorm of {layer.num_groups} groups cannot lose single channels")
    elif isinstance(layer, nn.LayerNorm) and len(layer.normalized_shape) != 1:
        raise _StaysError("a LayerNorm over several axes cannot be cut")
    elif isinstance(layer, _CHANNELWISE):
        yield from _of_norm(layer, indices_UN, names)


def _of_matrix(layer: Any, writes: bool, indices_UN: torch.Tensor, names: _Names) -> Iterator[Slice]:
    weight = names.tensor(layer.weight)
    out_dim, in_dim = (1, 0) if getattr(layer, "transposed", False) else (0, 1)
    if _is_depthwise(layer):
        yield Slice(weight, 0, indices_UN, Role.BETWEEN)
    elif isinstance(layer, _CONV) and layer.groups > 1:
        raise _StaysError(f"a convolution in {layer.groups} groups cannot lose single channels")
    elif not writes:
        yield Slice(weight, in_dim, indices_UN, Role.READS)
        return
    else:
        yield Slice(weight, out_dim, indices_UN, Role.WRITES)
    if layer.bias is not None:
        yield Slice(names.tensor(layer.bias), 0, indices_UN, Role.WRITES, is_weight=False)


def _of_norm(layer: Any, indices_UN: torch.Tensor, names: _Names) -> Iterator[Slice]:
    for name in ("weight", "bias", "running_mean", "running_var"):
        value = getattr(layer, name, None)
        if value is not None and value.numel() > 1:
            yield Slice(names.tensor(value), 0, indices_UN, Role.BETWEEN, is_weight=name == "weight")


def _is_norm(layer: nn.Module) -> bool:
    """A norm over the last axis, of torch's or of a library's own make."""
    weight = layer._parameters.get("weight")
    return "Norm" in type(layer).__name__ and weight is not None and weight.dim() == 1


def _of_reader(layer: Any, indices_UN: torch.Tensor, names: _Names) -> Iterator[Slice]:
    if _is_norm(layer):
        yield from _of_norm(layer, indices_UN, names)
    else:
        yield Slice(names.tensor(layer.weight), 1, indices_UN, Role.READS)


def _merged(slices: list[Slice]) -> tuple[Slice, ...]:
    """One slice for each axis of each tensor, though tied layers and depthwise convolutions come twice."""
    found: dict[tuple[str, int], Slice] = {}
    for piece in slices:
        key = (piece.tensor, piece.dim)
        before = found.setdefault(key, piece)
        if before is not piece and not torch.equal(before.indices.sort(1).values, piece.indices.sort(1).values):
            raise _StaysError(f"{piece.tensor} has its channels in two orders")
    return tuple(found.values())
