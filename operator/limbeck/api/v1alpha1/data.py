"""Which data a job reads, how samples are laid out in it, and how they are varied while training."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import ConfigDict, Field, model_validator

from limbeck.api.fields import ApiModel, KeptPercent, Location, NonNegativeNumber, Percent, rule, with_rules


class DataFormat(StrEnum):
    """How samples lie in a data set's files."""

    WEB_DATASET = "WebDataset"
    PARQUET = "Parquet"
    JSON_LINES = "JsonLines"
    IMAGE_FOLDER = "ImageFolder"


class DataSource(ApiModel):
    """One set of data files."""

    uri: Location = Field(description="Files by brace pattern, or a folder, e.g. s3://pairs/train-{000..127}.tar.")
    format: DataFormat = Field(description="How samples lie in the files, e.g. WebDataset.")


ColumnName = Annotated[str, Field(min_length=1, max_length=64)]


class Columns(ApiModel):
    """The column, key or file ending that holds each part of a sample."""

    key: ColumnName = Field("__key__", description="Name of the sample, unique in the data set, e.g. __key__.")
    image: ColumnName | None = Field(None, description="Encoded image, e.g. jpg.")
    text: ColumnName | None = Field(
        None, description="Text, or a JSON list of wordings of which each view takes one, e.g. txt."
    )
    label: ColumnName | None = Field(None, description="Class name or number, e.g. cls.")
    audio: ColumnName | None = Field(None, description="Encoded audio, e.g. wav.")
    slices: Annotated[list[ColumnName], Field(max_length=16)] = Field(
        default_factory=list, description="Columns by which figures are split in the report, e.g. [category]."
    )


class Augmentation(ApiModel):
    """Random views of the images: a pure function of seed, key and view, so teacher and student see the same."""

    views: Annotated[int, Field(ge=1, le=64)] = Field(
        1, description="Different views of each sample; epoch e sees view e modulo this number, e.g. 4."
    )
    min_crop_percent: KeptPercent = Field(
        100, description="Smallest share of the side that a random crop keeps; 100 is no crop, e.g. 80."
    )
    flip: bool = Field(False, description="Mirror half of the views, e.g. true.")
    rotation_degrees: Annotated[NonNegativeNumber, Field(le=180)] = Field(
        0.0, description="Largest rotation to either side, e.g. 10."
    )
    color_percent: Percent = Field(0, description="Largest change of brightness and contrast, e.g. 20.")


class Data(ApiModel):
    """Training and validation data."""

    model_config = ConfigDict(
        json_schema_extra=with_rules(
            rule(
                "has(self.validation) != has(self.validationPercent)",
                "`data` must hold exactly one of `validation` and `validationPercent`, got {got}; set one of them",
                "(has(self.validation) ? 'both' : 'neither')",
            )
        )
    )

    train: DataSource = Field(description="Training data, e.g. {uri: s3://p/{0..9}.tar, format: WebDataset}.")
    validation: DataSource | None = Field(None, description="Validation data, e.g. {uri: s3://p/val.tar, ...}.")
    validation_percent: Annotated[int, Field(ge=1, le=50)] | None = Field(
        None, description="Share of the training samples held out, chosen by their keys, e.g. 5."
    )
    columns: Columns = Field(default_factory=Columns, description="Where each part lies, e.g. {image: jpg}.")
    max_bad_samples_percent: Percent = Field(
        1, description="Share of broken samples that is skipped before the job fails, e.g. 1."
    )
    augmentation: Augmentation = Field(
        default_factory=Augmentation, description="Random views while training, e.g. {views: 4, flip: true}."
    )

    @model_validator(mode="after")
    def _one_validation(self) -> Data:
        if (self.validation is None) == (self.validation_percent is None):
            got = "neither" if self.validation is None else "both"
            raise ValueError(
                f"`data` must hold exactly one of `validation` and `validationPercent`, got {got}; set one of them"
            )
        return self
