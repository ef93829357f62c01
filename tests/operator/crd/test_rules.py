"""Every rule of the API, said by a real API server: what it accepts, what it refuses, and in which words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.controlplane

Object = dict[str, Any]
Build = Callable[..., Object]

DISTIL = {"name": "d", "distil": {}}
TIMM = {"loader": "Timm", "architecture": "resnet18"}
TWO_TOWERS = {"loader": "DualEncoder", "image": TIMM, "text": {"loader": "Teacher"}}


def distil(**settings: Any) -> list[Object]:
    return [{"name": "d", "distil": settings}]


ACCEPTED: dict[str, Object] = {
    "the smallest": {},
    "a pipeline instead of a target": {"spec.target": None, "spec.pipeline": [DISTIL]},
    "both": {"spec.pipeline": [DISTIL]},
    "each method once": {
        "spec.pipeline": [
            DISTIL,
            {"name": "f", "finetune": {}},
            {"name": "p", "prune": {"sparsityPercent": 30}},
            {"name": "l", "lowRank": {"energyPercent": 95}},
            {"name": "q", "quantize": {}},
        ]
    },
    "32 steps": {"spec.pipeline": [{"name": f"s{i}", "distil": {}} for i in range(32)]},
    "a whole number where a real one may stand": {"spec.pipeline": distil(learningRate=1)},
    "a small rate": {"spec.pipeline": distil(learningRate=3e-4)},
    "no teacher": {"spec.teacher": None, "spec.student": {"model": TIMM}},
    "a shrunken student": {"spec.student": {"shrink": {"widthPercent": 50}}},
    "two towers": {"spec.teacher": {"model": TWO_TOWERS}},
    "a function": {"spec.teacher": {"model": {"loader": "Python", "function": "my.models:build"}}},
    "one temperature": {"spec.pipeline": distil(temperature=2)},
    "a moving temperature": {"spec.pipeline": distil(temperatureSchedule={"shape": "Step", "start": 4, "end": 1})},
    "validation data": {
        "spec.data.validationPercent": None,
        "spec.data.validation": {"uri": "gs://pairs/val.tar", "format": "WebDataset"},
    },
    "as many teachers at least as at most": {"spec.cluster": {"teacher": {"minReplicas": 3, "maxReplicas": 3}}},
    "more teachers at most": {"spec.cluster": {"teacher": {"maxReplicas": 4}}},
    "a name of 40 characters": {"metadata.name": "a" * 40},
    "a folder": {"spec.output.uri": "results/emoji"},
    "a file URI": {"spec.output.uri": "file:///results/emoji"},
    "an @ behind the bucket": {"spec.data.train.uri": "s3://pairs/{000..127}.tar"},
    "pod templates, whatever is in them": {
        "spec.cluster": {"head": {"template": {"spec": {"nodeSelector": {"a": "b"}, "priority": 7}}}}
    },
    "a secret": {"spec.output": {"uri": "s3://results/emoji", "credentialsSecretRef": {"name": "s3"}}},
    "deadline, retries, time to live": {
        "spec.activeDeadlineSeconds": 1,
        "spec.backoffLimit": 0,
        "spec.ttlSecondsAfterFinished": 0,
    },
}

METHODS = "distil, finetune, prune, lowRank, quantize"
URI_ADVICE = (
    "must be a path or s3://, gs://, az://, file:// or memory://, without credentials and blanks; "
    "put credentials into a Secret and name it in `credentialsSecretRef`"
)
# What breaks a rule, and where and what the API server says.
REFUSED: dict[str, tuple[Object, str, str]] = {
    "no method": (
        {"spec.pipeline": [{"name": "d"}]},
        "spec.pipeline[0]",
        f"each entry of `pipeline` must hold exactly one method of {METHODS}, got `d` with [ ]; add, split or remove",
    ),
    "two methods": (
        {"spec.pipeline": [{"name": "d", "distil": {}, "quantize": {}}]},
        "spec.pipeline[0]",
        f"exactly one method of {METHODS}, got `d` with [ distil quantize ]; add, split or remove some",
    ),
    "a name twice": (
        {"spec.pipeline": [{"name": "a", "distil": {}}, DISTIL, DISTIL]},
        "spec",
        "`spec.pipeline` must have unique step names, got one more than once; rename one",
    ),
    "neither target nor pipeline": (
        {"spec.target": None},
        "spec",
        "`spec` must hold `target` or a `pipeline` of at least one step, got neither; give one",
    ),
    "an empty pipeline": (
        {"spec.target": None, "spec.pipeline": []},
        "spec",
        "`spec` must hold `target` or a `pipeline` of at least one step, got neither; give one",
    ),
    "no model at all": (
        {"spec.teacher": None},
        "spec",
        "`spec` must hold `teacher` or `student`, got neither; say which model is to be worked on",
    ),
    "a student without anything": (
        {"spec.student": {}},
        "spec.student",
        "`student` must hold exactly one of `model` and `shrink`, got neither; keep one or leave `student` out",
    ),
    "a student twice": (
        {"spec.student": {"model": TIMM, "shrink": {"depthPercent": 50}}},
        "spec.student",
        "`student` must hold exactly one of `model` and `shrink`, got both; keep one or leave `student` out",
    ),
    "nothing to shrink": (
        {"spec.student": {"shrink": {}}},
        "spec.student.shrink",
        "`shrink` must hold `depthPercent` or `widthPercent`, got neither; give at least one",
    ),
    "no validation": (
        {"spec.data.validationPercent": None},
        "spec.data",
        "`data` must hold exactly one of `validation` and `validationPercent`, got neither; set one of them",
    ),
    "validation twice": (
        {"spec.data.validation": {"uri": "s3://pairs/val.tar", "format": "WebDataset"}},
        "spec.data",
        "`data` must hold exactly one of `validation` and `validationPercent`, got both; set one of them",
    ),
    "fewest above most": (
        {"spec.cluster": {"teacher": {"minReplicas": 3, "maxReplicas": 2}}},
        "spec.cluster.teacher",
        "`minReplicas` must be at most `maxReplicas`, each 1 where not given; lower one or raise the other",
    ),
    "fewest above the default of most": (
        {"spec.cluster": {"teacher": {"minReplicas": 2}}},
        "spec.cluster.teacher",
        "`minReplicas` must be at most `maxReplicas`, each 1 where not given; lower one or raise the other",
    ),
    "towers missing": (
        {"spec.teacher": {"model": {"loader": "DualEncoder", "image": TIMM}}},
        "spec.teacher.model",
        "`image` and `text` must be given when `loader` is DualEncoder, got one or none; add both towers",
    ),
    "no function": (
        {"spec.teacher": {"model": {"loader": "Python"}}},
        "spec.teacher.model",
        "`function` must be given as package.module:function when `loader` is Python, got nothing; add it",
    ),
    "no architecture": (
        {"spec.teacher": {"model": {"loader": "Timm"}}},
        "spec.teacher.model",
        "`architecture` must name a timm model when `loader` is Timm, got nothing; add it",
    ),
    "no place of the model": (
        {"spec.teacher": {"model": {"loader": "Limbeck"}}},
        "spec.teacher.model",
        "`uri` must name the model's directory or file for this `loader`, got nothing with Limbeck; add it",
    ),
    "a tower without a place": (
        {"spec.teacher": {"model": TWO_TOWERS | {"text": {"loader": "Transformers"}}}},
        "spec.teacher.model.text",
        "`uri` must name a directory when `loader` is Transformers, got nothing; set it",
    ),
    "a tower without an architecture": (
        {"spec.teacher": {"model": TWO_TOWERS | {"image": {"loader": "Timm"}}}},
        "spec.teacher.model.image",
        "`architecture` must name a timm model when `loader` is Timm, got nothing; set it",
    ),
    "two temperatures": (
        {"spec.pipeline": distil(temperature=1, temperatureSchedule={"shape": "Linear", "start": 2, "end": 1})},
        "spec.pipeline[0].distil",
        "`distil` must hold at most one of `temperature` and `temperatureSchedule`, got both; remove one",
    ),
    "two shares of hard labels": (
        {"spec.pipeline": distil(hardLabelPercent=1, hardLabelSchedule={"shape": "Linear", "start": 2, "end": 1})},
        "spec.pipeline[0].distil",
        "`distil` must hold at most one of `hardLabelPercent` and `hardLabelSchedule`, got both; remove one",
    ),
    "two budgets": (
        {"spec.pipeline": [{"name": "l", "lowRank": {"rank": 4, "energyPercent": 9}}]},
        "spec.pipeline[0].lowRank",
        "exactly one of `rank`, `energyPercent`, `parameterPercent`, got [ rank energyPercent ]; keep one",
    ),
    "no budget": (
        {"spec.pipeline": [{"name": "l", "lowRank": {}}]},
        "spec.pipeline[0].lowRank",
        "exactly one of `rank`, `energyPercent`, `parameterPercent`, got [ ]; keep one",
    ),
    "a name of 41 characters": (
        {"metadata.name": "a" * 41},
        "",
        f"`metadata.name` must be at most 40 characters of a-z, 0-9 and -, starting with a letter, got `{'a' * 41}`; "
        "choose a shorter or plainer name",
    ),
    "a name that begins with a digit": ({"metadata.name": "1a"}, "", "starting with a letter, got `1a`; choose"),
    "a name with a dot": ({"metadata.name": "a.b"}, "", "starting with a letter, got `a.b`; choose"),
    "another scheme": ({"spec.output.uri": "ftp://host/x"}, "spec.output.uri", f"`uri` {URI_ADVICE}"),
    "a blank": ({"spec.output.uri": "s3://results/my model"}, "spec.output.uri", f"`uri` {URI_ADVICE}"),
    "no scheme before a colon": ({"spec.data.train.uri": "host:x"}, "spec.data.train.uri", f"`uri` {URI_ADVICE}"),
    "33 steps": (
        {"spec.pipeline": [{"name": f"s{i}", "distil": {}} for i in range(33)]},
        "spec.pipeline",
        "Too many: 33: must have at most 32 items",
    ),
    "a step named in capitals": (
        {"spec.pipeline": [{"name": "D", "distil": {}}]},
        "spec.pipeline[0].name",
        "in body should match '^[a-z]([-a-z0-9]*[a-z0-9])?$'",
    ),
    "no task": ({"spec.task": None}, "spec.task", "Required value"),
    "no output": ({"spec.output": None}, "spec.output", "Required value"),
    "no training data": ({"spec.data.train": None}, "spec.data.train", "Required value"),
    "a field that is none": ({"spec.targte": {}}, "", 'unknown field "spec.targte"'),
    "a field that is none, far down": (
        {"spec.pipeline": distil(epocs=3)},
        "",
        'unknown field "spec.pipeline[0].distil.epocs"',
    ),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_the_api_server_accepts_a_job_that_follows_the_rules(
    try_to_create: Callable[[Object], Any], build_job: Build, case: str
) -> None:
    answer = try_to_create(build_job(**ACCEPTED[case]))
    assert answer.status == 201, answer.message


@pytest.mark.parametrize("case", REFUSED)
def test_the_api_server_refuses_a_job_that_breaks_a_rule_and_says_what_to_do(
    try_to_create: Callable[[Object], Any], build_job: Build, case: str
) -> None:
    changes, field, message = REFUSED[case]
    answer = try_to_create(build_job(**changes))
    assert answer.status in (400, 422)
    assert message in answer.message
    assert f"{field}: " in answer.message or not field


def test_a_secret_inside_a_uri_is_refused_and_not_repeated_in_our_own_words(
    try_to_create: Callable[[Object], Any], build_job: Build
) -> None:
    answer = try_to_create(build_job(**{"spec.output.uri": "s3://key:hunter2@bucket/x"}))
    assert answer.status == 422
    assert f"`uri` {URI_ADVICE}" in answer.message
    assert all("hunter2" not in cause["message"].split("`uri`", 1)[1] for cause in answer.body["details"]["causes"])


# What a user may change of a job that exists, and all the rest.
CHANGES: dict[str, Any] = {
    "target": {"sizeRatio": 8},
    "task": "ImageClassification",
    "seed": 8,
    "teacher": {"model": {"uri": "s3://models/other"}},
    "student": {"shrink": {"widthPercent": 50}},
    "data": {"validationPercent": 6},
    "pipeline": [DISTIL],
    "evaluation": {"samples": 3},
    "export": {"formats": ["Onnx"]},
    "output": {"uri": "s3://results/other"},
    "store": {"uri": "s3://store"},
    "cluster": {"head": {"template": {"spec": {"nodeSelector": {"a": "b"}}}}},
    "tracking": {"tensorBoard": True},
    "managedBy": "another/controller",
}
MUTABLE: dict[str, Any] = {
    "suspend": True,
    "backoffLimit": 9,
    "activeDeadlineSeconds": 60,
    "ttlSecondsAfterFinished": 60,
}


@pytest.fixture
def job(api: Any, jobs_path: str, build_job: Build) -> str:
    """The path of one that exists."""
    answer = api.ask("POST", jobs_path, build_job(**{"spec.seed": 7, "spec.managedBy": "limbeck.dev/operator"}))
    assert answer.status == 201, answer.message
    return f"{jobs_path}/emoji"


def change(api: Any, path: str, spec: Object) -> Any:
    return api.ask("PATCH", path, {"spec": spec}, content_type="application/merge-patch+json", dryRun="All")


@pytest.mark.parametrize("field", CHANGES)
def test_what_a_job_was_created_with_stays(api: Any, job: str, field: str) -> None:
    answer = change(api, job, {field: CHANGES[field]})
    assert answer.status == 422
    got = {"task": ", got ImageClassification instead of ImageText"}.get(field, "")
    if field == "managedBy":
        got = ", got another/controller instead of limbeck.dev/operator"
    assert f"`spec.{field}` must stay as it was created{got}; delete the job and create a new one" in answer.message


def test_a_field_that_was_given_cannot_be_taken_away(api: Any, job: str) -> None:
    answer = change(api, job, {"managedBy": None})
    assert "`spec.managedBy` must stay as it was created, got nothing instead of limbeck.dev/oper" in answer.message


@pytest.mark.parametrize("field", MUTABLE)
def test_four_fields_may_change(api: Any, job: str, field: str) -> None:
    assert change(api, job, {field: MUTABLE[field]}).status == 200


def test_the_tables_above_hold_every_field_of_the_spec() -> None:
    from limbeck.api.crd import custom_resource_definition

    (version,) = custom_resource_definition()["spec"]["versions"]
    spec = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
    assert {*CHANGES, *MUTABLE} == set(spec["properties"])
