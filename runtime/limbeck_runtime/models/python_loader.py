"""Loader Python: the user's own function makes the module. The one place that imports by a string.

The function gets `settings` as keyword arguments and returns an nn.Module, or the module and a Preprocessing.
The module's forward takes a dict of tensors and returns a dict with the keys of its task.
Left out on purpose: sandboxing. The code runs with the rights of the job that names it.
"""

from __future__ import annotations

import importlib
import inspect
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from limbeck.api.v1alpha1.job import Task
from limbeck_runtime.errors import UserCodeError
from limbeck_runtime.models import names
from limbeck_runtime.models.bundle import Architecture, ModelBundle
from limbeck_runtime.models.errors import ArchitectureError, ModelFilesError, TaskError
from limbeck_runtime.models.preprocessing import ImagePreprocessing, Preprocessing
from limbeck_runtime.models.weights import load_weights, read_weights

# What a module of each task must give; the same keys as limbeck's own modules.
OUTPUTS: dict[Task, tuple[str, ...]] = {
    Task.IMAGE_TEXT: ("image_embedding", "text_embedding", "logit_scale"),
    Task.IMAGE_CLASSIFICATION: ("logits",),
    Task.TEXT_EMBEDDING: ("text_embedding",),
    Task.CAUSAL_LM: ("logits",),
    Task.AUDIO_EMBEDDING: ("audio_embedding",),
    Task.SPEECH: ("logits",),
}
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def read_python(
    function: str,
    task: Task,
    *,
    field: str,
    settings: Mapping[str, Any],
    path: Path | None = None,
    image_size: int | None = None,
) -> ModelBundle:
    """Call the function, load weights from `path` if any, and try the module on a made-up batch of two.

    Raises ArchitectureError where the function cannot be used, UserCodeError where it or its module raises,
    TaskError where the module's outputs are not its task's, WeightsError where the weights do not fit.
    """
    module, preprocessing = _call(function, settings, field=field)
    if preprocessing is None:
        if task != Task.IMAGE_CLASSIFICATION or image_size is None:
            raise ModelFilesError(
                f"`{field}.function` must return the module and a Preprocessing; the module alone is enough for "
                f"ImageClassification with `{field}.imageSize`"
            )
        preprocessing = Preprocessing(image=ImagePreprocessing(size=image_size, mean=_IMAGENET_MEAN, std=_IMAGENET_STD))
    if path is not None:
        load_weights(module, read_weights(path), where=f"`{field}` ({path})")
    module.eval()
    _try_out(module, preprocessing, task, field=field)
    record = {"function": function, "arguments": dict(settings), "task": task.value}
    return ModelBundle(module, Architecture(names.PYTHON, record), preprocessing, task)


def build_python_model(settings: Mapping[str, Any]) -> nn.Module:
    """The module of a record; the user's code must be importable."""
    module, _ = _call(settings["function"], settings["arguments"], field="model")
    return module


def _call(function: str, settings: Mapping[str, Any], *, field: str) -> tuple[nn.Module, Preprocessing | None]:
    build = _find(function, field)
    try:
        inspect.signature(build).bind(**settings)
    except TypeError as error:
        raise ArchitectureError(
            f"`{field}.settings` must be what {function} takes, got {sorted(settings)}: {error}"
        ) from error
    with _users_code(f"`{field}.function` {function}"):
        result = build(**settings)
    module, preprocessing = result if isinstance(result, tuple) and len(result) == 2 else (result, None)
    if not isinstance(module, nn.Module) or not isinstance(preprocessing, Preprocessing | None):
        raise ArchitectureError(
            f"`{field}.function` must return an nn.Module, or one and a Preprocessing, "
            f"got {type(result).__name__} from {function}"
        )
    return module, preprocessing


def _find(function: str, field: str) -> Callable[..., Any]:
    module_name, _, name = function.partition(":")
    try:
        with _users_code(f"the module of `{field}.function` {function}"):
            module = importlib.import_module(module_name)
    except UserCodeError as error:
        missing = error.__cause__
        if (
            isinstance(missing, ModuleNotFoundError)
            and missing.name
            and f"{module_name}.".startswith(f"{missing.name}.")
        ):
            raise _not_importable(field, function, missing) from missing
        raise
    if not hasattr(module, name):
        raise _not_importable(field, function, f"{module_name} has no {name}")
    found = getattr(module, name)
    if not callable(found):
        raise ArchitectureError(f"`{field}.function` must name a function, {function} is {type(found).__name__}")
    build: Callable[..., Any] = found
    return build


def _not_importable(field: str, function: str, reason: object) -> ArchitectureError:
    return ArchitectureError(
        f"`{field}.function` must name a function that Python can import as package.module:function, "
        f"got {function}: {reason}"
    )


@contextmanager
def _users_code(what: str) -> Iterator[None]:
    """Inside runs code of the user's: whatever it raises, to exit included, is a UserCodeError that says where."""
    try:
        yield
    except (Exception, SystemExit) as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise UserCodeError(
            f"{what} raised {type(error).__name__}: {error} ({Path(place.filename).name}, line {place.lineno})"
        ) from error


def _try_out(module: nn.Module, preprocessing: Preprocessing, task: Task, *, field: str) -> None:
    inputs = _made_up_inputs(preprocessing)
    with (
        _users_code(f"`{field}`: the module's forward, which got a dict with {', '.join(sorted(inputs))},"),
        torch.no_grad(),
    ):
        outputs = module(inputs)
    wanted = OUTPUTS[task]
    given = sorted(outputs) if isinstance(outputs, Mapping) else [type(outputs).__name__]
    if not isinstance(outputs, Mapping) or any(name not in outputs for name in wanted):
        raise TaskError(
            f"`{field}`: a module for {task} must return a dict with {', '.join(wanted)}, got {', '.join(given)}"
        )


def _made_up_inputs(preprocessing: Preprocessing) -> dict[str, torch.Tensor]:
    inputs: dict[str, torch.Tensor] = {}
    if preprocessing.image is not None:
        side = preprocessing.image.size
        inputs["pixel_values"] = torch.zeros(2, 3, side, side)
    if preprocessing.text is not None:
        text = preprocessing.text
        ids = text.encode(text.build_tokenizer(), ["a"])[0] or [text.pad_id]
        inputs["input_ids"] = torch.tensor([ids, ids])
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if preprocessing.audio is not None:
        audio = preprocessing.audio
        frames = int(audio.chunk_seconds * audio.sampling_rate / audio.hop_length)
        inputs["input_features"] = torch.zeros(2, audio.num_mel_bins, frames)
    return inputs
