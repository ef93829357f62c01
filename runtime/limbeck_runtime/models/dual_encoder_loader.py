"""Loader DualEncoder: an image tower and a text tower, each from its own place, and the space where they meet.

Left out on purpose: towers from the user's own code (the loader Python makes a whole model).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from limbeck.api.v1alpha1.job import Task
from limbeck.api.v1alpha1.model import Model, Tower, TowerLoader
from limbeck_runtime.models import names
from limbeck_runtime.models.adapters import TextEmbedder
from limbeck_runtime.models.bundle import Architecture, ModelBundle
from limbeck_runtime.models.dual_encoder import DualEncoder, dual_encoder_record
from limbeck_runtime.models.errors import ModelFilesError, TaskError
from limbeck_runtime.models.networks import Record
from limbeck_runtime.models.preprocessing import Preprocessing
from limbeck_runtime.models.shrink import projection_matrix, shrink_tower
from limbeck_runtime.models.timm_loader import TimmSource, read_timm_tower
from limbeck_runtime.models.towers import ImageTower, TextTower
from limbeck_runtime.models.transformers_loader import Source, read_image_tower, read_text_tower

# uri, the field that holds it -> where its files are on this machine.
Fetch = Callable[[str, str], Path]
Made = tuple[ImageTower | TextTower, Record, Preprocessing, torch.Tensor | None]


def read_dual_encoder(model: Model, teacher: ModelBundle | None, fetch: Fetch, *, field: str) -> ModelBundle:
    """The bundle of two towers. New projections have fresh weights; a tower of the teacher brings its own along
    where it leads into a space of the same width.

    Raises ModelFilesError, TaskError, WeightsError, ShrinkError, ArchitectureError.
    """
    assert model.image is not None
    assert model.text is not None
    image_tower = _inherit(model.image, image_size=model.image_size)
    text_tower = _inherit(model.text, max_text_length=model.max_text_length)
    image, image_record, image_preparation, image_inherited_DW = _make(
        image_tower, "image", teacher, fetch, f"{field}.image"
    )
    text, text_record, text_preparation, text_inherited_DW = _make(text_tower, "text", teacher, fetch, f"{field}.text")
    assert isinstance(image, ImageTower)
    assert isinstance(text, TextTower)
    embed_dim = model.embed_dim or _embed_dim(teacher) or text.width
    frozen = tuple(name for name, tower in (("image", model.image), ("text", model.text)) if tower.frozen)
    module = DualEncoder(image, text, embed_dim, frozen=frozen)
    for own, inherited_DW in (
        (module.image_projection, image_inherited_DW),
        (module.text_projection, text_inherited_DW),
    ):
        assert isinstance(own, nn.Linear)
        if inherited_DW is not None and inherited_DW.shape == own.weight.shape:
            own.weight.data.copy_(inherited_DW)
    settings = dual_encoder_record(image_record, text_record, embed_dim, frozen=frozen)
    preprocessing = Preprocessing(image=image_preparation.image, text=text_preparation.text)
    return ModelBundle(module.eval(), Architecture(names.DUAL_ENCODER, settings), preprocessing, Task.IMAGE_TEXT)


def _inherit(tower: Tower, **defaults: int | None) -> Tower:
    """The tower, with what the model says where the tower itself says nothing."""
    missing = {name: value for name, value in defaults.items() if getattr(tower, name) is None}
    return tower.model_copy(update=missing)


def _embed_dim(teacher: ModelBundle | None) -> int | None:
    module = teacher.module if teacher else None
    return module.embed_dim if isinstance(module, DualEncoder) else None


def _make(tower: Tower, side: str, teacher: ModelBundle | None, fetch: Fetch, field: str) -> Made:
    if tower.loader is TowerLoader.TIMM and side == "text":
        raise TaskError(f"`{field}.loader` must be Transformers or Teacher, got Timm; timm has no text towers")
    _refuse_ignored(tower, side, field)
    made = _MAKERS[tower.loader](tower, side, teacher, fetch, field)
    if tower.shrink is None:
        return made
    module, record, preprocessing, inherited_DW = made
    shrunk = shrink_tower(
        module, record, tower.shrink.depth_percent, tower.shrink.width_percent, field=f"{field}.shrink"
    )
    if inherited_DW is not None:
        inherited_DW = inherited_DW[:, list(shrunk.kept_outputs)]
    return shrunk.tower, shrunk.record, preprocessing, inherited_DW


def _refuse_ignored(tower: Tower, side: str, field: str) -> None:
    ignored = {
        "imageSize": tower.image_size is not None and side == "text",
        "maxTextLength": tower.max_text_length is not None and side == "image",
        "uri": bool(tower.uri) and tower.loader is TowerLoader.TEACHER,
        "architecture": bool(tower.architecture) and tower.loader is not TowerLoader.TIMM,
        "settings": bool(tower.settings) and tower.loader is TowerLoader.TEACHER,
    }
    for name, is_set in ignored.items():
        if is_set:
            raise ModelFilesError(
                f"`{field}.{name}` is not read for the {side} tower of the loader {tower.loader}; remove it"
            )


def _from_transformers(tower: Tower, side: str, _teacher: ModelBundle | None, fetch: Fetch, field: str) -> Made:
    assert tower.uri is not None
    source = Source(fetch(tower.uri, field), field, tower.settings, tower.image_size, tower.max_text_length)
    if side == "image":
        return (*read_image_tower(source), None)
    return (*read_text_tower(source), None)


def _from_timm(tower: Tower, _side: str, _teacher: ModelBundle | None, fetch: Fetch, field: str) -> Made:
    assert tower.architecture is not None
    path = fetch(tower.uri, field) if tower.uri else None
    source = TimmSource(tower.architecture, field, path, tower.settings, tower.image_size)
    return (*read_timm_tower(source), None)


def _from_teacher(tower: Tower, side: str, teacher: ModelBundle | None, _fetch: Fetch, field: str) -> Made:
    if teacher is None:
        raise TaskError(f"`{field}.loader` must not be Teacher in a job without `spec.teacher`; add the teacher")
    whole: Any = teacher.module
    has_side = isinstance(whole, DualEncoder) or (side == "text" and isinstance(whole, TextEmbedder))
    if not has_side or teacher.architecture.edits:
        raise TaskError(
            f"`{field}.loader` must not be Teacher: the teacher ({teacher.architecture.kind}"
            f"{', compressed' if teacher.architecture.edits else ''}) has no {side} tower to copy; name the tower"
        )
    module = copy.deepcopy(whole.get_submodule(side)).requires_grad_(True)
    preprocessing = _teacher_preprocessing(tower, side, teacher.preprocessing, field)
    record = dict(teacher.architecture.settings[side])
    return module, record, preprocessing, projection_matrix(whole.get_submodule(f"{side}_projection"), module.width)


def _teacher_preprocessing(tower: Tower, side: str, whole: Preprocessing, field: str) -> Preprocessing:
    if side == "image":
        assert whole.image is not None
        if tower.image_size not in (None, whole.image.size):
            raise ModelFilesError(
                f"`{field}.imageSize` must be {whole.image.size}, the teacher's, or absent, got {tower.image_size}"
            )
        return Preprocessing(image=whole.image)
    assert whole.text is not None
    if tower.max_text_length is None:
        return Preprocessing(text=whole.text)
    if tower.max_text_length > whole.text.max_length:
        raise ModelFilesError(
            f"`{field}.maxTextLength` must be at most {whole.text.max_length}, the teacher's, "
            f"got {tower.max_text_length}"
        )
    return Preprocessing(text=whole.text.model_copy(update={"max_length": tower.max_text_length}))


_MAKERS: dict[TowerLoader, Callable[[Tower, str, ModelBundle | None, Fetch, str], Made]] = {
    TowerLoader.TRANSFORMERS: _from_transformers,
    TowerLoader.TIMM: _from_timm,
    TowerLoader.TEACHER: _from_teacher,
}
