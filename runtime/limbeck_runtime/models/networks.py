"""The bare networks of timm and transformers, built from a plain JSON record without network or files.

A record is {"library": "timm", "architecture": name, "arguments": {...}} or
{"library": "transformers", "head": key of HEADS, "config": {...}, "arguments": {...}}.
Left out on purpose: weights, pooling and everything that a task adds.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from limbeck_runtime.models.errors import ArchitectureError

if TYPE_CHECKING:
    from torch import nn

Record = dict[str, Any]

# What of a transformers configuration says nothing about the network: paths, versions, the type on disk.
_NOT_RECORDED = frozenset({"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"})


def timm_record(architecture: str, arguments: Mapping[str, Any]) -> Record:
    """The record of a timm network."""
    return {"library": "timm", "architecture": architecture, "arguments": dict(arguments)}


def transformers_record(head: str, config: Any, arguments: Mapping[str, Any] | None = None) -> Record:
    """The record of a transformers network; `config` is a PreTrainedConfig."""
    plain = json.loads(config.to_json_string(use_diff=False))
    return {
        "library": "transformers",
        "head": head,
        "config": _without_noise(plain),
        "arguments": dict(arguments or {}),
    }


def _without_noise(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_noise(inner) for key, inner in value.items() if key not in _NOT_RECORDED}
    if isinstance(value, list):
        return [_without_noise(inner) for inner in value]
    return value


def config_of(record: Mapping[str, Any]) -> Any:
    """The PreTrainedConfig of a transformers record."""
    from transformers import AutoConfig

    config = dict(record["config"])
    try:
        return AutoConfig.for_model(config.pop("model_type"), **config)
    except (KeyError, TypeError, ValueError) as error:
        raise ArchitectureError(
            f"the installed transformers cannot read this configuration ({error}); use the version that wrote it"
        ) from error


def build_network(record: Mapping[str, Any]) -> nn.Module:
    """The network with fresh weights, in eval mode. Raises ArchitectureError."""
    library = record.get("library")
    if library not in _BUILDERS:
        raise ArchitectureError(f"a network's library must be one of {sorted(_BUILDERS)}, got {library!r}")
    return _BUILDERS[library](record).eval()


def _build_timm(record: Mapping[str, Any]) -> nn.Module:
    import timm

    name, arguments = record["architecture"], record["arguments"]
    try:
        network: nn.Module = timm.create_model(name, pretrained=False, **arguments)
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        if not timm.is_model(name):
            near = ", ".join(timm.list_models(f"*{name.split('_')[0]}*")[:5]) or "none"
            raise ArchitectureError(f"timm has no model {name!r}; near it are {near}") from error
        raise ArchitectureError(f"timm cannot build {name} with {dict(arguments)}: {error}") from error
    return network


def _build_transformers(record: Mapping[str, Any]) -> nn.Module:
    import torch

    head = record["head"]
    if head not in HEADS:
        raise ArchitectureError(f"a transformers network's head must be one of {sorted(HEADS)}, got {head!r}")
    with quiet_transformers():
        try:
            network: nn.Module = HEADS[head]()._from_config(
                config_of(record), dtype=torch.float32, **record["arguments"]
            )
        except ArchitectureError:
            raise
        except (TypeError, ValueError, KeyError, ImportError) as error:
            raise ArchitectureError(f"transformers cannot build this configuration: {error}") from error
    return network


_BUILDERS: dict[str, Callable[[Mapping[str, Any]], nn.Module]] = {
    "timm": _build_timm,
    "transformers": _build_transformers,
}


class _FromAuto:
    """An Auto class under the interface of a concrete one."""

    def __init__(self, auto: Any) -> None:
        self._auto = auto

    def _from_config(self, config: Any, **arguments: Any) -> Any:
        return self._auto.from_config(config, **arguments)

    def from_pretrained(self, *paths: Any, **arguments: Any) -> Any:
        return self._auto.from_pretrained(*paths, **arguments)


def _auto(name: str) -> Callable[[], Any]:
    def find() -> Any:
        import transformers

        return _FromAuto(getattr(transformers, name))

    return find


def _concrete(name: str) -> Callable[[], Any]:
    def find() -> Any:
        import transformers

        return getattr(transformers, name)

    return find


# Each gives what has `_from_config` and `from_pretrained`; called late, because transformers imports for seconds.
HEADS: dict[str, Callable[[], Any]] = {
    "Encoder": _auto("AutoModel"),
    "SiglipText": _concrete("SiglipTextModel"),
    "ImageClassification": _auto("AutoModelForImageClassification"),
    "CausalLM": _auto("AutoModelForCausalLM"),
    "ImageTextToText": _auto("AutoModelForImageTextToText"),
    "SpeechSeq2Seq": _auto("AutoModelForSpeechSeq2Seq"),
}


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and no load reports from transformers; what matters is raised by us as an error."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
