"""A model as every part hands it on: its module, the record that rebuilds it, its preprocessing and its task.

Left out on purpose: building (see rebuilding.py) and reading files (see loading.py).
"""

from __future__ import annotations

import copy
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from limbeck_runtime.models.errors import ArchitectureError
from limbeck_runtime.models.preprocessing import Preprocessing

if TYPE_CHECKING:
    import torch
    from torch import nn
    from typing_extensions import Buffer

ARCHITECTURE_FILE = "architecture.json"
ARCHITECTURE_VERSION = 1


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


@dataclass(frozen=True, slots=True)
class Architecture:
    """What a module is without its weights: enough to build it again with no network and no original files.

    `kind` is a key of `rebuilding.BUILDERS`; `settings` are that builder's, plain JSON, a library's own
    configuration included whole. `edits` were done to the module afterwards, in order, e.g.
    {"kind": "quantize", ...}.
    """

    kind: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    edits: tuple[Mapping[str, Any], ...] = ()

    def with_edit(self, edit: Mapping[str, Any]) -> Architecture:
        """The same architecture with one more edit, which must hold `kind`."""
        if "kind" not in edit:
            raise ArchitectureError(f"an edit must hold `kind`, got the keys {sorted(edit)}")
        return Architecture(self.kind, self.settings, (*self.edits, dict(edit)))

    def to_json(self) -> str:
        """Canonical JSON: equal architectures give equal text."""
        return _canonical(
            {
                "version": ARCHITECTURE_VERSION,
                "kind": self.kind,
                "settings": dict(self.settings),
                "edits": [dict(edit) for edit in self.edits],
            }
        )

    @classmethod
    def from_json(cls, text: str | bytes) -> Architecture:
        """Inverse of `to_json`; raises ArchitectureError naming what is wrong."""
        try:
            record = json.loads(text)
        except ValueError as error:
            raise ArchitectureError(f"{ARCHITECTURE_FILE} is not an architecture record: {error!r}") from error
        return cls.from_plain(record)

    @classmethod
    def from_plain(cls, record: Any) -> Architecture:
        """The same from data that was JSON."""
        try:
            version, kind = record["version"], record["kind"]
            settings, edits = record["settings"], record["edits"]
        except (KeyError, TypeError) as error:
            raise ArchitectureError(f"{ARCHITECTURE_FILE} is not an architecture record: {error!r}") from error
        if version != ARCHITECTURE_VERSION:
            raise ArchitectureError(
                f"{ARCHITECTURE_FILE} must have version {ARCHITECTURE_VERSION}, got {version}; "
                "read it with the limbeck that wrote it"
            )
        return cls(kind, settings, tuple(edits))

    def identity(self) -> str:
        """Hex sha256 of the record."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class ModelBundle:
    """A model ready for use; `module.forward(inputs: dict) -> dict` has its task's keys (see adapters.py)."""

    module: nn.Module
    architecture: Architecture
    preprocessing: Preprocessing
    task: str

    def __reduce__(self) -> tuple[Any, ...]:
        """What transformers leaves in a model that has run cannot be pickled, so it goes without that."""
        return _received, (_without_capturing_hooks(self.module), self.architecture, self.preprocessing, self.task)

    def identity(self) -> str:
        """Hex sha256 over weights and architecture: what a teacher is, for the key of its stored outputs."""
        both = f"{weights_identity(self.module)} {self.architecture.identity()}"
        return hashlib.sha256(both.encode()).hexdigest()

    def num_parameters(self) -> int:
        """Parameters, shared ones counted once."""
        return sum(parameter.numel() for parameter in self.module.parameters())


# Where transformers keeps that it has put hooks into a model that returns hidden states, at the first forward pass
# (Llava's image tower); it puts them in again where the mark is missing. The hooks refer to a context variable.
_HOOKED_MARK = "_output_capturing_hooks_installed"
_HOOKS_MODULE = "transformers.utils.output_capturing"


def _received(module: nn.Module, architecture: Architecture, preprocessing: Preprocessing, task: str) -> ModelBundle:
    """A bundle that another process has sent. What a model can record is known to transformers since it was built,
    which was there and not here."""
    hooks = sys.modules.get(_HOOKS_MODULE)
    if hooks is not None:
        for part in module.modules():
            if getattr(part, "_can_record_outputs", None) is not None:
                hooks._CAN_RECORD_REGISTRY[part] = part._can_record_outputs
    return ModelBundle(module, architecture, preprocessing, task)


def _without_capturing_hooks(module: nn.Module) -> nn.Module:
    """The module itself, or where transformers has hooked it a copy without the hooks that shares all tensors."""
    if not any(_HOOKED_MARK in part.__dict__ for part in module.modules()):
        return module
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    copied = copy.deepcopy(module, shared)
    for part in copied.modules():
        part.__dict__.pop(_HOOKED_MARK, None)
        for key, hook in list(part._forward_hooks.items()):
            if getattr(hook, "__module__", "") == _HOOKS_MODULE:
                del part._forward_hooks[key]
    return copied


def weights_identity(module: nn.Module) -> str:
    """Hex sha256 over every entry of the state dict: name, type, shape and bytes, in the names' order."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        for part, plain in _plain_tensors(name, tensor):
            header = f"{part}:{plain.dtype}:{tuple(plain.shape)};"
            digest.update(header.encode())
            digest.update(_bytes_of(plain))
    return digest.hexdigest()


def _plain_tensors(name: str, tensor: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """A tensor subclass (torchao's quantized ones) as the plain tensors that it is made of."""
    import torch

    if not isinstance(tensor, torch.Tensor):
        return  # extra state of a module is not weights
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if type(tensor) in (torch.Tensor, torch.nn.Parameter) or flatten is None:
        yield name, tensor
        return
    inner_names, _context = flatten()
    for inner in inner_names:
        yield from _plain_tensors(f"{name}.{inner}", getattr(tensor, inner))


def _bytes_of(tensor: torch.Tensor) -> Buffer:
    import torch

    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    if flat.numel() == 0:
        return b""
    buffer: Buffer = flat.view(torch.uint8).numpy().data
    return buffer
