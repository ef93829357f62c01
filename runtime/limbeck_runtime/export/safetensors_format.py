"""Format Safetensors: limbeck's own directory, which `limbeck_runtime.load` reads back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from limbeck.api.report import ExportedFile
from limbeck.api.v1alpha1.outcome import ExportFormat
from limbeck_runtime.export.bundle_directory import WEIGHTS_FILE, artefact_bytes, write_bundle
from limbeck_runtime.export.errors import VerificationError
from limbeck_runtime.models.bundle import ModelBundle
from limbeck_runtime.models.limbeck_loader import load_bundle


def export_safetensors(bundle: ModelBundle, inputs: Mapping[str, Tensor], folder: Path) -> ExportedFile:
    """Write the directory, load it again and compare outputs, which must be equal bit for bit.

    Raises:
        VerificationError: they are not.
    """
    write_bundle(bundle, folder)
    loaded = load_bundle(folder)
    with torch.inference_mode():
        before, after = bundle.module(dict(inputs)), loaded.module(dict(inputs))
    worst = max(float((before[name] - after[name]).abs().max()) for name in before)
    if worst != 0:
        raise VerificationError(
            f"{WEIGHTS_FILE} must give the model back as it is, got outputs that differ by up to {worst:g}; "
            "this is a defect of limbeck: report it"
        )
    return ExportedFile(
        format=ExportFormat.SAFETENSORS.value,
        path=WEIGHTS_FILE,
        bytes=artefact_bytes(folder),
        num_compared=len(next(iter(inputs.values()))),
        max_difference=worst,
        min_cosine=None,
    )
