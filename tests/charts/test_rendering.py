"""What the chart makes of its values."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Object = dict[str, Any]
Rendered = dict[tuple[str, str], Object]
Render = Callable[..., Rendered]

pytestmark = pytest.mark.controlplane  # for the time that helm takes to build

OPERATOR, SERVER = ("Deployment", "limbeck-operator"), ("Deployment", "limbeck-server")
DEFAULT = {
    ("CustomResourceDefinition", "compressionjobs.limbeck.dev"),
    ("ServiceAccount", "limbeck-operator"),
    ("ServiceAccount", "limbeck-server"),
    ("ClusterRole", "limbeck-operator"),
    ("ClusterRoleBinding", "limbeck-operator"),
    ("Role", "limbeck-operator-lease"),
    ("RoleBinding", "limbeck-operator-lease"),
    ("ClusterRole", "limbeck-server"),
    ("ClusterRoleBinding", "limbeck-server"),
    ("ClusterRole", "limbeck-server-tokens"),
    ("ClusterRoleBinding", "limbeck-server-tokens"),
    ("ClusterRole", "limbeck-view"),
    ("ClusterRole", "limbeck-edit"),
    ("Deployment", "limbeck-operator"),
    ("Deployment", "limbeck-server"),
    ("Service", "limbeck-operator"),
    ("Service", "limbeck-server"),
    ("Secret", "limbeck-server-tls"),
    ("PodDisruptionBudget", "limbeck-operator"),
    ("NetworkPolicy", "limbeck-operator"),
    ("NetworkPolicy", "limbeck-server"),
}


def container(objects: Rendered, workload: tuple[str, str]) -> Object:
    (found,) = objects[workload]["spec"]["template"]["spec"]["containers"]
    assert isinstance(found, dict)
    return found


def environment(objects: Rendered, workload: tuple[str, str]) -> dict[str, str]:
    """Those variables that have a value of their own; twice the same name would be two masters."""
    variables = container(objects, workload)["env"]
    names = [each["name"] for each in variables]
    assert len(names) == len(set(names))
    return {each["name"]: each["value"] for each in variables if "value" in each}


def settings(module: str, model: str, given: dict[str, str]) -> Object:
    """What the process would make of its environment."""
    program = f"from {module} import {model}; print({model}().model_dump_json())"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PATH": os.environ["PATH"], **given},
        capture_output=True,
        text=True,
        check=True,
    )
    found: Object = json.loads(done.stdout)
    return found


def test_the_default_values_make_these_objects(render: Render) -> None:
    assert set(render()) == DEFAULT


def test_every_object_says_whose_it_is_and_where_it_lies(render: Render) -> None:
    of_no_namespace = ("CustomResourceDefinition", "ClusterRole", "ClusterRoleBinding")
    for (kind, name), item in render().items():
        labels = item["metadata"]["labels"]
        assert labels["app.kubernetes.io/name"] == "limbeck", (kind, name)
        assert labels["app.kubernetes.io/managed-by"] == "Helm", (kind, name)
        assert ("namespace" in item["metadata"]) == (kind not in of_no_namespace), (kind, name)


def test_two_releases_share_no_name(render: Render) -> None:
    ours, theirs = set(render()), set(render(release="second"))
    assert {name for _, name in ours & theirs} == {"compressionjobs.limbeck.dev"}


def test_services_and_budgets_select_the_pods_that_they_are_for(render: Render) -> None:
    objects = render({"server": {"replicas": 2, "database": {"secretName": "postgres"}}})
    for component in ("operator", "server"):
        labels = objects["Deployment", f"limbeck-{component}"]["spec"]["template"]["metadata"]["labels"]
        selectors = [
            objects["Deployment", f"limbeck-{component}"]["spec"]["selector"]["matchLabels"],
            objects["Service", f"limbeck-{component}"]["spec"]["selector"],
            objects["PodDisruptionBudget", f"limbeck-{component}"]["spec"]["selector"]["matchLabels"],
            objects["NetworkPolicy", f"limbeck-{component}"]["spec"]["podSelector"]["matchLabels"],
        ]
        assert all(selector == selectors[0] for selector in selectors)
        assert selectors[0].items() <= labels.items()
        assert selectors[0]["app.kubernetes.io/component"] == component


def test_the_operator_is_set_up_by_the_values(render: Render) -> None:
    objects = render({"runtimeImage": {"tag": "7", "pullPolicy": "Never"}, "watchNamespaces": ["team-a", "team-b"]})
    given = environment(objects, OPERATOR)
    job = settings("limbeck.controller.settings", "Settings", given)
    process = settings("limbeck.controller.settings", "ProcessSettings", given)
    assert (job["image"], job["image_pull_policy"]) == ("limbeck-runtime:7", "Never")
    assert job["server_url"] == "https://limbeck-server.limbeck-system.svc:8443"
    assert process["namespaces"] == ["team-a", "team-b"]
    assert process["lease_name"] == "limbeck-operator"
    mounts = {mount["name"]: mount["mountPath"] for mount in container(objects, OPERATOR)["volumeMounts"]}
    assert process["server_ca_file"] == f"{mounts['tls']}/ca.crt"
    assert process["port"] == container(objects, OPERATOR)["ports"][0]["containerPort"]


def test_the_operator_gets_the_certificate_authority_and_no_key(render: Render) -> None:
    volumes = {each["name"]: each for each in render()[OPERATOR]["spec"]["template"]["spec"]["volumes"]}
    assert [item["key"] for item in volumes["tls"]["secret"]["items"]] == ["ca.crt"]


def test_without_the_server_the_operator_knows_of_none(render: Render) -> None:
    objects = render({"server": {"enabled": False}})
    assert not [name for _, name in objects if "server" in name]
    job = settings("limbeck.controller.settings", "Settings", environment(objects, OPERATOR))
    assert job["server_url"] == ""
    assert "tls" not in [each["name"] for each in objects[OPERATOR]["spec"]["template"]["spec"]["volumes"]]


@pytest.mark.parametrize(
    ("process", "module", "models"),
    [
        ("operator", "limbeck.controller.settings", ("Settings", "ProcessSettings")),
        ("server", "limbeck.server.settings", ("Settings",)),
    ],
)
def test_every_setting_of_the_schema_reaches_the_process(
    render: Render, chart: Path, process: str, module: str, models: tuple[str, ...]
) -> None:
    """Each is given a value that is not its default, and the process reads that very value."""
    schema = json.loads((chart / "values.schema.json").read_text(encoding="utf-8"))
    wanted = {name: _another(setting) for name, setting in schema["$defs"][f"{process}Settings"]["properties"].items()}
    given = environment(render({process: {"settings": wanted}}), ("Deployment", f"limbeck-{process}"))
    read = {name: value for model in models for name, value in settings(module, model, given).items()}
    assert {name: read[_snake(name)] for name in wanted} == wanted


def _another(setting: Object) -> Any:
    default = setting["default"]
    if isinstance(default, list):
        return [{"key": "spot", "operator": "Exists"}]
    if isinstance(default, str):
        return "Text" if "pattern" in setting else f"{default}-2"
    if setting["type"] == "integer":
        return min(default * 37 + 1, setting.get("maximum", 10**9))
    return default / 2


def _snake(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)


def test_a_large_number_is_written_out(render: Render) -> None:
    values = {"server": {"settings": {"maxEntriesPerJob": 123_456_789, "retentionDays": 0.5}}}
    given = environment(render(values), SERVER)
    assert given["LIMBECK_SERVER_MAX_ENTRIES_PER_JOB"] == "123456789"
    assert given["LIMBECK_SERVER_RETENTION_DAYS"] == "0.5"


def test_more_environment_is_passed_on(render: Render) -> None:
    secret = {"secretKeyRef": {"name": "proxy", "key": "url"}}
    extra = [{"name": "HTTPS_PROXY", "valueFrom": secret}, {"name": "TZ", "value": "UTC"}]
    for workload in (OPERATOR, SERVER):
        objects = render({workload[1].removeprefix("limbeck-"): {"extraEnv": extra}})
        assert [each for each in container(objects, workload)["env"] if each in extra] == extra


@pytest.mark.parametrize(
    ("image", "name"),
    [
        ({}, "limbeck-operator:0.1.0"),
        ({"registry": "ghcr.io/you/"}, "ghcr.io/you/limbeck-operator:0.1.0"),
        ({"registry": "localhost", "repository": "own", "tag": "dev"}, "localhost/own:dev"),
        ({"tag": "dev", "digest": f"sha256:{'a' * 64}"}, f"limbeck-operator@sha256:{'a' * 64}"),
    ],
)
def test_the_image_is_put_together(render: Render, image: Object, name: str) -> None:
    objects = render({"image": image, "imagePullSecrets": [{"name": "registry"}]})
    for workload in (OPERATOR, SERVER):
        assert container(objects, workload)["image"] == name
        assert objects[workload]["spec"]["template"]["spec"]["imagePullSecrets"] == [{"name": "registry"}]


def test_history_is_kept_where_the_values_say(render: Render) -> None:
    def data_volume(objects: Rendered) -> Object | None:
        volumes = {each["name"]: each for each in objects[SERVER]["spec"]["template"]["spec"]["volumes"]}
        return volumes.get("data")

    assert data_volume(render()) == {"name": "data", "emptyDir": {}}
    claimed = render({"server": {"persistence": {"enabled": True, "storageClassName": "fast"}}})
    assert data_volume(claimed) == {"name": "data", "persistentVolumeClaim": {"claimName": "limbeck-server"}}
    assert claimed["PersistentVolumeClaim", "limbeck-server"]["spec"]["storageClassName"] == "fast"
    existing = render({"server": {"persistence": {"enabled": True, "existingClaim": "mine"}}})
    assert data_volume(existing) == {"name": "data", "persistentVolumeClaim": {"claimName": "mine"}}
    assert not [kind for kind, _ in existing if kind == "PersistentVolumeClaim"]
    shared = render({"server": {"replicas": 2, "database": {"secretName": "postgres"}}})
    assert data_volume(shared) is None
    url = {"secretKeyRef": {"name": "postgres", "key": "url"}}
    assert {"name": "LIMBECK_SERVER_DATABASE_URL", "valueFrom": url} in container(shared, SERVER)["env"]


def test_sqlite_is_never_opened_by_two_pods(render: Render, helm: Any, chart: Path) -> None:
    assert render()[SERVER]["spec"]["strategy"] == {"type": "Recreate"}
    done = helm.run("template", "limbeck", str(chart), values={"server": {"replicas": 2}})
    assert done.returncode != 0
    assert "`server.replicas` must be 1 without a database, got 2; set `server.database.secretName`" in done.stderr


def test_rights_are_given_in_the_watched_namespaces_alone(render: Render) -> None:
    objects = render({"watchNamespaces": ["team-a"]})
    names = {(kind, name) for kind, name in objects if kind in ("ClusterRole", "ClusterRoleBinding")}
    assert names == {
        ("ClusterRole", "limbeck-server-tokens"),
        ("ClusterRoleBinding", "limbeck-server-tokens"),
        ("ClusterRole", "limbeck-view"),
        ("ClusterRole", "limbeck-edit"),
    }
    for component in ("operator", "server"):
        binding = objects["RoleBinding", f"team-a/limbeck-{component}"]
        assert binding["roleRef"]["kind"] == "Role"
        assert binding["subjects"][0]["namespace"] == "limbeck-system"
        everywhere = render()["ClusterRole", f"limbeck-{component}"]["rules"]
        assert objects["Role", f"team-a/limbeck-{component}"]["rules"] == everywhere


def test_a_single_replica_has_no_budget_that_would_block_a_drain(render: Render) -> None:
    assert ("PodDisruptionBudget", "limbeck-operator") not in render({"operator": {"replicas": 1}})


def test_pods_go_where_they_are_told_to(render: Render) -> None:
    placement = {
        "nodeSelector": {"disk": "ssd"},
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "priorityClassName": "high",
        "topologySpreadConstraints": [{"maxSkew": 2}],
    }
    for workload in (OPERATOR, SERVER):
        objects = render({workload[1].removeprefix("limbeck-"): {**placement, "podLabels": {"team": "ml"}}})
        spec = objects[workload]["spec"]["template"]["spec"]
        assert {name: spec[name] for name in placement} == placement
        assert objects[workload]["spec"]["template"]["metadata"]["labels"]["team"] == "ml"


def test_prometheus_finds_the_ports_by_annotation(render: Render) -> None:
    objects = render()
    for workload, scheme in ((OPERATOR, "http"), (SERVER, "https")):
        annotations = objects[workload]["spec"]["template"]["metadata"]["annotations"]
        assert annotations["prometheus.io/scrape"] == "true"
        assert annotations["prometheus.io/scheme"] == scheme
        (port,) = container(objects, workload)["ports"]
        assert annotations["prometheus.io/port"] == str(port["containerPort"])
    silent = render({"metrics": {"annotations": False}})
    annotations = silent[OPERATOR]["spec"]["template"]["metadata"]["annotations"]
    assert not [name for name in annotations if name.startswith("prometheus.io/")]


def test_the_monitors_select_what_the_operator_makes(render: Render) -> None:
    """The names that the controller gives to the port and the label of a run's head pod."""
    from limbeck import names
    from limbeck.controller.names import PORT_METRICS

    objects = render({"metrics": {"monitors": {"enabled": True, "labels": {"release": "prometheus"}}}})
    runs = objects["PodMonitor", "limbeck-runs"]
    assert runs["spec"]["podMetricsEndpoints"][0]["port"] == PORT_METRICS
    assert runs["spec"]["selector"]["matchExpressions"] == [{"key": names.LABEL_JOB, "operator": "Exists"}]
    assert runs["spec"]["namespaceSelector"] == {"any": True}
    for name in ("limbeck-operator", "limbeck-server"):
        monitor = objects["ServiceMonitor", name]
        assert monitor["metadata"]["labels"]["release"] == "prometheus"
        service = objects["Service", name]
        assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
        assert monitor["spec"]["endpoints"][0]["port"] == service["spec"]["ports"][0]["name"]


def test_the_definition_stays_unless_it_is_not_to(render: Render) -> None:
    crd = "CustomResourceDefinition", "compressionjobs.limbeck.dev"
    assert render()[crd]["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert "annotations" not in render({"crds": {"keep": False}})[crd]["metadata"]
    assert crd not in render({"crds": {"enabled": False}})


def test_the_definition_loses_nothing_on_its_way_through_helm(render: Render) -> None:
    from limbeck.api.crd import custom_resource_definition

    rendered = render()["CustomResourceDefinition", "compressionjobs.limbeck.dev"]
    assert rendered["spec"] == json.loads(json.dumps(custom_resource_definition()["spec"]))
