"""From an architecture record back to a module, without network or files.

Left out on purpose: weights (limbeck_loader.py reads them).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from limbeck.api.v1alpha1.job import Task
from limbeck_runtime.models import names
from limbeck_runtime.models.adapters import (
    build_causal_language_model,
    build_speech_recogniser,
    build_text_embedder,
    build_timm_classifier,
    build_transformers_classifier,
)
from limbeck_runtime.models.bundle import Architecture
from limbeck_runtime.models.dual_encoder import build_dual_encoder
from limbeck_runtime.models.edits import apply_edits
from limbeck_runtime.models.errors import ArchitectureError
from limbeck_runtime.models.python_loader import build_python_model

BUILDERS: dict[str, Callable[[Mapping[str, Any]], nn.Module]] = {
    names.DUAL_ENCODER: build_dual_encoder,
    names.TEXT_EMBEDDER: build_text_embedder,
    names.TIMM_CLASSIFIER: build_timm_classifier,
    names.TRANSFORMERS_CLASSIFIER: build_transformers_classifier,
    names.CAUSAL_LANGUAGE_MODEL: build_causal_language_model,
    names.SPEECH_RECOGNISER: build_speech_recogniser,
    names.PYTHON: build_python_model,
}


def rebuild(architecture: Architecture, *, seed: int = 0) -> nn.Module:
    """The module of a record, in eval mode, with fresh weights that follow from `seed`; edits are replayed.

    Raises ArchitectureError for a kind that is unknown or settings that its builder cannot use.
    """
    if architecture.kind not in BUILDERS:
        raise ArchitectureError(f"an architecture's kind must be one of {sorted(BUILDERS)}, got {architecture.kind!r}")
    with fresh_weights(seed):
        try:
            module = BUILDERS[architecture.kind](architecture.settings)
        except KeyError as error:
            raise ArchitectureError(f"the record of a {architecture.kind} lacks {error}") from error
    return apply_edits(module, architecture.edits).eval()


def task_of(architecture: Architecture) -> Task:
    """The task that a record's module does."""
    if architecture.kind == names.PYTHON:
        return Task(architecture.settings["task"])
    return names.TASK_OF_KIND[architecture.kind]


@contextmanager
def fresh_weights(seed: int) -> Iterator[None]:
    """Weights made inside follow from `seed` alone; the caller's random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
