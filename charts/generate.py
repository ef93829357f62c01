"""Writes what is derived: the chart's CRD, schema and tables, and all of `manifests/` that says the same as the chart.

    make manifests                       # or: python charts/generate.py

The CRD and the settings come from the operator's models; the kustomize base and components come from the chart, as
helm renders it. A test compares the files with what this would write.
Left out: the goldens of the tests, and the overlays, samples and GitOps manifests, which are written by hand.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic.alias_generators import to_camel
from pydantic_settings import BaseSettings

from limbeck.api.crd import custom_resource_definition
from limbeck.cli.yaml import dump
from limbeck.controller.settings import ProcessSettings
from limbeck.controller.settings import Settings as JobSettings
from limbeck.server.settings import Settings as ServerSettings

REPOSITORY: Final = Path(__file__).parent.parent
CHART: Final = REPOSITORY / "charts" / "limbeck"
MANIFESTS: Final = REPOSITORY / "manifests"
NAMESPACE: Final = "limbeck-system"

# What the chart sets itself, from values of other names.
_OPERATOR_OWN: Final = frozenset(
    {
        "image",
        "image_pull_policy",
        "server_url",
        "server_ca_pem",
        "server_ca_file",
        "limbeck_namespace",
        "namespaces",
        "lease_name",
        "host",
        "port",
    }
)
_SERVER_OWN: Final = frozenset({"host", "port", "tls_cert_file", "tls_key_file", "database_url"})
# The base is the chart with a certificate that somebody else makes; a component is what other values add to that.
_BASE: Final = {"server.tls.source": "Secret", "server.tls.secretName": "limbeck-server-tls"}
_COMPONENTS: Final = {
    "cert-manager/certificates.yaml": {"server.tls.source": "CertManager"},
    "database/disruption-budget.yaml": {"server.replicas": "2", "server.database.secretName": "limbeck-database"},
    "monitors/monitors.yaml": {"metrics.monitors.enabled": "true"},
    "persistence/claim.yaml": {"server.persistence.enabled": "true"},
}
_HEADER: Final = "# Written by `make manifests` from charts/limbeck; do not edit.\n"
# Said by helm about itself, and by limbeck's chart about its certificate.
_HELM_LABELS: Final = ("app.kubernetes.io/managed-by", "helm.sh/chart")
_HELM_ANNOTATIONS: Final = ("helm.sh/resource-policy", "limbeck.dev/tls-checksum")

Object = dict[str, Any]


def outputs(helm: Path) -> dict[Path, str]:
    """Every derived file and what is to be in it."""
    base = render(helm, _BASE)
    (rendered,) = [each for each in base if each["kind"] == "CustomResourceDefinition"]
    made = {
        **definitions(rendered["metadata"]),
        CHART / "values.schema.json": _schema((CHART / "values.schema.json").read_text(encoding="utf-8")),
        CHART / "README.md": _readme((CHART / "README.md").read_text(encoding="utf-8")),
        MANIFESTS / "gitops" / "argocd" / "argocd-cm.yaml": _argocd_settings(),
    }
    for name, objects in _by_component(base).items():
        made[MANIFESTS / "base" / f"{name}.yaml"] = _documents(objects)
    known = {_key(each) for each in base}
    for file, values in _COMPONENTS.items():
        added = [each for each in render(helm, {**_BASE, **values}) if _key(each) not in known]
        made[MANIFESTS / "components" / file] = _documents(added)
    return made


def definitions(metadata: Object | None = None) -> dict[Path, str]:
    """The files with the CRD, whose metadata in the base is as the chart labels it, or as it is there now."""
    # As JSON no part is in it twice: YAML would write the second as a reference to the first.
    crd = json.loads(json.dumps(custom_resource_definition()))
    base = MANIFESTS / "base" / "crd.yaml"
    if metadata is None:
        metadata = yaml.load(base.read_text(encoding="utf-8"), yaml.CSafeLoader)["metadata"]
    return {CHART / "files" / "crd.yaml": dump(crd), base: _documents([{**crd, "metadata": metadata}])}


def render(helm: Path, values: Mapping[str, str]) -> list[Object]:
    """The chart's objects for release `limbeck` with some values set, without what helm says about itself."""
    command = [str(helm), "template", "limbeck", str(CHART), "--namespace", NAMESPACE]
    for name, value in values.items():
        command += ["--set", f"{name}={value}"]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [_plain(each) for each in yaml.load_all(text, yaml.CSafeLoader) if each]


def setting_schemas(models: Iterable[type[BaseSettings]], own: Iterable[str]) -> dict[str, Object]:
    """JSON Schema of each setting by its name in the values, with its default and description."""
    found = {}
    for model in models:
        for field, schema in model.model_json_schema(mode="validation")["properties"].items():
            if field not in own:
                found[to_camel(field)] = {key: value for key, value in schema.items() if key != "title"}
                default = model.model_fields[field].get_default(call_default_factory=True)
                found[to_camel(field)].setdefault("default", json.loads(json.dumps(default, default=list)))
    return found


def operator_settings() -> dict[str, Object]:
    return setting_schemas((JobSettings, ProcessSettings), _OPERATOR_OWN)


def server_settings() -> dict[str, Object]:
    return setting_schemas((ServerSettings,), _SERVER_OWN)


def values_table(text: str) -> list[tuple[str, str, str]]:
    """(name, default, description) of each value that a line of comment stands above, in values.yaml's order."""
    rows, path, described = [], [], ""
    for line in text.splitlines():
        entry = re.match(r"( *)([A-Za-z]+):(?: (.*))?$", line)
        if line.strip().startswith("#"):
            described = line.strip().removeprefix("# ")
        elif entry is None:
            described = ""
        else:
            indent, name, _ = entry.groups()
            path = [*path[: len(indent) // 2], name]
            if described:
                rows.append((".".join(path), described))
            described = ""
    values = yaml.safe_load(text)
    table = []
    for name, description in rows:
        value: Any = values
        for part in name.split("."):
            value = value[part]
        is_group = isinstance(value, dict) and any(other.startswith(f"{name}.") for other, _ in rows)
        table.append((name, "" if is_group else f"`{json.dumps(value)}`", description))
    return table


def _plain(item: Object) -> Object:
    metadata = item["metadata"]
    for each in (metadata, item.get("spec", {}).get("template", {}).get("metadata", {})):
        for key in _HELM_LABELS:
            each.get("labels", {}).pop(key, None)
        for key in _HELM_ANNOTATIONS:
            each.get("annotations", {}).pop(key, None)
        if each.get("annotations") == {}:
            del each["annotations"]
    return item


def _by_component(objects: Iterable[Object]) -> dict[str, list[Object]]:
    found: dict[str, list[Object]] = {}
    for each in objects:
        component = each["metadata"]["labels"]["app.kubernetes.io/component"]
        if component != "crd":
            found.setdefault(component, []).append(each)
    return found


def _key(item: Object) -> tuple[str, str]:
    return item["kind"], item["metadata"]["name"]


def _documents(objects: Iterable[Object]) -> str:
    return _HEADER + "---\n".join(dump(each) for each in objects)


def _schema(text: str) -> str:
    schema = json.loads(text)
    for name, settings in (("operatorSettings", operator_settings()), ("serverSettings", server_settings())):
        schema["$defs"][name] = {"type": "object", "additionalProperties": False, "properties": settings}
    return json.dumps(schema, indent=2) + "\n"


def _readme(text: str) -> str:
    values = values_table((CHART / "values.yaml").read_text(encoding="utf-8"))
    tables = {"values": _table(("value", "default", "what"), values)}
    rows = [
        (f"{process}.settings.{name}", f"`{json.dumps(schema['default'])}`", schema["description"])
        for process, settings in (("operator", operator_settings()), ("server", server_settings()))
        for name, schema in settings.items()
    ]
    tables["settings"] = _table(("setting", "default", "what"), rows)
    for name, table in tables.items():
        pattern = rf"(<!-- {name}: [^\n]*-->\n).*?(<!-- end of {name} -->)"
        text = re.sub(pattern, lambda found, table=table: f"{found[1]}\n{table}\n{found[2]}", text, flags=re.DOTALL)
    return text


def _table(head: tuple[str, str, str], rows: Iterable[tuple[str, str, str]]) -> str:
    lines = [f"| {' | '.join(head)} |", "| --- | --- | --- |"]
    lines += [f"| `{name}` | {default} | {what} |".replace("|  |", "| |") for name, default, what in rows]
    return "\n".join(lines) + "\n"


def _argocd_settings() -> str:
    """The Lua files as Argo CD wants them: keys of its ConfigMap."""
    folder = MANIFESTS / "gitops" / "argocd"
    read = {path.stem: path.read_text(encoding="utf-8") for path in sorted(folder.glob("lua/*.lua"))}
    actions = {
        "discovery.lua": read["discovery"],
        "definitions": [{"name": name, "action.lua": read[name]} for name in ("suspend", "resume")],
    }
    data = {
        "resource.customizations.health.limbeck.dev_CompressionJob": read["health"],
        "resource.customizations.actions.limbeck.dev_CompressionJob": _block_yaml(actions),
    }
    metadata = {"name": "argocd-cm", "namespace": "argocd", "labels": {"app.kubernetes.io/part-of": "argocd"}}
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}
    return "# Written by `make manifests` from lua/*.lua; do not edit.\n" + _block_yaml(body)


class _BlockDumper(yaml.SafeDumper):
    """Writes text of several lines as it is."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_BlockDumper.add_representer(str, _text)


def _block_yaml(data: Object) -> str:
    return yaml.dump(data, Dumper=_BlockDumper, sort_keys=False, width=120)


def main() -> None:
    sys.path.append(str(REPOSITORY / "tests" / "cluster"))
    import gotools

    for path, text in outputs(gotools.HELM.build()).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(path.relative_to(REPOSITORY))


if __name__ == "__main__":
    main()
