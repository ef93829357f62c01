"""Argo CD's Lua, run by a real Lua over the states in which the operator leaves jobs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from lupa.lua51 import LuaRuntime

Object = dict[str, Any]

HEALTH = {
    "new": ("Progressing", "the operator has not looked at it yet"),
    "reconciling": ("Progressing", "CreatingRayJob: makes RayJob smoke-1"),
    "without KubeRay": ("Progressing", "KubeRayAbsent: the cluster serves no RayJob; install KubeRay 1.6 or later"),
    "suspended": ("Suspended", "SuspendedByUser: set `spec.suspend` to false to go on"),
    "running": ("Healthy", "RayJobCreated: RayJob smoke-1 exists"),
    "running with progress": ("Healthy", "running: distil, 40 % of the job"),
    "resumed, not looked at": ("Progressing", "the operator has not looked at it yet"),
    "asked for a checkpoint": ("Healthy", "RayJobCreated: RayJob smoke-1 exists"),
    "complete": ("Healthy", "Completed: the job is complete"),
    "failed": ("Degraded", "GateFailed: recovery 12, wanted 80"),
    "invalid": ("Degraded", "InvalidSpec: no such template; change the pod templates in a new job"),
}
FINISHED = ("complete", "failed", "invalid")
SUSPENDED = ("suspended", "asked for a checkpoint")


@pytest.fixture
def customizations(manifests: Path) -> Object:
    """What argocd-cm says about CompressionJobs, by `health` and `actions`."""
    config_map = yaml.safe_load((manifests / "gitops" / "argocd" / "argocd-cm.yaml").read_text(encoding="utf-8"))
    return {key.split(".")[2]: text for key, text in config_map["data"].items()}


def run(lua: str, job: Object) -> Object:
    """The script's result, the job being its global `obj`, as Argo CD runs it."""
    runtime = LuaRuntime(unpack_returned_tuples=True)
    runtime.globals()["obj"] = runtime.table_from(json.loads(json.dumps(job)), recursive=True)
    found: Object = _plain(runtime.execute(lua))
    return found


def _plain(value: Any) -> Any:
    if not hasattr(value, "items"):
        return value
    items = dict(value.items())
    if items and all(isinstance(key, int) for key in items):
        return [_plain(items[key]) for key in sorted(items)]
    return {key: _plain(each) for key, each in items.items()}


@pytest.mark.parametrize("state", HEALTH)
def test_health_says_what_state_a_job_is_in(
    customizations: Object, jobs_by_state: dict[str, Object], state: str
) -> None:
    health = run(customizations["health"], jobs_by_state[state])
    assert (health["status"], health["message"]) == HEALTH[state]


def test_the_table_of_states_is_complete(jobs_by_state: dict[str, Object]) -> None:
    assert set(jobs_by_state) == set(HEALTH)


def test_a_job_without_any_status_is_progressing(customizations: Object, jobs_by_state: dict[str, Object]) -> None:
    job = {key: value for key, value in jobs_by_state["new"].items() if key != "status"}
    assert run(customizations["health"], job)["status"] == "Progressing"


@pytest.mark.parametrize("state", HEALTH)
def test_only_what_makes_sense_is_offered(customizations: Object, jobs_by_state: dict[str, Object], state: str) -> None:
    actions = yaml.safe_load(customizations["actions"])
    offered = run(actions["discovery.lua"], jobs_by_state[state])
    assert offered == {
        "suspend": {"disabled": state in FINISHED or state in SUSPENDED},
        "resume": {"disabled": state in FINISHED or state not in SUSPENDED},
    }


def test_suspend_and_resume_change_nothing_but_that_field(
    customizations: Object, jobs_by_state: dict[str, Object]
) -> None:
    definitions = yaml.safe_load(customizations["actions"])["definitions"]
    actions = {each["name"]: each["action.lua"] for each in definitions}
    # Lua has one word for an empty list and an empty map; the job holds neither.
    job = {key: value for key, value in jobs_by_state["new"].items() if key != "status"}
    suspended = run(actions["suspend"], job)
    assert suspended["spec"].pop("suspend") is True
    assert suspended == job
    resumed = run(actions["resume"], jobs_by_state["suspended"])
    assert resumed["spec"]["suspend"] is False


def test_every_action_that_is_offered_is_defined(customizations: Object, jobs_by_state: dict[str, Object]) -> None:
    actions = yaml.safe_load(customizations["actions"])
    offered = run(actions["discovery.lua"], jobs_by_state["running"])
    assert {each["name"] for each in actions["definitions"]} == set(offered)
