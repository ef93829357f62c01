"""From `kubectl apply` to Complete on a real cluster, as its users go; and once with the head killed on the way."""

from __future__ import annotations

import json
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(2400)]

Object = dict[str, Any]
NAMESPACE = "team"
IN_TEAM = f"--namespace={NAMESPACE}"
_SECONDS = 1200
# A job with the results of an earlier one of its name would find all of its steps done.
RESULTS = f"results/{uuid.uuid4().hex[:8]}"
# A small job of the sample's own shape: all pools, all steps, few epochs.
SMALL = {
    "spec.target.minRecoveryPercent": 1,
    "spec.data.train.uri": "s3://limbeck/emoji/data/train-{000..003}.tar",
    "spec.data.augmentation.views": 1,
    "spec.pipeline.0.distil.epochs": 3,
    "spec.evaluation.baseline": False,
    "spec.evaluation.latency.repeats": 5,
}


def small(name: str, bucket: str, **changes: Any) -> Object:
    """The sample manifests/samples/image-text.yaml, made small, under another name and with an output of its own."""
    import imagetext

    job = imagetext.sample("image-text", **(SMALL | changes))
    job["metadata"] |= {"name": name, "namespace": NAMESPACE}
    job["spec"]["output"]["uri"] = f"s3://limbeck/{RESULTS}/{name}"
    text = json.dumps(job).replace("s3://limbeck/", f"s3://{bucket}/")
    found: Object = json.loads(text)
    return found


def status(kubectl: Any, name: str) -> Object:
    found: Object = kubectl.get("compressionjob", name, IN_TEAM).get("status", {})
    return found


def is_true(kubectl: Any, name: str, condition: str) -> bool:
    conditions = status(kubectl, name).get("conditions", [])
    return any(each["type"] == condition and each["status"] == "True" for each in conditions)


def wait_until_finished(kubectl: Any, name: str, eventually: Callable[..., None]) -> None:
    eventually(
        f"job {name} is finished",
        lambda: is_true(kubectl, name, "Complete") or is_true(kubectl, name, "Failed"),
        _SECONDS,
    )
    if is_true(kubectl, name, "Failed"):
        print(kubectl.run("describe", "compressionjob", name, IN_TEAM))
    assert is_true(kubectl, name, "Complete")


def pods(kubectl: Any, name: str, component: str = "") -> list[Object]:
    selector = f"limbeck.dev/job={name}" + (f",app.kubernetes.io/component={component}" if component else "")
    found: list[Object] = kubectl.get("pods", IN_TEAM, f"--selector={selector}")["items"]
    return found


def reasons(kubectl: Any, name: str) -> list[str]:
    field = f"--field-selector=involvedObject.name={name},involvedObject.kind=CompressionJob"
    return [event["reason"] for event in kubectl.get("events", IN_TEAM, field)["items"]]


@pytest.fixture(scope="module")
def watched(site: Any, tmp_path_factory: pytest.TempPathFactory, limbeck: str) -> Iterator[Path]:
    """What `kubectl get cpj -w` prints in the meantime."""
    import gotools

    file = tmp_path_factory.mktemp("watch") / "get-cpj-w.txt"
    command = [str(gotools.KUBECTL.build()), f"--kubeconfig={site.kubeconfig}", "get", "cpj", "-w", IN_TEAM]
    with file.open("w") as out, subprocess.Popen(command, stdout=out) as watching:
        yield file
        watching.terminate()


@pytest.fixture(scope="module")
def largest(site: Any) -> dict[str, float]:
    """Largest value of each question to Prometheus that was asked while the job ran."""
    return {}


QUESTIONS = {
    "teacher samples/s": 'max(limbeck_samples_per_second{role="teacher"})',
    "student loss": "max(limbeck_train_loss)",
    "jobs that run": 'max(limbeck_jobs{phase="Running"})',
    "posts taken by the server": 'sum(limbeck_server_posts_total{outcome="taken"})',
}


@pytest.fixture(scope="module")
def finished(site: Any, kubectl: Any, limbeck: str, watched: Path, largest: dict[str, float]) -> Object:
    """The job, once it is finished; meanwhile Prometheus is asked."""
    kubectl.run("apply", "--filename=-", stdin=json.dumps(small("image-text", site.bucket)))
    deadline = time.monotonic() + _SECONDS
    groups: set[tuple[str, str]] = set()
    while not (is_true(kubectl, "image-text", "Complete") or is_true(kubectl, "image-text", "Failed")):
        assert time.monotonic() < deadline, kubectl.run("describe", "cpj,pods", IN_TEAM)
        groups |= {
            (pod["metadata"]["labels"].get("ray.io/group", ""), pod["metadata"]["name"])
            for pod in pods(kubectl, "image-text")
        }
        _ask(site, largest)
        time.sleep(2)
    # The server writes what it knows a few seconds after the operator, which does not wait for it.
    kubectl.run("wait", "--for=jsonpath={.status.result.reportUri}", "cpj/image-text", IN_TEAM, "--timeout=30s")
    job: Object = kubectl.get("compressionjob", "image-text", IN_TEAM)
    job["groups"] = sorted(group for group, _ in groups)
    print(kubectl.run("describe", "compressionjob", "image-text", IN_TEAM))
    return job


def _ask(site: Any, largest: dict[str, float]) -> None:
    if site.prometheus is None:
        return
    from prometheus import Prometheus

    for name, question in QUESTIONS.items():
        for sample in Prometheus(site.prometheus).query(question):
            largest[name] = max(largest.get(name, 0.0), sample.value)


def test_helm_says_what_to_do_next(limbeck: str) -> None:
    assert "kubectl apply" in limbeck


def test_the_job_is_complete(finished: Object, kubectl: Any) -> None:
    kubectl.run("wait", "--for=condition=Complete", "cpj/image-text", IN_TEAM, "--timeout=5s")
    assert finished["status"]["phase"] == "Complete"
    assert finished["status"]["attempt"] == 1


def test_two_teachers_and_two_students_ran_in_groups_of_their_own(finished: Object) -> None:
    assert [group for group in finished["groups"] if group in ("teacher", "student")] == [
        "student",
        "student",
        "teacher",
        "teacher",
    ]


def test_kubectl_get_shows_the_job_moving(finished: Object, watched: Path) -> None:
    lines = watched.read_text().splitlines()
    assert lines[0].split()[:5] == ["NAME", "STATUS", "STEP", "PROGRESS", "ETA"]
    assert any(" distil " in line for line in lines), lines
    percents = {int(word) for line in lines[1:] for word in line.split() if word.isdigit()}
    assert len(percents) > 2, lines
    assert any(line.split()[1] == "Complete" for line in lines[1:]), lines


def test_describe_tells_the_story_in_events(finished: Object, kubectl: Any) -> None:
    told = reasons(kubectl, "image-text")
    wanted = {"RayJobCreated", "TeacherCaptureStarted", "TeacherStoreReady", "StepCompleted", "CheckpointSaved"}
    assert wanted | {"GatePassed", "Completed"} <= set(told), told


def test_the_status_has_each_step_and_the_result(finished: Object) -> None:
    found = finished["status"]
    assert {each["name"]: each["state"] for each in found["steps"]} == {"distil": "Complete", "int8": "Complete"}
    assert found["result"]["sizeRatio"] > 4
    assert found["progress"]["percent"] == 100


def test_report_and_model_lie_in_the_bucket(finished: Object, site: Any, tmp_path: Path) -> None:
    from obstore.store import S3Store

    uris = finished["status"]["result"]["reportUri"], finished["status"]["result"]["modelUri"]
    assert all(uri.startswith(f"s3://{site.bucket}/{RESULTS}/image-text") for uri in uris)
    store = S3Store(
        site.bucket,
        prefix=f"{RESULTS}/image-text",
        endpoint=site.s3["AWS_ENDPOINT_URL"],
        region=site.s3["AWS_REGION"],
        access_key_id=site.s3["AWS_ACCESS_KEY_ID"],
        secret_access_key=site.s3["AWS_SECRET_ACCESS_KEY"],
        client_options={"allow_http": True},
    )
    report = json.loads(bytes(store.get("report.json").bytes()))
    assert report["gate"]["passed"]
    assert [row["label"] for row in report["rows"]] == ["teacher", "distil", "int8"]


def test_prometheus_saw_teacher_student_operator_and_server(
    finished: Object, largest: dict[str, float], site: Any
) -> None:
    if site.prometheus is None:
        pytest.skip("no Prometheus; set LIMBECK_TESTBED_PROMETHEUS")
    assert set(largest) == set(QUESTIONS)
    assert all(value > 0 for value in largest.values()), largest


def test_nothing_of_the_run_is_left_when_the_job_is_deleted(finished: Object, kubectl: Any, eventually: Any) -> None:
    kubectl.run("delete", "compressionjob", "image-text", IN_TEAM, "--timeout=60s")

    def left() -> list[str]:
        kinds = "rayjobs,rayclusters,pods,configmaps,secrets,networkpolicies,services"
        items = kubectl.get(kinds, IN_TEAM, "--selector=limbeck.dev/job=image-text")["items"]
        return [item["metadata"]["name"] for item in items]

    eventually("nothing is left of image-text", lambda: not left(), 120)


def test_a_job_whose_head_is_killed_goes_on_in_a_second_attempt(
    site: Any, kubectl: Any, limbeck: str, eventually: Any
) -> None:
    longer = {"spec.pipeline.0.distil.epochs": 12}
    kubectl.run("apply", "--filename=-", stdin=json.dumps(small("headless", site.bucket, **longer)))
    # Not by the status, which is a few seconds behind: the first checkpoint is told as it is saved.
    eventually("the student learns", lambda: "CheckpointSaved" in reasons(kubectl, "headless"), _SECONDS)
    assert not is_true(kubectl, "headless", "Complete"), "too fast to be killed on the way; give it more epochs"
    (head,) = pods(kubectl, "headless", "head")
    kubectl.run("delete", "pod", head["metadata"]["name"], IN_TEAM, "--grace-period=0", "--force")
    wait_until_finished(kubectl, "headless", eventually)
    assert status(kubectl, "headless")["attempt"] == 2
    assert "RayJobCreated" in reasons(kubectl, "headless")
