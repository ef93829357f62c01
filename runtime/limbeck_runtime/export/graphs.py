"""Which graphs a model is exported as: one, but for image-text models one for each encoder.

Left out on purpose: generation loops and key-value caches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from limbeck.api.v1alpha1.job import Task
from limbeck_runtime.models.bundle import ModelBundle
from limbeck_runtime.models.preprocessing import Padding

Inputs = Mapping[str, torch.Tensor]

_TEXT = ("input_ids", "attention_mask")


@dataclass(frozen=True)
class Graph:
    """One exported graph; `module` takes the inputs by position and gives the one output."""

    name: str
    module: nn.Module
    inputs: tuple[str, ...]
    output: str


def graphs_of(bundle: ModelBundle, available: Inputs) -> list[Graph]:
    """The graphs of a model; `available` are a batch's inputs, which tell whether a language model sees images."""
    task, module = Task(bundle.task), bundle.module
    if task is Task.IMAGE_TEXT:
        return [
            Graph("image_encoder", _Encoder(module, "encode_image", ("pixel_values",)), ("pixel_values",), _IMAGE_OUT),
            Graph("text_encoder", _Encoder(module, "encode_text", _TEXT), _TEXT, _TEXT_OUT),
        ]
    wanted = {
        Task.IMAGE_CLASSIFICATION: (("pixel_values",), "logits"),
        Task.TEXT_EMBEDDING: (_TEXT, _TEXT_OUT),
        Task.CAUSAL_LM: ((*_TEXT, "pixel_values"), "logits"),
        Task.AUDIO_EMBEDDING: (("input_features",), "audio_embedding"),
        Task.SPEECH: (("input_features", *_TEXT), "logits"),
    }
    names, output = wanted[task]
    names = tuple(name for name in names if name in available)
    return [Graph("model", _Whole(module, names, output), names, output)]


def dynamic_dimensions(bundle: ModelBundle, names: tuple[str, ...]) -> tuple[dict[int, Any], ...]:
    """Which dimensions of each input are free: the batch, and the tokens of a text."""
    batch = torch.export.Dim("batch", min=1)
    text = bundle.preprocessing.text
    tokens = None
    if text is not None and text.padding is not Padding.MAX_LENGTH:
        tokens = torch.export.Dim("tokens", min=1, max=text.max_length)
    free = {0: batch}
    return tuple({**free, 1: tokens} if name in _TEXT and tokens is not None else free for name in names)


_IMAGE_OUT, _TEXT_OUT = "image_embedding", "text_embedding"


class _Encoder(nn.Module):
    """One tower with its projection."""

    def __init__(self, module: nn.Module, method: str, names: tuple[str, ...]) -> None:
        super().__init__()
        self.module = module
        self.method = method
        self.names = names

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        embedding: torch.Tensor = getattr(self.module, self.method)(dict(zip(self.names, tensors, strict=True)))
        return embedding


class _Whole(nn.Module):
    """A module with one output, its inputs by position."""

    def __init__(self, module: nn.Module, names: tuple[str, ...], output: str) -> None:
        super().__init__()
        self.module = module
        self.names = names
        self.output = output

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.module(dict(zip(self.names, tensors, strict=True)))[self.output]
        return output
