"""Whatever dies on the way, the job comes to its end: each process of a real run killed, once, in a run of its own.

For the test cluster, whose node is this machine: processes are killed by their pids. Left out: deletion
of pods, by people (test_cluster.py) and by the cluster, which the controller's own tests play.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from livejob import LiveJob

pytestmark = [pytest.mark.faults, pytest.mark.cluster, pytest.mark.usefixtures("bed"), pytest.mark.timeout(1200)]

Object = dict[str, Any]
Start = Callable[..., "LiveJob"]

OPERATOR = "limbeck-system:limbeck-operator"
LEASE = "limbeck-operator"
TAKEN_OVER_SECONDS = 5.0


def test_a_teacher_that_is_killed_while_it_captures_costs_its_unfinished_shards(start: Start) -> None:
    import podprocesses

    job = start("teacherless", {**MANY_SHARDS, "spec.cluster.teacher.minReplicas": 2})
    job.wait("the teacher captures", lambda: any(each["done"] for each in job.said("capture_progress")))
    podprocesses.kill(job.pod("teacher"))
    captured = job.said("capture_progress")[-1]
    assert captured["done"] < captured["total"], f"killed too late: {captured}"
    status = job.wait_until_finished("Complete", "Completed")
    assert status["attempt"] == 1
    assert job.recorded("capture_progress")[-1]["done"] == captured["total"]
    assert_published(job)
    job.delete()


def test_a_student_that_is_killed_is_replaced_within_the_attempt(start: Start) -> None:
    import podprocesses

    job = start("studentless", {**LONG, "spec.cluster.student.replicas": 2})
    job.wait("the student learns", lambda: has_trained(job))
    podprocesses.kill(job.pod("student"))
    status = job.wait_until_finished("Complete", "Completed")
    assert status["attempt"] == 1
    warnings = [each["message"] for each in job.recorded("warning")]
    assert any("step distil goes on from" in message for message in warnings), warnings
    assert_published(job)
    job.delete()


def test_a_head_that_is_killed_costs_an_attempt_and_the_next_goes_on_from_the_checkpoint(start: Start) -> None:
    import podprocesses

    job = start("headless", LONG)
    job.wait("a checkpoint is saved", lambda: bool(job.said("checkpoint")) and has_trained(job))
    podprocesses.kill(job.pod("head"))
    status = job.wait_until_finished("Complete", "Completed")
    assert status["attempt"] == 2
    assert "AttemptFailed" in job.reasons()
    # A student may have learned to the end before it noticed that its driver is gone: then nothing is left to resume.
    (second,) = job.recorded("run_started")
    assert second["attempt"] == 2
    assert 1 not in [each["done"] for each in job.recorded("step_progress") if each["phase"] == "train"]
    assert_published(job)
    job.delete()


def test_when_the_acting_operator_is_killed_the_other_goes_on_within_five_seconds(
    start: Start, bed: Any, kubectl: Any
) -> None:
    import auditlog

    job = start("operatorless", LONG)
    took = [take_over(kubectl)]
    job.wait("the student learns", lambda: has_trained(job))
    took.append(take_over(kubectl))
    status = job.wait_until_finished("Complete", "Completed")
    job.delete()
    print(f"taken over after {', '.join(f'{seconds:.2f}' for seconds in took)} s")
    assert max(took) <= TAKEN_OVER_SECONDS
    assert status["attempt"] == 1
    writes = auditlog.writes_of(bed.audit_log, OPERATOR)
    assert auditlog.without_the_lease(writes, LEASE) == []
    made = [write.resource for write in writes if write.namespace == job.namespace and write.verb == "create"]
    once = [resource for resource in made if resource != "events"]
    assert sorted(once) == ["configmaps", "networkpolicies", "rayjobs"]


def test_when_the_server_is_killed_the_run_goes_on_and_its_progress_comes_back(
    start: Start, bed: Any, kubectl: Any
) -> None:
    import podprocesses

    job = start("serverless", LONG)
    job.wait("progress is shown", lambda: job.progress("distil") > 0)
    (server,) = limbeck_pods(kubectl, "server")
    podprocesses.kill(server)
    killed = datetime.now(UTC)
    job.wait("progress is shown again", lambda: last_update(job) > killed, 120)
    assert job.status()["phase"] == "Running", "the run was too short to see progress come back"
    status = job.wait_until_finished("Complete", "Completed")
    assert status["attempt"] == 1
    job.wait("the server tells the end", lambda: job.status().get("progress", {}).get("percent") == 100, 60)
    assert job.status()["result"]["reportUri"]
    assert {"StepCompleted", "CheckpointSaved"} <= set(job.reasons())
    job.delete()


def test_when_kuberay_is_killed_the_run_goes_on(start: Start, kubectl: Any, site: Any) -> None:
    import podprocesses

    job = start("kuberayless", LONG)
    job.wait("the student learns", lambda: has_trained(job))
    namespace = site.values["operator"]["settings"]["kuberayNamespace"]
    (operator,) = kubectl.get("pods", f"--namespace={namespace}")["items"]
    podprocesses.kill(operator)
    status = job.wait_until_finished("Complete", "Completed")
    assert status["attempt"] == 1
    assert_published(job)
    job.delete()


def test_a_job_that_is_suspended_in_mid_distillation_goes_on_from_its_checkpoint(start: Start) -> None:
    job = start("suspended", LONG)
    job.wait("a checkpoint is saved", lambda: bool(job.said("checkpoint")) and has_trained(job))
    job.patch(suspend=True)
    seconds = job.wait("it is suspended", lambda: job.says("Suspended", "True", "SuspendedByUser"), 180)
    print(f"suspended after {seconds:.1f} s")
    assert job.status()["phase"] == "Suspended"
    assert job.pods_that_run() == []
    (stopped,) = job.recorded("run_finished")
    assert stopped["state"] == "Stopped"
    saved = job.recorded("checkpoint")[-1]["at"]
    job.patch(suspend=False)
    status = job.wait_until_finished("Complete", "Completed")
    assert status["attempt"] == 2
    (resumed,) = job.recorded("resumed")
    assert (resumed["step"], resumed["at"]) == ("distil", saved)
    assert saved > 0
    assert [each["epoch"] for each in job.recorded("run_started")] == [1, 2]
    assert "Resumed" in job.reasons()
    assert_published(job)
    job.delete()


@pytest.mark.parametrize("busy", ["measures the teacher", "waits for its students"])
def test_a_driver_that_was_declared_dead_and_wakes_up_writes_nothing_more(start: Start, busy: str) -> None:
    """Its container outlives its pod, as on a node that is cut off: the shim that could end it is stopped too."""
    import podprocesses

    job = start("fenced", LONG)
    moments = {
        "measures the teacher": lambda: job.said("run_started"),
        "waits for its students": lambda: has_trained(job),
    }
    job.wait(f"the driver {busy}", moments[busy])
    head = job.pod("head")
    driver, keeper = podprocesses.driver(head), podprocesses.keeper(head)
    with podprocesses.stopped([keeper]), podprocesses.output_of(driver) as said:
        with podprocesses.stopped([driver]):
            # Before, KubeRay makes a lost head anew, within the attempt.
            job.wait("all pods were ready once", lambda: is_provisioned(job))
            job.run("delete", "pod", head["metadata"]["name"], "--grace-period=0", "--force")
            job.wait("a second driver runs", lambda: [each["epoch"] for each in job.said("run_started")] == [2])
            assert podprocesses.is_alive(driver)
        seconds = job.wait("the first driver exits", lambda: not podprocesses.is_alive(driver), 120)
        last = said().splitlines()[-1]
        print(f"{seconds:.1f} s after it woke up: {last}")
    assert json.loads(last.partition("LIMBECK_OUTCOME ")[2])["reason"] == "Fenced"
    status = job.wait_until_finished("Complete", "Completed")
    assert status["attempt"] == 2
    owners = [json.loads(job.read(name))["owner"]["attempt"] for name in job.objects() if name.startswith("fence/")]
    assert sorted(owners) == [1, 2]
    assert_epochs_only_grow(job)
    assert_published(job)
    job.delete()


# One shard in many passes, told of and saved at short intervals: there is a middle to be hit.
LONG = {
    "spec.backoffLimit": 3,
    "spec.pipeline.0.distil.epochs": 40,
    "spec.pipeline.0.distil.checkpointIntervalSeconds": 1,
}
MANY_SHARDS = {
    "spec.backoffLimit": 3,
    "spec.data.train.uri": "s3://limbeck/emoji/data/train-{000..007}.tar",
    "spec.data.augmentation": {"views": 2},
    "spec.cluster.teacher.maxReplicas": 2,
}


def has_trained(job: LiveJob) -> bool:
    """In the middle of the distillation: some of its batches are done."""
    trained = [each for each in job.said("step_progress") if (each["step"], each["phase"]) == ("distil", "train")]
    return bool(trained) and trained[-1]["done"] > 1


def is_provisioned(job: LiveJob) -> bool:
    """By KubeRay's word: from now on a head that is lost is the end of its RayCluster."""
    conditions = [each for item in job.get("rayclusters")["items"] for each in item["status"].get("conditions", [])]
    return any((each["type"], each["status"]) == ("RayClusterProvisioned", "True") for each in conditions)


def last_update(job: LiveJob) -> datetime:
    return datetime.fromisoformat(job.status()["progress"]["lastUpdateTime"])


def limbeck_pods(kubectl: Any, component: str) -> list[Object]:
    selector = f"--selector=app.kubernetes.io/component={component}"
    found: list[Object] = kubectl.get("pods", "--namespace=limbeck-system", selector)["items"]
    return found


def take_over(kubectl: Any) -> float:
    """Kill the operator that holds the lease; the seconds until another has it."""
    import podprocesses

    def spec() -> Object:
        found: Object = kubectl.get("lease", LEASE, "--namespace=limbeck-system")["spec"]
        return found

    holder = spec()["holderIdentity"]
    (leader,) = [
        pod for pod in limbeck_pods(kubectl, "operator") if pod["metadata"]["name"] == holder.rpartition("_")[0]
    ]
    podprocesses.kill(leader)
    killed = datetime.now(UTC)
    deadline = time.monotonic() + 30
    while (now := spec())["holderIdentity"] in (holder, None):
        assert time.monotonic() < deadline, f"nobody took the lease of {holder}"
        time.sleep(0.1)
    return (datetime.fromisoformat(now["acquireTime"]) - killed).total_seconds()


def assert_published(job: LiveJob) -> None:
    """Report and model lie in the bucket, and the model is whole."""
    names = set(job.objects())
    report = json.loads(job.read("report.json"))
    assert [row["label"] for row in report["rows"]] == ["teacher", "distil", "int8"]
    assert {"report.html", "result.json"} <= names
    assert any(name.startswith("model/") for name in names)


def assert_epochs_only_grow(job: LiveJob) -> None:
    """In each log of commits; those of fences that are not the job's have numbers of their own."""
    entries = sorted(name for name in job.objects() if "/commits/" in name and not name.startswith("checkpoints/"))
    for log, names in itertools.groupby(entries, key=lambda name: name.rpartition("/")[0]):
        epochs = [json.loads(job.read(name))["epoch"] for name in names]
        assert epochs == sorted(epochs), f"{log}: {epochs}"
        assert epochs[-1] == 2, f"{log}: {epochs}"
