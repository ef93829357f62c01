"""The field reference as Markdown, from the CRD's schema: what `kubectl explain` tells, on one page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from limbeck.api.crd import custom_resource_definition

_HEAD = """# CompressionJob, limbeck.dev/v1alpha1

Generated from the API's models (`make golden`); do not edit. Fields that are not required may be left out. What this
version cannot run is refused by name before anything starts.

| field | type | meaning |
| --- | --- | --- |
"""


def field_reference() -> str:
    """One table of all fields of spec and status, in their order."""
    (version,) = custom_resource_definition()["spec"]["versions"]
    properties = version["schema"]["openAPIV3Schema"]["properties"]
    rows = [row for name in ("spec", "status") for row in _rows(name, properties[name], required=name == "spec")]
    return _HEAD + "".join(rows)


def _rows(path: str, node: dict[str, Any], *, required: bool) -> Iterator[str]:
    meaning = node.get("description", "").replace("|", "\\|").replace("\n", " ")
    need = " **required**" if required else ""
    yield f"| `{path}`{need} | {_type(node)} | {meaning} |\n"
    inner, inner_path = node, path
    if node.get("type") == "array":
        inner, inner_path = node["items"], f"{path}[]"
    for name, child in inner.get("properties", {}).items():
        yield from _rows(f"{inner_path}.{name}", child, required=name in inner.get("required", []))


def _type(node: dict[str, Any]) -> str:
    if "enum" in node:
        return " \\| ".join(str(value) for value in node["enum"])
    kind: str = node.get("type", "any")
    if kind == "array":
        return f"list of {_type(node['items'])}"
    low, high = node.get("minimum"), node.get("maximum")
    bounds = f" {low if low is not None else ''}..{high if high is not None else ''}" if low is not None else ""
    return kind + bounds
