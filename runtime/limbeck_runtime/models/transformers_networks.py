"""Reads transformers networks with their weights from a directory: no network, no remote code, no pickle.

Left out on purpose: what a task makes of the network (transformers_loader.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from limbeck_runtime.models.errors import ModelFilesError, WeightsError
from limbeck_runtime.models.networks import HEADS, Record, quiet_transformers, transformers_record
from limbeck_runtime.models.transformers_preprocessing import read_json
from limbeck_runtime.models.weights import SAFE_SUFFIX, check_weights, find_weights, read_weights

CONFIG_FILE = "config.json"


def read_config(directory: Path, overrides: Mapping[str, Any], *, field: str) -> Any:
    """The PreTrainedConfig of a directory, with the user's `settings` over it. Raises ModelFilesError."""
    path = directory / CONFIG_FILE
    plain = read_json(path)
    if not plain:
        raise ModelFilesError(
            f"`{field}.uri` must name a directory with {CONFIG_FILE}, got {directory} without it; "
            "save the model with save_pretrained"
        )
    model_type = plain.get("model_type")
    if "quantization_config" in plain:
        raise ModelFilesError(
            f"{path} is of a quantized model, which cannot be trained or compressed; use the float model it came from"
        )
    from transformers import CONFIG_MAPPING, AutoConfig

    if model_type not in CONFIG_MAPPING:
        raise ModelFilesError(
            f"{path} names the model type {model_type!r}, which the installed transformers does not know; "
            "convert the model to a known type or use the loader Python"
        )
    with quiet_transformers():
        try:
            config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # its validators raise many kinds
            raise ModelFilesError(f"{path} is not a configuration of a {model_type}: {error}") from error
        for name, value in overrides.items():
            if not hasattr(config, name):
                raise ModelFilesError(
                    f"`{field}.settings.{name}` must be an entry of {CONFIG_FILE} of a {model_type}, got {name!r}"
                )
            setattr(config, name, value)
    return config


def read_network(
    directory: Path, head: str, config: Any, *, arguments: Mapping[str, Any] | None = None
) -> tuple[nn.Module, Record]:
    """The network in float32 and eval mode, and its record. Raises WeightsError where any weight is missing."""
    files = find_weights(directory)
    check_weights(files)
    options: dict[str, Any] = {"config": config, "dtype": torch.float32, "output_loading_info": True}
    options |= arguments or {}
    with quiet_transformers(), _clear_errors(directory):
        if files[0].name.startswith("model") and files[0].suffix == SAFE_SUFFIX:
            options |= {"local_files_only": True, "use_safetensors": True, "trust_remote_code": False}
            network, info = HEADS[head]().from_pretrained(directory, **options)
        else:  # transformers would look for other names, or read a pickle
            concrete: Any = _class_of(head, config, arguments or {})
            network, info = concrete.from_pretrained(None, state_dict=read_weights(directory), **options)
    missing = sorted(info["missing_keys"])
    if missing:
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise WeightsError(
            f"{directory}: its weight files lack {shown} of a {type(network).__name__}; use the files that "
            f"belong to its {CONFIG_FILE}"
        )
    return network.eval(), transformers_record(head, network.config, arguments)


def _class_of(head: str, config: Any, arguments: Mapping[str, Any]) -> type[nn.Module]:
    """The concrete class behind an Auto class: only that takes weights without a directory."""
    with torch.device("meta"):
        return type(HEADS[head]()._from_config(config, **arguments))


@contextlib.contextmanager
def _clear_errors(directory: Path) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError, KeyError, TypeError, OSError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{directory}: the weights do not fit {CONFIG_FILE}: {first}") from error
