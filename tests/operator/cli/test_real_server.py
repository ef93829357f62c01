"""The verbs against a real API server that knows CompressionJobs; the operator's and server's writes are played."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from limbeck.api.crd import custom_resource_definition
from limbeck.cli import checks
from limbeck.cli.cluster import connect
from limbeck.cli.follow import follow
from limbeck.cli.jobs import phase
from limbeck.cli.kinds import CONFIG_MAPS, CRDS, EVENTS, JOBS, SECRETS
from limbeck.cli.options import Access
from limbeck.cli.yaml import dump
from limbeck.kube.errors import NotFoundError
from limbeck.kube.events import EventRecorder
from limbeck.kube.transport import APPLY, Resource, Transport

pytestmark = pytest.mark.controlplane

Object = dict[str, Any]


@pytest.fixture
def transport(control_plane) -> Transport:
    transport = Transport(control_plane.client())
    crd = custom_resource_definition()
    # Other tests may have left one of another kind.
    transport.patch(CRDS, crd["metadata"]["name"], crd, content_type=APPLY, field_manager="limbeck-test", force=True)
    while True:  # a CRD is served a moment after it is there
        try:
            transport.list(JOBS)
            return transport
        except NotFoundError:
            continue


@pytest.fixture
def on(limbeck, transport, control_plane, namespace) -> Callable[..., Result]:
    """`on("get")`: the command on the real server, in the test's namespace."""
    return lambda *arguments, **more: limbeck(*arguments, "-n", namespace, kubeconfig=control_plane.kubeconfig, **more)


@pytest.fixture
def make(transport, namespace, build_job, build_status) -> Callable[..., Object]:
    """`make("emoji", "Running")`: a job whose status is as the operator leaves it."""

    def create(name: str = "emoji", phase: str | None = "Running", **changes: Any) -> Object:
        job = build_job(**{"metadata.name": name, **changes})
        made = transport.create(JOBS, job, namespace)
        return made if phase is None else set_status(made, build_status(phase))

    def set_status(job: Object, status: Object) -> Object:
        return transport.patch(JOBS, job["metadata"]["name"], {"status": status}, namespace, subresource="status")

    return create


@pytest.fixture
def write(tmp_path: Path, build_job) -> Callable[..., str]:
    """`write("a", "b", **changes)`: a file with those jobs."""

    def put(*names: str, **changes: Any) -> str:
        path = tmp_path / "jobs.yaml"
        jobs = [build_job(**{"metadata.name": name, **changes}) for name in names]
        path.write_text("---\n".join(dump(job) for job in jobs))
        return str(path)

    return put


def test_submitting_twice_creates_and_then_changes_nothing(on, write, transport, namespace) -> None:
    path = write("emoji", "other")
    assert on("submit", "-f", path).stdout == "emoji created\nother created\n"
    assert transport.get(JOBS, "emoji", namespace)["spec"]["target"] == {"sizeRatio": 4}
    assert on("submit", "-f", path).stdout == "emoji unchanged\nother unchanged\n"


def test_what_may_change_is_changed(on, write, transport, namespace) -> None:
    on("submit", "-f", write("emoji"))
    result = on("submit", "-f", write("emoji", **{"spec.backoffLimit": 7}))
    assert result.stdout == "emoji changed\n"
    assert transport.get(JOBS, "emoji", namespace)["spec"]["backoffLimit"] == 7


def test_what_may_not_change_is_refused_with_file_field_and_advice(on, write) -> None:
    on("submit", "-f", write("emoji"))
    path = write("emoji", **{"spec.output.uri": "s3://elsewhere/x"})
    result = on("submit", "-f", path)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: {path}:3: the API server refuses this: ")
    assert "`spec.output` must stay as it was created; delete the job and create a new one" in result.stderr


def test_jobs_before_the_one_that_is_refused_are_counted(on, write) -> None:
    on("submit", "-f", write("b"))
    path = write("a", "b", **{"spec.output.uri": "s3://elsewhere/x"})
    result = on("submit", "-f", path)
    assert result.exit_code == 2
    assert result.stderr.endswith("1 jobs before it were submitted\n")
    assert on("get", "-o", "name").stdout.split() == ["compressionjob.limbeck.dev/a", "compressionjob.limbeck.dev/b"]


def test_a_field_that_another_tool_manages_is_not_taken_from_it(on, write, transport, namespace) -> None:
    on("submit", "-f", write("emoji"))
    transport.patch(JOBS, "emoji", {"spec": {"backoffLimit": 5}}, namespace, field_manager="argocd")
    result = on("submit", "-f", write("emoji", **{"spec.backoffLimit": 9}))
    assert result.exit_code == 2
    assert "somebody else has changed or owns this" in result.stderr
    assert "argocd" in result.stderr
    assert transport.get(JOBS, "emoji", namespace)["spec"]["backoffLimit"] == 5


def test_a_bad_file_is_refused_with_its_lines_and_nothing_is_sent(on, write) -> None:
    path = write("good", "Bad")
    result = on("submit", "-f", path)
    assert result.exit_code == 2
    assert f"{path}:" in result.stderr
    assert "`metadata.name`" in result.stderr
    assert on("get", "-o", "name").stdout == ""


def test_a_dry_run_by_the_server_is_judged_and_changes_nothing(on, write) -> None:
    assert on("submit", "-f", write("emoji"), "--dry-run", "server").stdout == "emoji created (server dry run)\n"
    assert on("get", "-o", "name").stdout == ""


def test_a_dry_run_by_the_client_needs_no_cluster_and_shows_what_would_be_sent(limbeck, write) -> None:
    result = limbeck("submit", "-f", write("a", "b"), "--dry-run", "client", "-o", "json", KUBECONFIG="/nowhere")
    assert result.exit_code == 0
    assert [item["metadata"]["name"] for item in json.loads(result.stdout)["items"]] == ["a", "b"]


def test_a_job_of_another_namespace_than_n_says_is_refused(on, write) -> None:
    result = on("submit", "-f", write("emoji", **{"metadata.namespace": "elsewhere"}))
    assert result.exit_code == 2
    assert "job emoji is of namespace elsewhere, -n says" in result.stderr


def test_a_relative_path_is_warned_about_with_its_line(on, write) -> None:
    path = write("emoji", **{"spec.output.uri": "out"})
    result = on("submit", "-f", path)
    assert result.exit_code == 0
    assert "warning: `spec.output.uri` is a path inside the job's pods, out, and is lost with them" in result.stderr


def test_standard_input_is_a_file_too(on, build_job) -> None:
    assert on("submit", "-f", "-", given=json.dumps(build_job())).stdout == "emoji created\n"


def test_get_shows_jobs_of_one_namespace_or_of_all(on, make, namespace, limbeck, control_plane) -> None:
    make("done", "Complete")
    make("fresh", None)
    lines = on("get").stdout.splitlines()
    assert [line.split()[:5] for line in lines] == [
        ["NAME", "STATUS", "STEP", "PROGRESS", "ETA"],
        ["done", "Complete", "int8", "100%", "-"],
        ["fresh", "-", "-", "-", "-"],
    ]
    everywhere = limbeck("get", "-A", kubeconfig=control_plane.kubeconfig).stdout
    assert [line.split()[1] for line in everywhere.splitlines() if line.startswith(namespace)] == ["done", "fresh"]


def test_get_says_so_where_there_is_nothing(on, namespace) -> None:
    result = on("get")
    assert (result.exit_code, result.stdout) == (0, "")
    assert f"no CompressionJobs in namespace {namespace}" in result.stderr


def test_get_selects_by_label_and_gives_whole_objects(on, make) -> None:
    make("a", **{"metadata.labels": {"team": "x"}})
    make("b")
    found = json.loads(on("get", "-l", "team=x", "-o", "json").stdout)
    assert (found["kind"], [item["metadata"]["name"] for item in found["items"]]) == ("List", ["a"])
    one = json.loads(on("get", "b", "-o", "json").stdout)
    assert (one["kind"], one["metadata"]["name"]) == ("CompressionJob", "b")
    assert "managedFields" not in one["metadata"]


def test_a_name_over_all_namespaces_is_found_if_there_is_only_one(on, make, limbeck, control_plane, namespace) -> None:
    name = f"only-{namespace[-8:]}"
    make(name)
    found = limbeck("get", name, "-A", "-o", "json", kubeconfig=control_plane.kubeconfig)
    assert json.loads(found.stdout)["metadata"]["namespace"] == namespace
    result = limbeck("get", "no-such-job", "-A", kubeconfig=control_plane.kubeconfig)
    assert (result.exit_code, "in any namespace" in result.stderr) == (2, True)


def test_suspend_and_resume_change_one_field_and_say_when_it_was_so_already(on, make, transport, namespace) -> None:
    make()
    assert on("suspend", "emoji").stdout == "emoji suspends after a checkpoint\n"
    assert transport.get(JOBS, "emoji", namespace)["spec"]["suspend"] is True
    assert on("suspend", "emoji").stdout == "emoji is suspended already\n"
    assert on("resume", "emoji").stdout == "emoji goes on from its last checkpoint\n"
    assert transport.get(JOBS, "emoji", namespace)["spec"]["suspend"] is False
    assert on("resume", "emoji").stdout == "emoji is not suspended already\n"


def test_a_job_that_is_over_can_be_neither_suspended_nor_resumed(on, make) -> None:
    make(phase="Complete")
    for verb in ("suspend", "resume"):
        result = on(verb, "emoji")
        assert result.exit_code == 2
        assert f"emoji is over: Complete: the result reaches the target; there is nothing to {verb}" in result.stderr


def test_cancel_wants_a_yes_and_says_what_stays(on, make, transport, namespace) -> None:
    make()
    refused = on("cancel", "emoji")
    assert (refused.exit_code, "give --yes" in refused.stderr) == (2, True)
    assert transport.get(JOBS, "emoji", namespace)
    assert on("cancel", "emoji", "--yes").stdout == ("emoji is cancelled; what it wrote stays in s3://results/emoji\n")
    with pytest.raises(NotFoundError):
        transport.get(JOBS, "emoji", namespace)


@pytest.mark.parametrize(
    ("state", "goal", "code", "stream", "words"),
    [
        ("Complete", "finished", 0, "stdout", "emoji: Complete: the result reaches the target"),
        ("Failed", "finished", 1, "stdout", "emoji: Failed (GateFailed): recovery is 81.2"),
        ("Complete", "Complete", 0, "stdout", "emoji: Complete"),
        ("Failed", "Complete", 1, "stderr", "emoji will not be complete any more: Failed (GateFailed)"),
        ("Complete", "Failed", 1, "stderr", "emoji will not be failed any more: Complete"),
        ("Suspended", "Suspended", 0, "stdout", "emoji: Suspended (SuspendedByUser)"),
        ("Complete", "Suspended", 1, "stderr", "emoji will not be suspended any more: Complete"),
        ("Running", "finished", 4, "stderr", "emoji is not finished after 1s: Running"),
    ],
)
def test_wait_ends_as_soon_as_the_answer_is_known(on, make, state, goal, code, stream, words) -> None:
    make(phase=state)
    result = on("wait", "emoji", "--for", goal, "--timeout", "1s")
    assert result.exit_code == code
    assert words in getattr(result, stream)


def test_a_job_is_followed_from_state_to_state_until_it_is_gone(
    make, transport, namespace, build_status, control_plane
) -> None:
    job = make()
    cluster = connect(Access(namespace, kubeconfig=str(control_plane.kubeconfig)))
    states = follow(cluster, job, timeout_seconds=60)
    assert phase(next(states)) == "Running"
    transport.patch(JOBS, "emoji", {"status": build_status("Complete")}, namespace, subresource="status")
    assert phase(next(states)) == "Complete"
    transport.delete(JOBS, "emoji", namespace)
    assert next(states) is None


def test_submit_can_wait_and_tells_how_the_job_ended(on, make, write) -> None:
    make(phase="Failed")
    result = on("submit", "-f", write("emoji"), "--wait", "--timeout", "5s")
    assert result.exit_code == 1
    assert "it is Failed (GateFailed)" in result.stdout
    assert result.stdout.endswith("emoji: Failed (GateFailed): recovery is 81.2 of 97 percent; train longer\n")


def test_describe_tells_of_attempts_and_events(on, make, transport, namespace) -> None:
    job = make()
    owner = {"apiVersion": "limbeck.dev/v1alpha1", "kind": "CompressionJob", "name": "emoji"}
    entry = {"attempt": 1, "ending": "Preempted", "ended": "2026-11-24T11:00:00Z", "seconds": 60, "message": "drained"}
    transport.create(
        CONFIG_MAPS,
        {
            "metadata": {
                "name": "emoji-limbeck",
                "ownerReferences": [{**owner, "uid": job["metadata"]["uid"], "controller": True}],
            },
            "data": {"attempts.json": json.dumps([entry])},
        },
        namespace,
    )
    recorder = EventRecorder(transport, controller="limbeck.dev/operator", instance="test")
    recorder.start()
    recorder.record(job, "Normal", "RayJobCreated", "RayJob emoji-1 was created")
    assert recorder.stop()
    page = on("describe", "emoji").stdout
    assert "  1        Preempted" in page
    assert "drained" in page
    assert "RayJob emoji-1 was created" in page
    data = json.loads(on("describe", "emoji", "-o", "json").stdout)
    assert data["attempts"] == [entry]
    assert [event["reason"] for event in data["events"]] == ["RayJobCreated"]
    assert transport.list(EVENTS, namespace)["items"]


def test_attempts_of_an_earlier_job_of_that_name_are_not_shown(on, make, transport, namespace) -> None:
    make()
    data = {"attempts.json": json.dumps([{"attempt": 1, "ending": "Failed", "message": "long ago"}])}
    transport.create(CONFIG_MAPS, {"metadata": {"name": "emoji-limbeck"}, "data": data}, namespace)
    assert "long ago" not in on("describe", "emoji").stdout


def test_watch_shows_a_job_to_its_end(on, make) -> None:
    make(phase="Complete")
    result = on("watch", "emoji")
    assert result.exit_code == 0
    shown = [line.partition("Z ")[2] for line in result.stdout.splitlines()]
    assert "int8 done in 10 min 00 s: recall@10 0.601" in shown
    assert "Complete: the result reaches the target" in shown


def test_doctor_says_what_is_missing_and_what_to_do(on, make, transport, namespace) -> None:
    make(**{"spec.output.credentialsSecretRef": {"name": "s3"}})
    result = on("doctor", "emoji", "--server", "https://127.0.0.1:1")
    assert result.exit_code == 1
    lines = dict(line[9:].split(": ", 1) for line in result.stdout.splitlines())
    states = {line[9:].split(": ", 1)[0]: line.split()[0] for line in result.stdout.splitlines()}
    assert states["API server"] == "ok"
    assert lines["API server"].startswith("Kubernetes v1.")
    assert lines["CompressionJob CRD"] == "limbeck.dev/v1alpha1, the schema of this version"
    assert states["operator"] == states["limbeck's server"] == "wrong"
    assert states["your rights"] == states["job emoji"] == "ok"
    assert lines["Secret s3"] == (
        f"not in namespace {namespace}; create it with the variables that `spec.output` needs, e.g. AWS_ACCESS_KEY_ID"
    )
    transport.create(SECRETS, {"metadata": {"name": "s3"}, "data": {"AWS_ACCESS_KEY_ID": "eA=="}}, namespace)
    assert "ok       Secret s3: has AWS_ACCESS_KEY_ID" in on("doctor", "emoji").stdout


def test_doctor_finds_an_operator_that_is_ready_and_holds_the_lease(on, transport, namespace) -> None:
    labels = {"app.kubernetes.io/name": "limbeck", "app.kubernetes.io/component": "operator"}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "operator", "image": "x"}]}}
    body = {
        "metadata": {"name": "limbeck-operator", "labels": labels},
        "spec": {"selector": {"matchLabels": labels}, "template": template},
    }
    deployments = Resource("apps", "v1", "deployments")
    transport.create(deployments, body, namespace)
    try:
        assert "limbeck-operator has no ready pod" in on("doctor").stdout
        status = {"status": {"replicas": 1, "readyReplicas": 1}}
        transport.patch(deployments, "limbeck-operator", status, namespace, subresource="status")
        assert f"ok       operator: {namespace}/limbeck-operator, 1 of 1 ready" in on("doctor").stdout
    finally:
        transport.delete(deployments, "limbeck-operator", namespace)


def test_a_crd_of_another_version_is_found_out_and_its_place_named(transport) -> None:
    stored = transport.get(CRDS, "compressionjobs.limbeck.dev")["spec"]["versions"]
    wanted = custom_resource_definition()["spec"]["versions"]
    assert checks.difference(wanted, stored) is None
    del stored[0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["seed"]
    place = "versions[0].schema.openAPIV3Schema.properties.spec.properties.seed"
    assert checks.difference(wanted, stored) == place


def test_who_has_no_rights_is_told_which_ones_are_missing(limbeck, transport, control_plane, namespace) -> None:
    transport.create(Resource("", "v1", "serviceaccounts"), {"metadata": {"name": "guest"}}, namespace)
    token = control_plane.client().call_api(
        "POST",
        f"{control_plane.address}/api/v1/namespaces/{namespace}/serviceaccounts/guest/token",
        header_params={"Authorization": "Bearer test-admin", "Content-Type": "application/json"},
        body={"kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1", "spec": {}},
    )
    token.read()
    config = json.loads(control_plane.kubeconfig.read_text())
    config["users"][0]["user"]["token"] = json.loads(token.data)["status"]["token"]
    path = control_plane.kubeconfig.parent / f"{namespace}.json"
    path.write_text(json.dumps(config))
    refused = limbeck("get", "-n", namespace, kubeconfig=path)
    assert (refused.exit_code, "not allowed" in refused.stderr) == (2, True)
    result = limbeck("doctor", "-n", namespace, kubeconfig=path)
    assert result.exit_code == 1
    assert "unknown  operator: not allowed to look" in result.stdout
    assert f"wrong    your rights: missing in namespace {namespace}: get compressionjobs" in result.stdout
