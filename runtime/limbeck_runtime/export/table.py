"""Which function writes which format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from limbeck.api.report import ExportedFile
from limbeck.api.v1alpha1.outcome import ExportFormat
from limbeck_runtime.export.safetensors_format import export_safetensors
from limbeck_runtime.models.bundle import ModelBundle

# (model, a batch of validation samples, folder) -> what was written there, loaded again and compared.
Exporter = Callable[[ModelBundle, Mapping[str, Tensor], Path], ExportedFile]

EXPORTERS: dict[ExportFormat, Exporter] = {
    ExportFormat.SAFETENSORS: export_safetensors,
}
