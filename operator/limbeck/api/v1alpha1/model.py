"""Which models a job reads: teacher, its ensemble, and the student with its ways of being made from the teacher."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import ConfigDict, Field, model_validator

from limbeck.api.fields import (
    ApiModel,
    FreeForm,
    KeptPercent,
    Location,
    PositiveNumber,
    ShortText,
    rule,
    with_rules,
)


class Loader(StrEnum):
    """How a model's files are read."""

    TRANSFORMERS = "Transformers"
    TIMM = "Timm"
    OPEN_CLIP = "OpenClip"
    DUAL_ENCODER = "DualEncoder"
    TORCH_EXPORT = "TorchExport"
    PYTHON = "Python"
    LIMBECK = "Limbeck"


class TowerLoader(StrEnum):
    """How one tower of a dual encoder is made."""

    TRANSFORMERS = "Transformers"
    TIMM = "Timm"
    TEACHER = "Teacher"


_SHRINK_RULES = with_rules(
    rule(
        "has(self.depthPercent) || has(self.widthPercent)",
        "`shrink` must hold `depthPercent` or `widthPercent`, got neither; give at least one",
    )
)


class Shrink(ApiModel):
    """A smaller model made from the teacher's own layers, weights copied."""

    model_config = ConfigDict(json_schema_extra=_SHRINK_RULES)

    depth_percent: KeptPercent | None = Field(
        None, description="Share of the teacher's layers that is kept, evenly spaced, e.g. 50."
    )
    width_percent: KeptPercent | None = Field(
        None, description="Share of the teacher's channels that is kept, largest norm first, e.g. 50."
    )

    @model_validator(mode="after")
    def _keeps_something(self) -> Shrink:
        if self.depth_percent is None and self.width_percent is None:
            raise ValueError("`shrink` must hold `depthPercent` or `widthPercent`, got neither; give at least one")
        return self


_TOWER_RULES = with_rules(
    rule(
        "self.loader != 'Transformers' || has(self.uri)",
        "`uri` must name a directory when `loader` is Transformers, got nothing; set it",
    ),
    rule(
        "self.loader != 'Timm' || has(self.architecture)",
        "`architecture` must name a timm model when `loader` is Timm, got nothing; set it",
    ),
)


class Tower(ApiModel):
    """One tower of a dual encoder."""

    model_config = ConfigDict(json_schema_extra=_TOWER_RULES)

    loader: TowerLoader = Field(
        description="Transformers reads a directory, Timm builds by name, Teacher takes the teacher's tower, e.g. Timm."
    )
    uri: Location | None = Field(
        None, description="Directory with config.json and safetensors, e.g. s3://models/minilm."
    )
    architecture: ShortText | None = Field(None, description="The model's name in timm, e.g. mobilenetv3_small_050.")
    settings: FreeForm = Field(
        default_factory=dict, description="Arguments of the model's constructor, e.g. {drop_rate: 0.1}."
    )
    image_size: Annotated[int, Field(ge=8, le=4096)] | None = Field(
        None, description="Side of the square input in pixels, e.g. 224."
    )
    max_text_length: Annotated[int, Field(ge=1, le=131_072)] | None = Field(
        None, description="Longest text in tokens; longer ones are cut, e.g. 64."
    )
    shrink: Shrink | None = Field(None, description="Make the tower smaller before use, e.g. {depthPercent: 50}.")
    frozen: bool = Field(False, description="Keep the tower's weights as they are while training, e.g. true.")

    @model_validator(mode="after")
    def _has_what_the_loader_needs(self) -> Tower:
        if self.loader is TowerLoader.TRANSFORMERS and self.uri is None:
            raise ValueError("`uri` must name a directory when `loader` is Transformers, got nothing; set it")
        if self.loader is TowerLoader.TIMM and self.architecture is None:
            raise ValueError("`architecture` must name a timm model when `loader` is Timm, got nothing; set it")
        return self


_MODEL_RULES = with_rules(
    rule(
        "self.loader != 'DualEncoder' || (has(self.image) && has(self.text))",
        "`image` and `text` must be given when `loader` is DualEncoder, got one or none; add both towers",
    ),
    rule(
        "self.loader != 'Python' || has(self.function)",
        "`function` must be given as package.module:function when `loader` is Python, got nothing; add it",
    ),
    rule(
        "self.loader != 'Timm' || has(self.architecture)",
        "`architecture` must name a timm model when `loader` is Timm, got nothing; add it",
    ),
    rule(
        "self.loader in ['DualEncoder', 'Python', 'Timm'] || has(self.uri)",
        "`uri` must name the model's directory or file for this `loader`, got {got}; add it",
        "'nothing with ' + self.loader",
    ),
)


class Model(ApiModel):
    """One model: where it lies and how it is read."""

    model_config = ConfigDict(json_schema_extra=_MODEL_RULES)

    loader: Loader = Field(
        description="How the model is read; Limbeck is a directory that a limbeck job exported, e.g. Transformers."
    )
    uri: Location | None = Field(None, description="Directory or file of the model, e.g. s3://models/clip-l14.")
    revision: ShortText = Field("", description="Version of the model, for the record, e.g. v3.")
    architecture: ShortText | None = Field(
        None, description="The model's name in its library, for Timm and OpenClip, e.g. resnet18."
    )
    function: Annotated[str, Field(max_length=256, pattern=r"^[\w.]+:\w+$")] | None = Field(
        None, description="Your function that returns the model, for Python, e.g. my_models.clip:build."
    )
    settings: FreeForm = Field(
        default_factory=dict, description="Arguments of the constructor or function, e.g. {num_classes: 10}."
    )
    image: Tower | None = Field(None, description="Image tower of a DualEncoder, e.g. {loader: Timm, ...}.")
    text: Tower | None = Field(None, description="Text tower of a DualEncoder, e.g. {loader: Transformers, ...}.")
    embed_dim: Annotated[int, Field(ge=1, le=65_536)] | None = Field(
        None, description="Width of the space in which a DualEncoder's towers meet, e.g. 256."
    )
    image_size: Annotated[int, Field(ge=8, le=4096)] | None = Field(
        None, description="Side of the square input in pixels where the model does not say, e.g. 224."
    )
    max_text_length: Annotated[int, Field(ge=1, le=131_072)] | None = Field(
        None, description="Longest text in tokens where the model does not say, e.g. 77."
    )

    @model_validator(mode="after")
    def _has_what_the_loader_needs(self) -> Model:
        if self.loader is Loader.DUAL_ENCODER and (self.image is None or self.text is None):
            raise ValueError(
                "`image` and `text` must be given when `loader` is DualEncoder, got one or none; add both towers"
            )
        if self.loader is Loader.PYTHON and self.function is None:
            raise ValueError(
                "`function` must be given as package.module:function when `loader` is Python, got nothing; add it"
            )
        if self.loader is Loader.TIMM and self.architecture is None:
            raise ValueError("`architecture` must name a timm model when `loader` is Timm, got nothing; add it")
        without_files = (Loader.DUAL_ENCODER, Loader.PYTHON, Loader.TIMM)
        if self.loader not in without_files and self.uri is None:
            raise ValueError(
                "`uri` must name the model's directory or file for this `loader`, "
                f"got nothing with {self.loader.value}; add it"
            )
        return self


class EnsembleMember(ApiModel):
    """One more teacher, whose outputs are mixed in by weight."""

    model: Model = Field(description="The teacher's model, e.g. {uri: s3://models/b, loader: Transformers}.")
    weight: PositiveNumber = Field(1.0, description="Its weight; weights are normalised over all teachers, e.g. 0.5.")


class Teacher(ApiModel):
    """The large model whose behaviour is to be kept."""

    model: Model = Field(description="The teacher's model, e.g. {uri: s3://models/clip, loader: Transformers}.")
    ensemble: Annotated[list[EnsembleMember], Field(max_length=8)] = Field(
        default_factory=list, description="More teachers, e.g. [{model: {...}, weight: 0.5}]."
    )


class Student(ApiModel):
    """The small model: given, or made from the teacher."""

    model_config = ConfigDict(
        json_schema_extra=with_rules(
            rule(
                "has(self.model) != has(self.shrink)",
                "`student` must hold exactly one of `model` and `shrink`, got {got}; keep one or leave `student` out",
                "(has(self.model) ? 'both' : 'neither')",
            )
        )
    )

    model: Model | None = Field(None, description="The student's model, e.g. {loader: Timm, architecture: resnet18}.")
    shrink: Shrink | None = Field(None, description="Make it from the teacher, e.g. {depthPercent: 50}.")

    @model_validator(mode="after")
    def _exactly_one(self) -> Student:
        if (self.model is None) == (self.shrink is None):
            got = "neither" if self.model is None else "both"
            raise ValueError(
                f"`student` must hold exactly one of `model` and `shrink`, got {got}; keep one or leave `student` out"
            )
        return self
