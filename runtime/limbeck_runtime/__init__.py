"""What runs inside the Ray cluster and under `limbeck local`: data, teacher, store, student, steps, export, report.

import limbeck_runtime

model = limbeck_runtime.load("path/to/model")
outputs = model.module(inputs)
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from limbeck_runtime.models.bundle import ModelBundle

__all__ = ["load"]


def load(path: str | Path) -> ModelBundle:
    """The model that a job exported to `path`, quantized ones included: module, preprocessing and task, in eval mode.

    `path` is a folder or a URI (s3://...). Needs no network beyond that, no pickle and no original files.

    Raises:
        ModelError (a ValueError): there is no exported model at `path`, or it is damaged; the message says which file.
    """
    from limbeck_runtime.models.limbeck_loader import load_bundle
    from limbeck_runtime.models.model_files import default_cache_dir, local_model_files

    return load_bundle(local_model_files(str(path), field="path", cache_dir=default_cache_dir()))
