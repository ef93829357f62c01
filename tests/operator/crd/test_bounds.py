"""Every bound that the schema knows, one step beyond it: numbers, lists, texts and words to choose from."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from limbeck.api.crd import custom_resource_definition

pytestmark = pytest.mark.controlplane

Object = dict[str, Any]
Path = tuple[str | int, ...]


class Breach(NamedTuple):
    path: Path
    value: Any
    message: str

    @property
    def field(self) -> str:
        text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in self.path)
        return text.removeprefix(".")


def _spec_schema() -> Object:
    (version,) = custom_resource_definition()["spec"]["versions"]
    schema: Object = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
    return schema


def _sample(schema: Object) -> Any:
    """A value with everything in it that the schema knows. Fields that exclude each other are beside each other: the
    API server tells of a bound all the same.
    """
    match schema["type"]:
        case "object":
            return {name: _sample(child) for name, child in schema.get("properties", {}).items()}
        case "array":
            return [_sample(schema["items"])]
        case "string":
            return schema["enum"][0] if "enum" in schema else "a:b" if ":" in schema.get("pattern", "") else "a"
        case "boolean":
            return True
        case _:
            return schema.get("minimum", 0) + (1 if schema.get("exclusiveMinimum") else 0)


def _breaches(schema: Object, path: Path) -> Iterator[Breach]:
    kind = schema["type"]
    for name, child in schema.get("properties", {}).items():
        yield from _breaches(child, (*path, name))
    if kind == "array":
        yield from _breaches(schema["items"], (*path, 0))
        most = schema["maxItems"]
        many = [_sample(schema["items"])] * (most + 1)
        yield Breach(path, many, f"Too many: {most + 1}: must have at most {most} items")
        if schema.get("minItems"):
            yield Breach(path, [], "should have at least 1 items")
    elif "enum" in schema:
        yield Breach(path, "Nonesuch", f'Unsupported value: "Nonesuch": supported values: "{schema["enum"][0]}"')
    elif kind in ("integer", "number"):
        yield from _number_breaches(schema, path)
    elif kind == "string" and "maxLength" in schema:
        longest = schema["maxLength"]
        yield Breach(path, "a" * (longest + 1), f"Too long: may not be more than {longest} bytes")
    elif kind == "boolean":
        yield Breach(path, "yes", 'must be of type boolean: "string"')


def _number_breaches(schema: Object, path: Path) -> Iterator[Breach]:
    if "minimum" in schema:
        strict = schema.get("exclusiveMinimum")
        low, words = schema["minimum"], "greater than" if strict else "greater than or equal to"
        yield Breach(path, low if strict else low - 1, f"should be {words} {low}")
    if "maximum" in schema:
        strict = schema.get("exclusiveMaximum")
        high, words = schema["maximum"], "less than" if strict else "less than or equal to"
        yield Breach(path, high if strict else high + 1, f"should be {words} {high}")
    if schema["type"] == "integer":
        yield Breach(path, "many", "must be of type integer")


BREACHES = list(_breaches(_spec_schema(), ("spec",)))


@pytest.mark.parametrize("breach", BREACHES, ids=lambda breach: f"{breach.field} {str(breach.value)[:12]}")
def test_a_value_beyond_its_bound_is_refused_with_the_field_and_the_bound(
    try_to_create: Callable[[Object], Any], build_job: Callable[..., Object], breach: Breach
) -> None:
    job = build_job()
    job["spec"] = copy.deepcopy(_sample(_spec_schema()))
    node: Any = job
    for part in breach.path[:-1]:
        node = node[part]
    node[breach.path[-1]] = breach.value
    answer = try_to_create(job)
    assert answer.status == 422
    causes = [cause for cause in answer.body["details"]["causes"] if cause["field"] == breach.field]
    assert breach.message in " ".join(cause["message"] for cause in causes), answer.message[:500]


def test_there_are_as_many_as_we_know_of() -> None:
    assert len(BREACHES) > 200
