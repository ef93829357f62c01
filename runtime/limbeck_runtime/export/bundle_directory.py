"""A model as a directory that limbeck reads back without network, original files or pickle.

    architecture.json    what the module is (models.bundle.Architecture)
    preprocessing.json   what is done to its inputs
    tokenizer.json       for models that read text
    model.safetensors    its weights, what two modules share once
Reading is models.limbeck_loader.load_bundle. Left out on purpose: uploading (the pipeline publishes directories).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from limbeck_runtime.models.bundle import ARCHITECTURE_FILE, ModelBundle

if TYPE_CHECKING:
    import torch
    from torch import nn

WEIGHTS_FILE = "model.safetensors"


def write_bundle(bundle: ModelBundle, directory: Path) -> None:
    """Write all files into `directory`, which may exist; each appears whole or not at all, the weights last."""
    from safetensors.torch import save

    directory.mkdir(parents=True, exist_ok=True)
    texts = {ARCHITECTURE_FILE: bundle.architecture.to_json(), **bundle.preprocessing.to_files()}
    for name, text in texts.items():
        _write_whole(directory / name, text.encode())
    _write_whole(directory / WEIGHTS_FILE, save(unshared_state(bundle.module), metadata={"format": "pt"}))


def unshared_state(module: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict on the CPU, without the second name of what two modules share."""
    seen: set[tuple[int, int]] = set()
    state: dict[str, torch.Tensor] = {}
    for name, tensor in module.state_dict().items():
        place = (tensor.data_ptr(), tensor.numel())
        if tensor.numel() and place in seen:
            continue
        seen.add(place)
        state[name] = tensor.detach().cpu().contiguous()
    return state


def artefact_bytes(directory: Path) -> int:
    """Bytes on disk of the model itself: weights and architecture, not the tokenizer that any size of it needs."""
    return sum((directory / name).stat().st_size for name in (WEIGHTS_FILE, ARCHITECTURE_FILE))


def _write_whole(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".tmp-{path.name}")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
