"""How the files of sentence-transformers say that a text's token states become one vector.

Left out on purpose: dense layers after the pooling, and poolings that join several vectors.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from limbeck_runtime.models.errors import ModelFilesError
from limbeck_runtime.models.transformers_preprocessing import read_json

MODULES_FILE = "modules.json"
_READ = frozenset({"Transformer", "Pooling", "Normalize"})
# Their name of a mode, in the old form (a flag for each) and in the new (`pooling_mode`), to ours.
_POOLINGS = {
    "pooling_mode_mean_tokens": "Mean",
    "pooling_mode_cls_token": "First",
    "pooling_mode_lasttoken": "Last",
    "mean": "Mean",
    "cls": "First",
    "lasttoken": "Last",
}


def sentence_pooling(directory: Path) -> str:
    """A key of `towers.TOKEN_POOLINGS`; Mean where the directory says nothing. Raises ModelFilesError."""
    path = directory / MODULES_FILE
    if not path.is_file():
        return "Mean"
    try:
        stages: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        kinds = [stage["type"].rsplit(".", 1)[-1] for stage in stages]
        folders = [stage["path"] for stage in stages]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelFilesError(f"{path} is not a list of modules: {error!r}") from error
    unknown = sorted(set(kinds) - _READ)
    if unknown:
        raise ModelFilesError(f"{path} holds {', '.join(unknown)}, which is not read; use the loader Python")
    if "Pooling" not in kinds:
        return "Mean"
    config = read_json(directory / folders[kinds.index("Pooling")] / "config.json")
    named = config.get("pooling_mode")
    if named is None:
        modes = [mode for mode, on in config.items() if mode.startswith("pooling_mode_") and on is True]
    else:
        modes = list(named) if isinstance(named, list) else [named]
    if len(modes) != 1 or modes[0] not in _POOLINGS:
        raise ModelFilesError(f"{path}: the pooling must be one of mean, cls and lasttoken, got {modes}")
    return _POOLINGS[modes[0]]
