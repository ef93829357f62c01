"""The CustomResourceDefinition, made from the pydantic models.

pydantic writes JSON Schema with references; Kubernetes wants a structural schema: references inlined, one type
a node, `nullable` instead of a union with null, no titles. The package kube-custom-resource does the same but
wants its own base classes and drops defaults.
"""

from __future__ import annotations

from typing import Any

from limbeck import names
from limbeck.api.fields import rule
from limbeck.api.v1alpha1.job import CompressionJob

# Bounds that keep the cost of CEL rules estimable: every list and string has a largest size.
_LONGEST_TEXT = 1024
# What pydantic calls a bound behind a validator of ours, which it cannot see through.
_BOUNDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
_SPEC_MUTABLE = ("suspend", "backoffLimit", "activeDeadlineSeconds", "ttlSecondsAfterFinished")


def custom_resource_definition() -> dict[str, Any]:
    """The CRD as plain data, ready for YAML or the API server."""
    schema = CompressionJob.model_json_schema(by_alias=True)
    root = _structural(schema, schema.get("$defs", {}))
    properties = root["properties"]
    properties["metadata"] = {"type": "object"}
    properties["apiVersion"] = {"type": "string"}
    properties["kind"] = {"type": "string"}
    properties["status"]["default"] = {"observedGeneration": -1}
    properties["spec"].setdefault("x-kubernetes-validations", []).extend(_immutability(properties["spec"]))
    root["x-kubernetes-validations"] = [_name_rule()]
    root["required"] = ["spec"]
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{names.PLURAL}.{names.GROUP}"},
        "spec": {
            "group": names.GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": names.KIND,
                "listKind": f"{names.KIND}List",
                "plural": names.PLURAL,
                "singular": names.KIND.lower(),
                "shortNames": [names.SHORT_NAME],
                "categories": [names.CATEGORY],
            },
            "versions": [
                {
                    "name": names.VERSION,
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": root},
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": _printer_columns(),
                }
            ],
        },
    }


def _name_rule() -> dict[str, Any]:
    return rule(
        f"size(self.metadata.name) <= {names.MAX_JOB_NAME_LENGTH} && "
        "self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
        f"`metadata.name` must be at most {names.MAX_JOB_NAME_LENGTH} characters of a-z, 0-9 and -, starting with a "
        "letter, got {got}; choose a shorter or plainer name",
        "'`' + self.metadata.name + '`'",
    )


def _immutability(spec_schema: dict[str, Any]) -> list[dict[str, Any]]:
    """One rule a field, so that the refusal names the field that was changed."""
    required = set(spec_schema.get("required", []))
    rules = []
    for field, schema in spec_schema["properties"].items():
        if field in _SPEC_MUTABLE:
            continue
        same = f"self.{field} == oldSelf.{field}"
        if field not in required:
            both = f"has(self.{field}) == has(oldSelf.{field})"
            same = f"{both} && (!has(self.{field}) || {same})"
        old, new = (_shown(who, field, field in required) for who in ("oldSelf", "self"))
        got = f"{new} + ' instead of ' + {old}" if schema["type"] == "string" else None
        told = f"`spec.{field}` must stay as it was created" + (", got {got}" if got else "")
        rules.append(rule(same, f"{told}; delete the job and create a new one", got))
    return rules


def _shown(who: str, field: str, is_required: bool) -> str:
    """A CEL expression: the value of a text field, for people."""
    value = f"{who}.{field}"
    return value if is_required else f"(has({who}.{field}) ? {value} : 'nothing')"


def _printer_columns() -> list[dict[str, Any]]:
    def column(name: str, path: str, kind: str = "string", priority: int = 0) -> dict[str, Any]:
        shown = {"name": name, "jsonPath": path, "type": kind}
        # The API server drops a priority of 0: who compares what he applied with what is there would see a difference.
        return shown | {"priority": priority} if priority else shown

    return [
        column("Status", ".status.phase"),
        column("Step", ".status.progress.step"),
        column("Progress", ".status.progress.percent", "integer"),
        column("ETA", ".status.progress.etaSeconds", "integer"),
        column("Age", ".metadata.creationTimestamp", "date"),
        column("Ratio", ".status.result.sizeRatio", "number", 1),
        column("Recovery", ".status.result.recoveryPercent", "number", 1),
        column("Attempt", ".status.attempt", "integer", 1),
        column("RayJob", ".status.rayJob", "string", 1),
        column("Message", ".status.conditions[?(@.status=='True')].message", "string", 1),
    ]


def _structural(node: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """One node of the JSON Schema as a structural schema, references inlined."""
    node = _resolved(node, definitions)
    if node.get("x-kubernetes-preserve-unknown-fields"):
        kept = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
        return kept | ({"description": node["description"]} if "description" in node else {})
    result = {key: value for key, value in node.items() if not _is_dropped(key)}
    if "const" in result:
        result["enum"] = [result.pop("const")]
    for key, bound in _BOUNDS.items():
        if key in result:
            _tighten(result, bound, result.pop(key))
    if "exclusiveMinimum" in result:
        result["minimum"] = result.pop("exclusiveMinimum")
        result["exclusiveMinimum"] = True
    if "exclusiveMaximum" in result:
        result["maximum"] = result.pop("exclusiveMaximum")
        result["exclusiveMaximum"] = True
    if "x-kubernetes-validations" in result:
        result.pop("pattern", None)  # a rule says the same in words
    if result.get("type") == "string" and "enum" not in result and "format" not in result:
        result.setdefault("maxLength", _LONGEST_TEXT)
    if "properties" in node:
        result["properties"] = {name: _structural(child, definitions) for name, child in node["properties"].items()}
    if "items" in node:
        result["items"] = _structural(node["items"], definitions)
    if isinstance(node.get("additionalProperties"), dict):
        result["additionalProperties"] = _structural(node["additionalProperties"], definitions)
    return result


def _tighten(node: dict[str, Any], bound: str, value: float) -> None:
    """Set a bound, unless one that allows less is there."""
    is_lower = bound.endswith("inimum")
    known = [node[each] for each in _BOUNDS.values() if each in node and each.endswith("inimum") == is_lower]
    if all(value > each if is_lower else value < each for each in known):
        for each in [name for name in _BOUNDS.values() if name.endswith("inimum") == is_lower]:
            node.pop(each, None)
        node[bound] = value


def _resolved(node: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """`node` without a reference and without a union with null; what stands beside them wins."""
    if "$ref" in node:
        target = definitions[node["$ref"].rsplit("/", 1)[1]]
        beside = {key: value for key, value in node.items() if key != "$ref"}
        return _resolved(target | beside, definitions)
    if "anyOf" in node:
        (real,) = [option for option in node["anyOf"] if option.get("type") != "null"]
        beside = {key: value for key, value in node.items() if key not in ("anyOf", "default")}
        return _resolved(real | beside, definitions)
    return node


def _is_dropped(key: str) -> bool:
    """Keys that a structural schema has no place for, or that are rebuilt below."""
    return key in ("title", "$defs", "properties", "items", "additionalProperties", "examples") or (key == "default")
