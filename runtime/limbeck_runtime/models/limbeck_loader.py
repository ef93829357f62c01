"""Loader Limbeck: a directory that limbeck exported, with a record of its architecture and safetensors.

Left out on purpose: writing such directories (limbeck_runtime.export).
"""

from __future__ import annotations

from pathlib import Path

from limbeck.api.v1alpha1.job import Task
from limbeck_runtime.models.bundle import ARCHITECTURE_FILE, Architecture, ModelBundle
from limbeck_runtime.models.errors import ModelFilesError, TaskError
from limbeck_runtime.models.preprocessing import PREPROCESSING_FILE, TOKENIZER_FILE, Preprocessing
from limbeck_runtime.models.rebuilding import rebuild, task_of
from limbeck_runtime.models.weights import load_weights, read_weights


def load_bundle(directory: Path) -> ModelBundle:
    """The bundle of an exported directory, in eval mode; no network, no other files.

    Raises ModelFilesError, ArchitectureError, WeightsError.
    """
    architecture = Architecture.from_json(_text(directory, ARCHITECTURE_FILE))
    files = {PREPROCESSING_FILE: _text(directory, PREPROCESSING_FILE)}
    if (directory / TOKENIZER_FILE).is_file():
        files[TOKENIZER_FILE] = _text(directory, TOKENIZER_FILE)
    try:
        preprocessing = Preprocessing.from_files(files)
    except ValueError as error:
        raise ModelFilesError(f"{directory / PREPROCESSING_FILE} cannot be read: {error}") from error
    module = rebuild(architecture)
    state = read_weights(directory)
    if architecture.edits:
        from limbeck_runtime.quantization import load_edited_weights  # imports torchao

        load_edited_weights(module, state)
    else:
        load_weights(module, state, where=str(directory))
    return ModelBundle(module.eval(), architecture, preprocessing, task_of(architecture))


def read_limbeck(directory: Path, task: Task, *, field: str) -> ModelBundle:
    """The same for a job's model; TaskError where it does another task."""
    bundle = load_bundle(directory)
    if bundle.task != task:
        raise TaskError(
            f"`spec.task` is {task}, but the model of `{field}` does {bundle.task}; change the task or the model"
        )
    return bundle


def _text(directory: Path, name: str) -> str:
    path = directory / name
    if not path.is_file():
        raise ModelFilesError(
            f"{directory} must hold {name}, as a directory that limbeck exported does; use the loader "
            "Transformers for other directories"
        )
    return path.read_text(encoding="utf-8")
