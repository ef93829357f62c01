"""Loader Timm: a network by its name in timm, with weights from a file or directory, or fresh.

Left out on purpose: timm's own downloads.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from limbeck.api.v1alpha1.job import Task
from limbeck_runtime.models import names
from limbeck_runtime.models.adapters import TimmClassifier
from limbeck_runtime.models.bundle import Architecture, ModelBundle
from limbeck_runtime.models.errors import ModelFilesError, TaskError
from limbeck_runtime.models.networks import Record, build_network, timm_record
from limbeck_runtime.models.preprocessing import Fit, ImagePreprocessing, Interpolation, Preprocessing
from limbeck_runtime.models.towers import ImageTower, image_tower_record
from limbeck_runtime.models.transformers_preprocessing import read_json
from limbeck_runtime.models.weights import load_weights, read_weights


@dataclass(frozen=True)
class TimmSource:
    """A name in timm and what the job says about it; `path` holds weights, None leaves them fresh."""

    architecture: str
    field: str
    path: Path | None = None
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    image_size: int | None = None


def read_timm_classifier(source: TimmSource, task: Task, num_classes: int | None = None) -> ModelBundle:
    """A classifier. `num_classes` is used where neither the settings nor the weights' own files say.

    Raises TaskError, ModelFilesError, WeightsError, ArchitectureError.
    """
    if task != Task.IMAGE_CLASSIFICATION:
        raise TaskError(
            f"`spec.task` is {task}, but `{source.field}` with the loader Timm does ImageClassification; "
            "change the task, or put the network into the image tower of a DualEncoder"
        )
    stated = _stated(source)
    settings = {**stated.get("model_args", {}), **source.settings}
    settings.setdefault("num_classes", stated.get("num_classes", num_classes))
    if settings["num_classes"] is None:
        raise ModelFilesError(
            f"`{source.field}.settings.num_classes` must be given for a timm model without files; set it"
        )
    network, record, image = _network(source, settings, stated)
    architecture = Architecture(names.TIMM_CLASSIFIER, {"network": record})
    module = TimmClassifier(network).eval()
    return ModelBundle(module, architecture, Preprocessing(image=image), Task.IMAGE_CLASSIFICATION)


def read_timm_tower(source: TimmSource) -> tuple[ImageTower, Record, Preprocessing]:
    """An image tower: the network without its classifier. Raises as `read_timm_classifier` does."""
    stated = _stated(source)
    settings = {**stated.get("model_args", {}), **source.settings, "num_classes": 0}
    network, record, image = _network(source, settings, stated)
    features: Any = network
    width = int(getattr(features, "head_hidden_size", None) or features.num_features)
    tower = ImageTower(network, "None", width).eval()
    return tower, image_tower_record(record, "None", width), Preprocessing(image=image)


def _stated(source: TimmSource) -> dict[str, Any]:
    """What config.json beside the weights says, in the form in which timm models lie on the hub."""
    if source.path is None or not source.path.is_dir():
        return {}
    stated = read_json(source.path / "config.json")
    named = stated.get("architecture")
    if named is not None and named != source.architecture:
        raise ModelFilesError(
            f"`{source.field}.architecture` must be {named}, as {source.path} says, got {source.architecture}"
        )
    return stated


def _network(
    source: TimmSource, settings: dict[str, Any], stated: Mapping[str, Any]
) -> tuple[nn.Module, Record, ImagePreprocessing]:
    import timm

    pretrained = dict(stated.get("pretrained_cfg", {}))
    known = timm.get_pretrained_cfg(source.architecture, allow_unregistered=True)
    fixed = pretrained.get("fixed_input_size", known.fixed_input_size if known else False)
    if fixed and source.image_size is not None:
        settings.setdefault("img_size", source.image_size)
    record = timm_record(source.architecture, settings)
    network = build_network(record)
    if source.path is not None:
        state = read_weights(source.path)
        if settings["num_classes"] == 0:  # a tower leaves the classifier's weights behind
            own = network.state_dict()
            head = str(pretrained.get("classifier", known.classifier if known else "fc"))
            state = {name: value for name, value in state.items() if name in own or not name.startswith(head)}
        load_weights(network, state, where=f"`{source.field}` ({source.path})")
    return network, record, _image_preprocessing(source, network, pretrained)


def _image_preprocessing(source: TimmSource, network: nn.Module, pretrained: Mapping[str, Any]) -> ImagePreprocessing:
    from timm.data import resolve_model_data_config

    config = resolve_model_data_config(network)
    config.update({key: pretrained[key] for key in config if key in pretrained})
    # Fresh weights have seen no images yet, so nothing asks for cutting their edges off.
    crop = float(config["crop_pct"]) * 100 if source.path is not None else 100.0
    side = source.image_size or int(config["input_size"][-1])
    bilinear = config["interpolation"] == "bilinear"
    red, green, blue = (float(value) for value in config["mean"])
    red_std, green_std, blue_std = (float(value) for value in config["std"])
    return ImagePreprocessing(
        size=side,
        mean=(red, green, blue),
        std=(red_std, green_std, blue_std),
        interpolation=Interpolation.BILINEAR if bilinear else Interpolation.BICUBIC,
        fit=Fit.STRETCH if config["crop_mode"] == "squash" else Fit.CENTER_CROP,
        crop_percent=crop,
    )
