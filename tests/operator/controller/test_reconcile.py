"""Whole lives of jobs, through rounds of the controller against an API server in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from limbeck.controller.names import CONFIG_MAPS, JOBS, NETWORK_POLICIES, PODS, RAY_JOBS, SECRETS
from limbeck.kube.errors import ConflictError, ForbiddenError, InvalidError

Object = dict[str, Any]
NewWorld = Callable[..., Any]

SUCCEEDED = {"jobStatus": "SUCCEEDED", "jobDeploymentStatus": "Complete"}
CRASHED = {"jobStatus": "FAILED", "jobDeploymentStatus": "Failed", "reason": "AppFailed", "message": "out of luck"}
RUNS_ON: Object = {}


def outcome(code: int, reason: str, message: str) -> Object:
    said = f'LIMBECK_OUTCOME {{"exit_code": {code}, "reason": "{reason}", "message": "{message}"}}'
    text = f"Job entrypoint command failed with exit code {code}, last available logs:\nsome log\n{said}\n"
    return {"jobStatus": "FAILED", "jobDeploymentStatus": "Failed", "reason": "AppFailed", "message": text}


def test_a_job_that_succeeds_is_complete_and_leaves_no_ray_job(new_world: NewWorld) -> None:
    world = new_world()
    world.run_to_rest()
    assert world.condition("Complete")["status"] == "True"
    assert world.condition("Reconciling")["status"] == "False"
    assert world.status()["phase"] == "Complete"
    assert (world.status()["attempt"], world.status()["rayJob"]) == (1, "emoji-1")
    assert world.ray_jobs() == []
    assert world.told.reasons == ["RayJobCreated", "GatePassed", "Completed"]


def test_a_life_without_trouble_takes_no_more_than_twelve_writes_with_its_events(new_world: NewWorld) -> None:
    world = new_world()
    world.run_to_rest()
    assert world.cluster.num_writes + len(world.told.events) <= 12, world.cluster.writes


def test_nothing_is_written_when_nothing_has_changed(new_world: NewWorld) -> None:
    world = new_world([RUNS_ON])
    world.run_to_rest()
    before = world.cluster.num_writes
    for _ in range(3):
        world.clock.advance(3600)
        world.reconcile()
    assert world.cluster.num_writes == before


def test_the_claim_is_written_before_the_ray_job_and_the_ray_job_last_of_the_children(new_world: NewWorld) -> None:
    world = new_world()
    world.reconcile()
    children = ["create configmaps", "create networkpolicies", "create rayjobs"]
    assert world.cluster.writes == ["patch compressionjobs/status", *children]


def test_a_failed_attempt_is_followed_by_another_after_a_pause(new_world: NewWorld) -> None:
    world = new_world([CRASHED, CRASHED, SUCCEEDED])
    world.run_to_rest()
    assert world.condition("Complete")["status"] == "True"
    assert world.status()["attempt"] == 3
    assert (world.clock.now - type(world.clock)().now).total_seconds() >= 10 + 20
    assert world.told.reasons.count("AttemptFailed") == 2


def test_too_many_failures_are_the_end(new_world: NewWorld) -> None:
    world = new_world([CRASHED], **{"spec.backoffLimit": 1})
    world.run_to_rest()
    failed = world.condition("Failed")
    assert (failed["status"], failed["reason"]) == ("True", "BackoffLimitExceeded")
    assert "out of luck" in failed["message"]
    assert world.condition("Stalled")["status"] == "True"
    assert world.status()["attempt"] == 2
    assert world.ray_jobs() == []


@pytest.mark.parametrize(
    ("code", "reason"), [(10, "GateFailed"), (11, "UserCodeError"), (12, "InvalidSpec")], ids=lambda value: str(value)
)
def test_an_outcome_that_would_repeat_itself_is_final(new_world: NewWorld, code: int, reason: str) -> None:
    world = new_world([outcome(code, reason, "it is so")])
    world.run_to_rest()
    failed = world.condition("Failed")
    assert (failed["reason"], failed["message"]) == (reason, "it is so")
    assert world.status()["attempt"] == 1


def test_preemptions_do_not_count_as_failures(new_world: NewWorld) -> None:
    world = new_world([outcome(130, "Stopped", "a signal")] * 3 + [SUCCEEDED], **{"spec.backoffLimit": 0})
    world.run_to_rest()
    assert world.condition("Complete")["status"] == "True"
    assert world.status()["attempt"] == 4


def test_a_head_pod_that_is_evicted_ends_the_attempt_at_once_as_a_preemption(new_world: NewWorld) -> None:
    world = new_world([RUNS_ON, SUCCEEDED], **{"spec.backoffLimit": 0})
    world.run_to_rest()
    evicted = {
        "phase": "Running",
        "conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}],
    }
    pod = world.cluster.objects[PODS, "team", "emoji-1-head"]
    pod["status"] = evicted
    world.run_to_rest()
    assert world.condition("Complete")["status"] == "True"
    assert "AttemptPreempted" in world.told.reasons


def test_no_attempt_begins_while_a_pod_of_the_last_one_is_there(new_world: NewWorld) -> None:
    world = new_world([CRASHED, SUCCEEDED])
    world.reconcile()
    world.kuberay_acts()
    stuck = world.cluster.objects[PODS, "team", "emoji-1-head"]
    stuck["metadata"]["ownerReferences"] = []
    world.run_to_rest()
    assert world.status()["attempt"] == 1
    assert world.condition("Reconciling")["reason"] == "WaitingForPods"
    del world.cluster.objects[PODS, "team", "emoji-1-head"]
    world.run_to_rest()
    assert world.status()["attempt"] == 2


def test_a_ray_job_that_somebody_deletes_counts_as_a_failed_attempt(new_world: NewWorld) -> None:
    world = new_world([RUNS_ON, SUCCEEDED])
    world.run_to_rest()
    world.cluster.delete(RAY_JOBS, "emoji-1", "team")
    world.run_to_rest()
    assert world.status()["attempt"] == 2
    assert world.condition("Complete")["status"] == "True"


def test_removing_the_ledger_does_not_make_retries_endless(new_world: NewWorld) -> None:
    world = new_world([RUNS_ON], **{"spec.backoffLimit": 2})
    for attempt in (1, 2, 3):
        world.run_to_rest()
        assert world.status()["attempt"] == attempt
        del world.cluster.objects[CONFIG_MAPS, "team", "emoji-limbeck"]
        world.set_ray_job(attempt, **CRASHED)
    world.run_to_rest()
    assert world.condition("Failed")["reason"] == "BackoffLimitExceeded"


def test_suspend_waits_for_a_checkpoint_and_resume_is_the_next_attempt(new_world: NewWorld) -> None:
    world = new_world([RUNS_ON, SUCCEEDED])
    world.run_to_rest()
    world.change_spec(suspend=True)
    assert world.reconcile() == pytest.approx(world.settings.suspend_grace_seconds)
    assert world.condition("Suspended")["reason"] == "WaitingForCheckpoint"
    assert len(world.ray_jobs()) == 1
    world.set_ray_job(1, **outcome(130, "Stopped", "checkpoint written"))
    world.run_to_rest()
    suspended = world.condition("Suspended")
    assert (suspended["status"], suspended["reason"]) == ("True", "SuspendedByUser")
    assert world.ray_jobs() == []
    world.change_spec(suspend=False)
    world.run_to_rest()
    assert world.status()["attempt"] == 2
    assert world.condition("Complete")["status"] == "True"
    assert "Resumed" in world.told.reasons
    assert "AttemptFailed" not in world.told.reasons


def test_a_run_that_writes_no_checkpoint_in_time_is_stopped(new_world: NewWorld) -> None:
    world = new_world([RUNS_ON])
    world.run_to_rest()
    world.change_spec(suspend=True)
    world.run_to_rest()
    assert world.condition("Suspended")["status"] == "True"
    assert world.ray_jobs() == []


def test_a_job_that_is_created_suspended_makes_nothing(new_world: NewWorld) -> None:
    world = new_world(**{"spec.suspend": True})
    world.run_to_rest()
    assert world.cluster.writes == ["patch compressionjobs/status"]
    assert world.status()["phase"] == "Suspended"


def test_the_deadline_counts_over_all_attempts_and_not_while_suspended(new_world: NewWorld) -> None:
    world = new_world([RUNS_ON], **{"spec.activeDeadlineSeconds": 1000})
    for _ in range(4):
        world.reconcile()
        world.kuberay_acts()
    world.clock.advance(600)
    world.change_spec(suspend=True)
    world.set_ray_job(1, **outcome(130, "Stopped", "checkpoint"))
    for _ in range(4):
        world.reconcile()
    world.clock.advance(100_000)
    world.change_spec(suspend=False)
    for _ in range(4):
        world.reconcile()
        world.kuberay_acts()
    assert world.reconcile() == pytest.approx(400)
    world.clock.advance(400)
    world.run_to_rest()
    assert world.condition("Failed")["reason"] == "DeadlineExceeded"
    assert world.ray_jobs() == []


def test_a_finished_job_goes_after_its_time_and_takes_its_children_along(new_world: NewWorld) -> None:
    world = new_world(**{"spec.ttlSecondsAfterFinished": 100})
    for _ in range(8):
        world.reconcile()
        world.kuberay_acts()
    assert world.reconcile() == pytest.approx(100)
    world.clock.advance(100)
    world.reconcile()
    assert world.cluster.objects == {}
    assert world.reconcile() is None


def test_without_kuberay_the_job_waits_with_a_condition_and_goes_on_when_it_comes(new_world: NewWorld) -> None:
    world = new_world()
    world.cluster.unserved.add(RAY_JOBS)
    assert world.reconcile() == world.settings.probe_seconds
    condition = world.condition("Reconciling")
    assert (condition["status"], condition["reason"]) == ("True", "KubeRayAbsent")
    assert world.reconcile() == world.settings.probe_seconds
    assert world.told.reasons == ["KubeRayAbsent"]
    assert world.cluster.num_writes == 1
    world.cluster.unserved.clear()
    world.run_to_rest()
    assert world.condition("Complete")["status"] == "True"


def test_a_missing_secret_is_named_before_any_pod_starts(new_world: NewWorld) -> None:
    world = new_world(**{"spec.output": {"uri": "s3://results/emoji", "credentialsSecretRef": {"name": "s3"}}})
    assert world.reconcile() == world.settings.probe_seconds
    assert world.condition("Reconciling")["reason"] == "SecretNotFound"
    assert "s3" in world.condition("Reconciling")["message"]
    assert world.ray_jobs() == []
    world.cluster.create(SECRETS, {"metadata": {"name": "s3"}}, "team")
    world.run_to_rest()
    assert world.condition("Complete")["status"] == "True"


def test_a_spec_that_cannot_be_run_fails_before_anything_is_made(new_world: NewWorld) -> None:
    world = new_world(**{"spec.export": {"formats": ["ExecuTorch"]}})
    world.run_to_rest()
    failed = world.condition("Failed")
    assert failed["reason"] == "InvalidSpec"
    assert "spec.export.formats[0]" in failed["message"]
    assert world.cluster.writes == ["patch compressionjobs/status"]


def test_a_job_that_only_the_models_refuse_fails_with_the_field_named(new_world: NewWorld) -> None:
    world = new_world(**{"spec.seed": "seven"})
    assert world.reconcile() is None
    assert world.condition("Failed")["reason"] == "InvalidSpec"
    assert "spec.seed" in world.condition("Failed")["message"]
    before = world.cluster.num_writes
    world.reconcile()
    assert world.cluster.num_writes == before


@pytest.mark.parametrize(
    ("error", "kind", "reason"),
    [
        (ForbiddenError(403, "Forbidden", "exceeded quota: 4 of 4 pods"), "Reconciling", "CreationRefused"),
        (InvalidError(422, "Invalid", "spec.tolerations: is wrong"), "Failed", "InvalidSpec"),
    ],
    ids=["quota", "invalid template"],
)
def test_a_ray_job_that_the_api_server_refuses_is_told_in_a_condition(
    new_world: NewWorld, error: Exception, kind: str, reason: str
) -> None:
    world = new_world()
    world.cluster.refusals[RAY_JOBS] = error
    world.reconcile()
    assert (world.condition(kind)["status"], world.condition(kind)["reason"]) == ("True", reason)
    assert error.message in world.condition(kind)["message"]


def test_a_name_that_somebody_else_has_taken_is_never_adopted(new_world: NewWorld) -> None:
    world = new_world()
    foreign = {"kind": "ConfigMap", "metadata": {"name": "emoji-limbeck"}, "data": {"mine": "yes"}}
    world.cluster.create(CONFIG_MAPS, foreign, "team")
    assert world.reconcile() == world.settings.probe_seconds
    assert world.condition("Reconciling")["reason"] == "NameTaken"
    assert world.cluster.get(CONFIG_MAPS, "emoji-limbeck", "team")["data"] == {"mine": "yes"}
    assert world.ray_jobs() == []


def test_pods_and_ray_jobs_of_an_earlier_job_of_the_same_name_do_not_count(new_world: NewWorld) -> None:
    world = new_world()
    labels = {"limbeck.dev/job": "emoji", "limbeck.dev/attempt": "1"}
    owner = {"uid": "of-the-old-job", "controller": True}
    old = {"metadata": {"name": "emoji-1", "labels": labels, "ownerReferences": [owner]}, "status": SUCCEEDED}
    world.cluster.create(RAY_JOBS, old, "team")
    world.reconcile()
    assert world.condition("Reconciling")["reason"] == "NameTaken"
    assert not world.condition("Complete")


def test_kueue_holding_the_ray_job_back_shows_as_suspended(new_world: NewWorld) -> None:
    world = new_world([RUNS_ON])
    world.reconcile()
    world.set_ray_job(1, jobDeploymentStatus="Suspended")
    world.reconcile()
    assert (world.condition("Suspended")["status"], world.condition("Suspended")["reason"]) == ("True", "QueuedByKueue")
    assert world.ray_jobs()[0]["spec"].get("suspend") is None
    world.set_ray_job(1, jobDeploymentStatus="Running", jobStatus="RUNNING")
    world.reconcile()
    assert world.condition("Suspended")["status"] == "False"
    assert world.status()["phase"] == "Running"


def test_a_job_that_another_controller_manages_is_left_alone(new_world: NewWorld) -> None:
    world = new_world(**{"spec.managedBy": "kueue.x-k8s.io/multikueue"})
    assert world.reconcile() is None
    assert world.cluster.num_writes == 0


def test_a_job_that_is_being_deleted_is_left_to_the_garbage_collector(new_world: NewWorld) -> None:
    world = new_world()
    world.cluster.objects[JOBS, "team", "emoji"]["metadata"]["deletionTimestamp"] = "2026-11-24T06:00:00Z"
    assert world.reconcile() is None
    assert world.cluster.num_writes == 0


@pytest.mark.parametrize("ending", [SUCCEEDED, outcome(10, "GateFailed", "too large")], ids=["complete", "failed"])
def test_a_terminal_state_is_final_whatever_is_edited_or_deleted(new_world: NewWorld, ending: Object) -> None:
    world = new_world([ending])
    world.run_to_rest()
    before = world.status()
    world.change_spec(suspend=True, backoffLimit=9, activeDeadlineSeconds=1)
    world.cluster.delete(CONFIG_MAPS, "emoji-limbeck", "team")
    world.cluster.delete(NETWORK_POLICIES, "emoji-limbeck", "team")
    world.clock.advance(1_000_000)
    world.run_to_rest()
    assert world.status() == {**before, "observedGeneration": 2}
    assert world.ray_jobs() == []


def test_the_servers_part_of_the_status_stays_as_the_server_wrote_it(new_world: NewWorld) -> None:
    world = new_world([RUNS_ON, SUCCEEDED])
    world.reconcile()
    part = {"progress": {"percent": 40, "step": "distil"}, "steps": [{"name": "distil", "state": "Running"}]}
    world.cluster.patch(JOBS, "emoji", {"status": part}, "team", subresource="status")
    world.run_to_rest()
    world.set_ray_job(1, **SUCCEEDED)
    world.run_to_rest()
    assert {key: world.status()[key] for key in part} == part


def test_who_has_read_an_old_state_of_the_job_makes_nothing(new_world: NewWorld) -> None:
    world = new_world()
    old = world.job()
    world.cluster.patch(JOBS, "emoji", {"status": {"progress": {"percent": 1}}}, "team", subresource="status")
    world.cluster.stale[JOBS] = old
    with pytest.raises(ConflictError):
        world.reconcile()
    assert world.ray_jobs() == []


def test_a_round_that_does_not_see_its_ray_job_in_a_list_makes_no_second_one(new_world: NewWorld) -> None:
    world = new_world([RUNS_ON])
    world.reconcile()
    before = world.cluster.num_writes
    world.cluster.unlisted.add(RAY_JOBS)
    world.reconcile()
    assert world.status()["rayJob"] == "emoji-1"
    assert world.cluster.writes[before:] == ["patch compressionjobs/status"]


@pytest.mark.parametrize("ending", [SUCCEEDED, outcome(10, "GateFailed", "too large")], ids=["complete", "failed"])
def test_a_run_that_nobody_looked_at_is_named_in_the_end(new_world: NewWorld, ending: Object) -> None:
    world = new_world([ending])
    world.reconcile()
    for _ in range(3):
        world.kuberay_acts()
    world.run_to_rest()
    assert (world.status()["rayJob"], world.status()["rayCluster"]) == ("emoji-1", "emoji-1-x")


def test_a_further_attempt_writes_nothing_that_is_there(new_world: NewWorld) -> None:
    world = new_world([CRASHED, SUCCEEDED])
    world.run_to_rest()
    for kind in ("configmaps", "networkpolicies"):
        assert world.cluster.writes.count(f"create {kind}") == 1
    assert world.cluster.writes.count("create rayjobs") == 2


def test_children_on_the_second_page_of_a_list_are_seen(new_world: NewWorld) -> None:
    world = new_world([RUNS_ON])
    world.run_to_rest()
    (ray_job,) = world.ray_jobs()
    for kind in ("worker-a", "worker-b"):
        world.add_pod(ray_job, kind)
    world.add_pod(ray_job, "worker-z", {"conditions": [{"type": "PodScheduled", "reason": "Unschedulable"}]})
    world.reconcile()
    assert world.condition("Reconciling")["reason"] == "Unschedulable"


def _told(status: Object) -> Object:
    """A status without times, and without the words that hold them."""
    kept = {key: value for key, value in status.items() if key not in ("startTime", "completionTime", "conditions")}
    conditions = [
        {key: each[key] for key in ("type", "status", "reason", "message")} for each in status.get("conditions", [])
    ]
    return {**kept, "conditions": sorted(conditions, key=lambda each: each["type"])}


def _live(world: Any, suspend_at: int | None = None) -> tuple[Object, list[Any]]:
    world.run_to_rest()
    if suspend_at is not None:
        world.change_spec(suspend=True)
        world.run_to_rest()
        world.change_spec(suspend=False)
        world.run_to_rest()
    status = _told(world.status())
    status.pop("headPodUid", None)
    return status, sorted((str(kind), name) for kind, _, name in world.cluster.objects)


LIVES: dict[str, tuple[list[Object], dict[str, Any], bool]] = {
    "straight to the end": ([SUCCEEDED], {}, False),
    "two failures, then the end": ([CRASHED, CRASHED, SUCCEEDED], {}, False),
    "one failure too many": ([CRASHED], {"spec.backoffLimit": 1}, False),
    "preempted once": ([outcome(130, "Stopped", "signal"), SUCCEEDED], {"spec.backoffLimit": 0}, False),
    "missed the gate": ([outcome(10, "GateFailed", "too large")], {}, False),
    "suspended and resumed": ([RUNS_ON, SUCCEEDED], {}, True),
    "out of time": ([RUNS_ON], {"spec.activeDeadlineSeconds": 50}, False),
}


@pytest.mark.parametrize("life", LIVES)
@pytest.mark.parametrize("carried_out", [False, True], ids=["before", "after"])
def test_a_crash_at_any_write_of_a_life_ends_in_the_same_state(
    new_world: NewWorld, life: str, carried_out: bool
) -> None:
    script, changes, suspends = LIVES[life]
    without = new_world(script, **changes)
    wanted = _live(without, 1 if suspends else None)
    num_writes = without.cluster.num_writes
    assert num_writes >= 6
    for number in range(1, num_writes + 1):
        world = new_world(script, **changes)
        world.cluster.fault = (number, carried_out)
        assert _live(world, 1 if suspends else None) == wanted, f"crash at write {number}"
        assert world.cluster.num_writes >= number
