"""A safetensors file that is kept in memory and written in place.

The format's header depends on names, types and shapes alone, which a training run does not change. So the file
is laid out once; to take a snapshot is to copy each tensor to its place, without allocation or serialisation,
and what lies in memory afterwards is the file. Any safetensors library reads it.
Format: https://github.com/huggingface/safetensors (8 bytes header length, JSON header, data).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

_TYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_ALIGNMENT = 8  # of the data's start; wider types come first, so that every tensor is aligned


class ImageMismatchError(ValueError):
    """A file holds other tensors than those it is to be read into."""


class TensorImage:
    """The file for tensors of given names, types and shapes, with a view into it for each of them."""

    def __init__(self, like: Mapping[str, torch.Tensor]) -> None:
        """Lay the file out and touch its memory, so that the first snapshot is as fast as the later ones."""
        names = sorted(like, key=lambda name: (-like[name].element_size(), name))
        header: dict[str, Any] = {}
        offsets = [0]
        for name in names:
            tensor = like[name]
            offsets.append(offsets[-1] + tensor.numel() * tensor.element_size())
            header[name] = {
                "dtype": _TYPE_NAMES[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": offsets[-2:],
            }
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % _ALIGNMENT)
        self._header = len(text).to_bytes(8, "little") + text
        on_accelerator = any(tensor.device.type == "cuda" for tensor in like.values())
        size = len(self._header) + offsets[-1]
        self.buffer = torch.empty(size, dtype=torch.uint8, pin_memory=on_accelerator).fill_(0)
        self.buffer[: len(self._header)] = torch.frombuffer(bytearray(self._header), dtype=torch.uint8)
        data = self.buffer[len(self._header) :]
        self.views: dict[str, torch.Tensor] = {
            name: data[start:stop].view(like[name].dtype).view(like[name].shape)
            for name, start, stop in zip(names, offsets, offsets[1:], strict=False)
        }

    @property
    def data(self) -> memoryview:
        """The whole file; its bytes change with the next copy."""
        return _as_bytes(self.buffer).data.toreadonly()

    def copy_from(self, tensors: Mapping[str, torch.Tensor], names: Iterable[str]) -> None:
        """Copy the named tensors into the file. On a GPU the copies are enqueued on the current stream."""
        for name in names:
            source, view = tensors[name].detach(), self.views[name]
            if source.device.type == "cpu" and source.is_contiguous():
                # One memcpy without the interpreter's lock, and without a second pool of torch's threads when
                # this runs beside a training step.
                np.copyto(_as_bytes(view), _as_bytes(source))
            else:
                view.copy_(source, non_blocking=True)

    def load(self, data: bytes | memoryview) -> None:
        """Take in a file of the same form; raises ImageMismatchError saying where it differs."""
        self.check(data)
        self.buffer.numpy()[:] = np.frombuffer(data, dtype=np.uint8)

    def check(self, data: bytes | memoryview) -> None:
        """Raise ImageMismatchError unless the file's tensors have the same names, types and shapes."""
        if len(data) == len(self.buffer) and bytes(data[: len(self._header)]) == self._header:
            return
        theirs, ours = _header_of(data), _header_of(self._header)
        for name in sorted(ours.keys() | theirs.keys()):
            if ours.get(name) != theirs.get(name):
                raise ImageMismatchError(
                    f"checkpoint does not fit the model: {name} is {theirs.get(name, 'absent')} in the "
                    f"checkpoint and {ours.get(name, 'absent')} in the model; restore the settings or "
                    "choose another output"
                )
        raise ImageMismatchError("checkpoint does not fit the model: the same tensors lie in another order")


def _as_bytes(tensor: torch.Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    array: np.ndarray[Any, np.dtype[np.uint8]] = tensor.reshape(-1).view(torch.uint8).numpy()
    return array


def _header_of(data: bytes | memoryview) -> dict[str, str]:
    """Type and shape of each tensor of a safetensors file, as text for messages."""
    length = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(bytes(data[8 : 8 + length]))
        return {
            name: f"{entry['dtype']} {tuple(entry['shape'])}"
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except (ValueError, TypeError, KeyError) as error:
        raise ImageMismatchError(f"checkpoint is not a safetensors file: {error}") from error
