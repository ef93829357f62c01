"""What the API accepts and refuses, and that each refusal names the field and the way out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from limbeck.api.v1alpha1.job import CompressionJob

Build = Callable[..., dict[str, Any]]

_DISTIL = {"name": "d", "distil": {}}
ACCEPTED = [
    {},
    {"spec.pipeline": [_DISTIL]},
    {"spec.pipeline": [{"name": "d", "distil": {"learningRate": "3e-4"}}]},
    {"spec.target": None, "spec.pipeline": [{"name": "q", "quantize": {}}]},
    {"spec.teacher": None, "spec.student": {"model": {"loader": "Timm", "architecture": "resnet18"}}},
    {"spec.student": {"shrink": {"depthPercent": 50}}},
    {"spec.output.uri": "results/emoji"},
    {"metadata.name": "a" * 40},
    {"spec.cluster": {"teacher": {"minReplicas": 1, "maxReplicas": 16}}},
]
REFUSED = [
    ({"spec.pipeline": [{"name": "d"}]}, "exactly one method of"),
    ({"spec.pipeline": [{"name": "d", "distil": {}, "quantize": {}}]}, "got `d` with [ distil quantize ]"),
    ({"spec.pipeline": [_DISTIL, _DISTIL]}, "unique step names, got `d`"),
    ({"spec.target": None}, "must hold `target` or a `pipeline`"),
    ({"spec.teacher": None}, "must hold `teacher` or `student`"),
    ({"spec.student": {}}, "exactly one of `model` and `shrink`"),
    ({"spec.student": {"shrink": {}}}, "`depthPercent` or `widthPercent`"),
    ({"spec.student": {"shrink": {"depthPercent": 0}}}, "greater than or equal to 1"),
    ({"spec.output.uri": "s3://key:secret@bucket/x"}, "should match pattern"),
    ({"spec.output.uri": "ftp://host/x"}, "should match pattern"),
    ({"metadata.name": "a" * 41}, "at most 40"),
    ({"metadata.name": "1a"}, "should match pattern"),
    ({"spec.data.validationPercent": None}, "exactly one of `validation` and `validationPercent`"),
    ({"spec.cluster": {"teacher": {"minReplicas": 3, "maxReplicas": 2}}}, "got 3 and 2"),
    ({"spec.teacher": {"model": {"loader": "DualEncoder"}}}, "`image` and `text` must be given"),
    ({"spec.teacher": {"model": {"loader": "Transformers"}}}, "`uri` must name"),
    ({"spec.pipeline": [{"name": "d", "distil": {"temperature": 0}}]}, "greater than 0"),
    (
        {"spec.pipeline": [{"name": "d", "distil": {"temperature": 1, "temperatureSchedule": {
            "shape": "Linear", "start": 2, "end": 1}}}]},
        "at most one of `temperature` and `temperatureSchedule`",
    ),
    ({"spec.pipeline": [{"name": "l", "lowRank": {"rank": 4, "energyPercent": 9}}]}, "exactly one of `rank`"),
    ({"spec.targte": {}}, "Extra inputs"),
    ({"spec.pipeline": [_DISTIL | {"name": f"d{i}"} for i in range(33)]}, "at most 32"),
]  # fmt: skip


@pytest.mark.parametrize("changes", ACCEPTED)
def test_a_job_that_follows_the_rules_is_accepted_and_survives_the_wire(
    build_job: Build, changes: dict[str, Any]
) -> None:
    job = CompressionJob.model_validate(build_job(**changes))
    assert CompressionJob.model_validate(job.to_wire()) == job


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_a_job_that_breaks_a_rule_is_refused_with_the_reason(
    build_job: Build, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        CompressionJob.model_validate(build_job(**changes))
    assert message in str(caught.value)


def test_a_learning_rate_without_a_dot_is_a_number(build_job: Build) -> None:
    job = CompressionJob.model_validate(
        build_job(**{"spec.pipeline": [{"name": "d", "distil": {"learningRate": "3e-4"}}]})
    )
    assert job.spec.pipeline[0].distil is not None
    assert job.spec.pipeline[0].distil.learning_rate == pytest.approx(3e-4)


def test_every_field_has_a_description_with_an_example_or_an_end() -> None:
    definitions = CompressionJob.model_json_schema(by_alias=True)["$defs"]
    for name, definition in definitions.items():
        for field, schema in definition.get("properties", {}).items():
            assert schema.get("description", "").endswith("."), f"{name}.{field} has no description"
