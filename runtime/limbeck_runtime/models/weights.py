"""Reading weights without running anybody's code: safetensors, or torch.load with weights_only.

Left out on purpose: pickled models, and conversion of names (transformers does its own while it loads).
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck_runtime.models.errors import ModelFilesError, WeightsError

if TYPE_CHECKING:
    import torch
    from torch import nn

SAFE_SUFFIX = ".safetensors"
TORCH_SUFFIXES = (".bin", ".pt", ".pth")
# In the order in which they are looked for; an index names the files of weights that are cut into several.
_NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def find_weights(path: Path) -> tuple[Path, ...]:
    """The weight files of a model directory, or the file itself. Raises ModelFilesError or WeightsError."""
    if path.is_file():
        return (_readable(path),)
    if not path.is_dir():
        raise ModelFilesError(f"no such file or directory: {path}")
    for name in _NAMES:
        candidate = path / name
        if candidate.is_file():
            return _indexed(candidate) if name.endswith(".index.json") else (candidate,)
    others = sorted(file for file in path.iterdir() if file.suffix in (SAFE_SUFFIX, *TORCH_SUFFIXES))
    if len(others) == 1:
        return (others[0],)
    found = ", ".join(file.name for file in others) or "none"
    raise WeightsError(f"{path} must hold model.safetensors (or one other weight file), found {found}")


def _readable(path: Path) -> Path:
    if path.suffix not in (SAFE_SUFFIX, *TORCH_SUFFIXES):
        raise WeightsError(f"{path} must be a .safetensors, .bin, .pt or .pth file; convert it to safetensors")
    return path


def _indexed(index: Path) -> tuple[Path, ...]:
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise WeightsError(f"{index} is not an index of weight files: {error!r}") from error
    files = []
    for name in names:
        file = index.parent / name
        if Path(name).name != name or not file.is_file():
            raise WeightsError(f"{index} names {name}, which is not beside it; copy the missing file")
        files.append(file)
    return tuple(files)


def check_weights(files: tuple[Path, ...]) -> None:
    """Open each safetensors file, which compares its header with its length; WeightsError names a bad one."""
    from safetensors import SafetensorError, safe_open

    for file in files:
        if file.suffix != SAFE_SUFFIX:
            continue
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise _damaged(file, error) from error


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a weight file or a model directory, on the CPU."""
    state: dict[str, torch.Tensor] = {}
    for file in find_weights(path):
        state.update(_read_safe(file) if file.suffix == SAFE_SUFFIX else _read_torch(file))
    return state


def _read_safe(file: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state: dict[str, torch.Tensor] = load_file(file)
    except (SafetensorError, OSError) as error:
        raise _damaged(file, error) from error
    return state


def _read_torch(file: Path) -> dict[str, torch.Tensor]:
    import torch

    try:
        content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{file} is a pickle that holds more than tensors, or damaged; what is not tensors alone is never "
            "loaded: save the model's state dict as safetensors"
        ) from error
    except Exception as error:  # torch's unpickler raises whatever damaged bytes lead to
        raise _damaged(file, error) from error
    if isinstance(content, dict):
        for wrapper in ("state_dict", "model"):  # what training scripts save around the weights
            if isinstance(content.get(wrapper), dict):
                content = content[wrapper]
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise WeightsError(f"{file} must hold a dictionary of tensors; save the model's state dict alone")
    return content


def _damaged(file: Path, error: Exception) -> WeightsError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return WeightsError(f"{file} cannot be read ({reason}); it is damaged or cut short: copy it again")


def tied_names(module: nn.Module) -> dict[str, str]:
    """Parameters that are another one under a second name -> the first name. A weight file may leave them out."""
    first: dict[int, str] = {}
    tied: dict[str, str] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if id(parameter) in first:
            tied[name] = first[id(parameter)]
        first.setdefault(id(parameter), name)
    return tied


def load_weights(module: nn.Module, state: dict[str, torch.Tensor], *, where: str) -> None:
    """Strict load into `module`; WeightsError lists some of what is missing, left over or of another shape."""
    own = module.state_dict()
    tied = tied_names(module)
    problems = [f"missing {name}" for name in own if name not in state and tied.get(name) not in state]
    problems += [f"unknown {name}" for name in state if name not in own]
    problems += [
        f"{name} is {tuple(state[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if problems:
        shown = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
        raise WeightsError(f"{where}: the weights do not fit the architecture: {shown}")
    module.load_state_dict(state, strict=False)
