"""From a job's model to a bundle: which loader reads what, for which task.

Left out on purpose: OpenClip and TorchExport, which are refused by name until they are written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from limbeck.api.v1alpha1.job import Task
from limbeck.api.v1alpha1.model import Loader, Model
from limbeck_runtime.models.bundle import ModelBundle
from limbeck_runtime.models.dual_encoder_loader import read_dual_encoder
from limbeck_runtime.models.errors import ModelFilesError, TaskError
from limbeck_runtime.models.limbeck_loader import read_limbeck
from limbeck_runtime.models.model_files import default_cache_dir, local_model_files
from limbeck_runtime.models.python_loader import read_python
from limbeck_runtime.models.rebuilding import fresh_weights
from limbeck_runtime.models.timm_loader import TimmSource, read_timm_classifier
from limbeck_runtime.models.transformers_loader import Source, read_transformers


@dataclass(frozen=True)
class _Request:
    model: Model
    task: Task
    teacher: ModelBundle | None
    field: str
    cache_dir: Path
    storage_options: Mapping[str, str] | None

    def fetch(self, uri: str, field: str) -> Path:
        """Where the files of `uri` are on this machine."""
        return local_model_files(uri, field=field, cache_dir=self.cache_dir, storage_options=self.storage_options)

    def path(self) -> Path | None:
        """Where the model's own files are, None where it has none."""
        return self.fetch(self.model.uri, self.field) if self.model.uri else None


def load_model(
    model: Model,
    task: str,
    teacher: ModelBundle | None = None,
    *,
    field: str = "model",
    seed: int | None = None,
    cache_dir: Path | None = None,
    storage_options: Mapping[str, str] | None = None,
) -> ModelBundle:
    """The bundle of a job's model, in eval mode and float32 on the CPU.

    `field` is where the job names the model (spec.teacher.model), for messages. What starts untrained follows from
    `seed`, and the caller's random state is left alone; without a seed it follows from the caller's random state.
    Remote files are copied into `cache_dir` once.

    Raises ModelError (a ValueError; see errors.py for its kinds), limbeck_runtime.storage.StorageError.
    """
    _refuse_ignored(model, field)
    request = _Request(model, Task(task), teacher, field, cache_dir or default_cache_dir(), storage_options)
    with fresh_weights(seed) if seed is not None else nullcontext():
        return _LOADERS[model.loader](request)


# Fields of a model that only some loaders read; any other loader refuses them rather than ignoring them.
_READ_BY: dict[str, tuple[Loader, ...]] = {
    "architecture": (Loader.TIMM, Loader.OPEN_CLIP),
    "function": (Loader.PYTHON,),
    "settings": (Loader.TRANSFORMERS, Loader.TIMM, Loader.PYTHON),
    "image": (Loader.DUAL_ENCODER,),
    "text": (Loader.DUAL_ENCODER,),
    "embed_dim": (Loader.DUAL_ENCODER,),
    "image_size": (Loader.TRANSFORMERS, Loader.TIMM, Loader.DUAL_ENCODER, Loader.PYTHON),
    "max_text_length": (Loader.TRANSFORMERS, Loader.DUAL_ENCODER),
}


def _refuse_ignored(model: Model, field: str) -> None:
    for name, loaders in _READ_BY.items():
        if getattr(model, name) and model.loader not in loaders:
            alias = Model.model_fields[name].alias or name
            raise ModelFilesError(
                f"`{field}.{alias}` is not read by the loader {model.loader}, only by {', '.join(loaders)}; remove it"
            )


def _transformers(request: _Request) -> ModelBundle:
    model, path = request.model, request.path()
    assert path is not None
    source = Source(path, request.field, model.settings, model.image_size, model.max_text_length)
    return read_transformers(source, request.task)


def _timm(request: _Request) -> ModelBundle:
    model = request.model
    assert model.architecture is not None
    source = TimmSource(model.architecture, request.field, request.path(), model.settings, model.image_size)
    return read_timm_classifier(source, request.task)


def _dual_encoder(request: _Request) -> ModelBundle:
    if request.task != Task.IMAGE_TEXT:
        raise TaskError(
            f"`spec.task` is {request.task}, but `{request.field}` with the loader DualEncoder does ImageText; "
            "change the task or the model"
        )
    if request.model.uri is not None:
        raise ModelFilesError(
            f"`{request.field}.uri` is not read by the loader DualEncoder; each tower names its own files, and "
            "a directory that limbeck exported has the loader Limbeck"
        )
    return read_dual_encoder(request.model, request.teacher, request.fetch, field=request.field)


def _python(request: _Request) -> ModelBundle:
    model = request.model
    assert model.function is not None
    return read_python(
        model.function,
        request.task,
        field=request.field,
        settings=model.settings,
        path=request.path(),
        image_size=model.image_size,
    )


def _limbeck(request: _Request) -> ModelBundle:
    path = request.path()
    assert path is not None
    return read_limbeck(path, request.task, field=request.field)


def _not_yet(request: _Request) -> ModelBundle:
    raise ModelFilesError(
        f"`{request.field}.loader` {request.model.loader} is not supported yet; use one of "
        f"{', '.join(loader for loader, read in _LOADERS.items() if read is not _not_yet)}"
    )


_LOADERS: dict[Loader, Callable[[_Request], ModelBundle]] = {
    Loader.TRANSFORMERS: _transformers,
    Loader.TIMM: _timm,
    Loader.DUAL_ENCODER: _dual_encoder,
    Loader.PYTHON: _python,
    Loader.LIMBECK: _limbeck,
    Loader.OPEN_CLIP: _not_yet,
    Loader.TORCH_EXPORT: _not_yet,
}
