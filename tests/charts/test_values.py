"""The values: what they may be, and that the derived files are those that the models and the chart make."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

Object = dict[str, Any]

sys.path.append(str(Path(__file__).parent.parent.parent / "charts"))


def nodes(node: Any, path: str = "") -> Iterator[tuple[str, Object]]:
    """Every object of the schema that lists properties."""
    if isinstance(node, dict):
        if "properties" in node and path.rsplit(".", 1)[-1] not in ("if", "then"):
            yield path, node
        for key, value in node.items():
            yield from nodes(value, f"{path}.{key}")


def test_no_part_of_the_schema_lets_a_typo_pass(chart: Path) -> None:
    schema = json.loads((chart / "values.schema.json").read_text(encoding="utf-8"))
    found = list(nodes(schema))
    assert len(found) > 20
    for path, node in found:
        assert node["additionalProperties"] is False, path


def test_every_value_has_a_default_and_a_description(chart: Path) -> None:
    """All that the schema knows of, but Helm's own."""
    from generate import values_table

    schema = json.loads((chart / "values.schema.json").read_text(encoding="utf-8"))
    text = (chart / "values.yaml").read_text(encoding="utf-8")
    values = yaml.safe_load(text)
    described = {name for name, _, _ in values_table(text)}
    for name in _leaves(schema, schema):
        value: Any = values
        for part in name.split("."):
            assert part in value, f"{name} has no default"
            value = value[part]
        assert name in described, f"{name} has no description"


def _leaves(node: Object, schema: Object, path: str = "") -> Iterator[str]:
    """Names of the values; what is free or one thing as a whole is one value."""
    whole = ("global", "resources", "settings", "issuerRef", "affinity")
    for name, child in node["properties"].items():
        if "$ref" in child:
            child = schema["$defs"][child["$ref"].rsplit("/", 1)[1]]
        where = f"{path}.{name}".removeprefix(".")
        if "properties" in child and name not in whole:
            yield from _leaves(child, schema, where)
        elif name != "global":
            yield where


@pytest.mark.controlplane
@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"replicsa": 1}, "replicsa"),
        ({"operator": {"replica": 1}}, "replica"),
        ({"operator": {"settings": {"preemptionBudgte": 1}}}, "preemptionBudgte"),
        ({"server": {"settings": {"retention_days": 1}}}, "retention_days"),
        ({"server": {"tls": {"secret": "a"}}}, "secret"),
        ({"image": {"pullpolicy": "Never"}}, "pullpolicy"),
        ({"metrics": {"monitors": {"label": {}}}}, "label"),
        ({"image": {"pullPolicy": "Sometimes"}}, "IfNotPresent"),
        ({"operator": {"settings": {"workers": 0}}}, "workers"),
        ({"server": {"tls": {"source": "Secret"}}}, "secretName"),
        ({"watchNamespaces": "team-a"}, "watchNamespaces"),
    ],
)
def test_a_wrong_value_is_refused_by_its_name(helm: Any, chart: Path, values: Object, complaint: str) -> None:
    done = helm.run("template", "limbeck", str(chart), values=values)
    assert done.returncode != 0
    assert complaint in done.stderr


@pytest.mark.controlplane
def test_the_chart_is_sound(helm: Any, chart: Path) -> None:
    done = helm.run("lint", "--strict", str(chart))
    assert done.returncode == 0, done.stdout


@pytest.mark.controlplane
def test_the_derived_files_are_those_that_make_manifests_writes(helm: Any) -> None:
    import generate

    stale = [
        str(path.relative_to(generate.REPOSITORY))
        for path, text in generate.outputs(helm.binary).items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    assert not stale, "run `make manifests`, review the diff and commit it"


def test_the_definitions_are_made_from_the_models(request: pytest.FixtureRequest) -> None:
    """Without helm, so that the fast tests see it; `make golden` writes them, as it writes the golden one."""
    import generate

    for file, text in generate.definitions().items():
        if request.config.getoption("--update-golden"):
            file.write_text(text, encoding="utf-8")
        assert file.read_text(encoding="utf-8") == text, f"{file} is stale; run `make golden` and review the diff"
