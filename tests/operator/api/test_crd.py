"""The CRD: structural, small enough, and equal to the one that was reviewed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from limbeck.api.crd import custom_resource_definition
from limbeck.api.reference import field_reference
from limbeck.cli.yaml import dump

# kubectl apply keeps a copy of the object in an annotation of at most 256 KiB.
LARGEST_BYTES = 256 * 1024


def _nodes(node: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(node, dict):
        yield path, node
        for key, value in node.items():
            yield from _nodes(value, f"{path}.{key}")


def _schema() -> dict[str, Any]:
    (version,) = custom_resource_definition()["spec"]["versions"]
    schema: dict[str, Any] = version["schema"]["openAPIV3Schema"]
    return schema


def test_the_crd_is_the_reviewed_one(golden: Callable[[str, str], None]) -> None:
    golden("crd.yaml", dump(custom_resource_definition()))


def test_the_crd_fits_into_an_annotation() -> None:
    assert len(json.dumps(custom_resource_definition())) < LARGEST_BYTES


def test_the_schema_holds_no_reference_and_no_union() -> None:
    for path, node in _nodes(_schema()):
        assert not {"$ref", "anyOf", "$defs", "const"} & node.keys(), path


def test_every_list_is_bounded_so_that_rules_have_a_cost() -> None:
    for path, node in _nodes(_schema()["properties"]["spec"]):
        if node.get("type") == "array":
            assert "maxItems" in node, path


def test_a_new_object_is_never_read_as_current() -> None:
    assert _schema()["properties"]["status"]["default"] == {"observedGeneration": -1}


def test_each_immutable_field_has_its_own_rule() -> None:
    spec = _schema()["properties"]["spec"]
    messages = " ".join(rule["message"] for rule in spec["x-kubernetes-validations"])
    mutable = {"suspend", "backoffLimit", "activeDeadlineSeconds", "ttlSecondsAfterFinished"}
    for field in spec["properties"]:
        assert (f"`spec.{field}` must stay" in messages) == (field not in mutable), field


def test_the_field_reference_is_up_to_date(request: pytest.FixtureRequest) -> None:
    page = Path(__file__).parents[3] / "docs" / "reference" / "job.md"
    if request.config.getoption("--update-golden"):
        page.write_text(field_reference(), encoding="utf-8")
    assert page.read_text(encoding="utf-8") == field_reference(), "run `make golden` and review docs/reference/job.md"
