"""Properties that every decision has, whatever is observed."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from limbeck.api.status import ConditionType, Status
from limbeck.api.v1alpha1.job import CompressionJob
from limbeck.controller.conditions import holds, is_finished
from limbeck.controller.decide import decide
from limbeck.controller.decision import Create, Record
from limbeck.controller.ledger import Ending, Entry, Ledger
from limbeck.controller.observed import Observed
from limbeck.controller.settings import Settings

NOW = datetime(2026, 11, 24, 8, 0, tzinfo=UTC)
relaxed = hypothesis_settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None
)

RAY_STATUSES = st.fixed_dictionaries(
    {},
    optional={
        "jobStatus": st.sampled_from(["PENDING", "RUNNING", "STOPPED", "SUCCEEDED", "FAILED"]),
        "jobDeploymentStatus": st.sampled_from(
            ["Initializing", "Running", "Complete", "Failed", "Suspended", "ValidationFailed"]
        ),
        "message": st.sampled_from(["", "failed with exit code 10", "failed with exit code 130", "gone"]),
        "startTime": st.just("2026-11-24T07:30:00Z"),
    },
)


@st.composite
def observations(draw: Any) -> Observed:
    attempts = draw(st.lists(st.integers(1, 3), max_size=2, unique=True))
    ray_jobs = [
        {
            "metadata": {"name": f"emoji-{number}", "uid": str(number), "labels": {"limbeck.dev/attempt": str(number)}},
            "status": draw(RAY_STATUSES),
        }
        for number in attempts
    ]
    closed = draw(st.lists(st.integers(1, 3), max_size=3, unique=True))
    entries = [Entry(number, draw(st.sampled_from(Ending)), NOW - timedelta(hours=1), 60.0) for number in closed]
    labels = {"limbeck.dev/attempt": "1", "ray.io/node-type": "head"}
    pod = {"metadata": {"name": "p", "uid": "p", "labels": labels}, "status": {"phase": "Running"}}
    return Observed(
        ray_jobs=ray_jobs,
        pods=draw(st.sampled_from([[], [pod]])),
        ledger=Ledger(tuple(entries)),
        missing_secrets=draw(st.sampled_from([(), ("s3",)])),
        kuberay_served=draw(st.booleans()),
    )


SPECS = st.fixed_dictionaries(
    {
        "spec.suspend": st.booleans(),
        "spec.backoffLimit": st.integers(0, 2),
        "spec.activeDeadlineSeconds": st.sampled_from([None, 100, 100_000]),
    }
)


def again(job: CompressionJob, status: Status) -> CompressionJob:
    """The job as it is read back after the status was written."""
    wire = Status.model_validate_json(status.model_dump_json(by_alias=True))
    return job.model_copy(update={"status": wire})


@relaxed
@given(observed=observations(), changes=SPECS, attempt=st.integers(0, 3), seen=st.booleans())
def test_deciding_twice_about_the_same_changes_the_status_once(
    job_model: Callable[..., CompressionJob],
    settings: Settings,
    observed: Observed,
    changes: Any,
    attempt: int,
    seen: bool,
) -> None:
    status = {"attempt": attempt, "rayJob": f"emoji-{attempt}" if attempt and seen else ""}
    job = job_model(**changes, status=status)
    first = decide(job, observed, NOW, settings)
    if any(isinstance(action, Create) for action in first.actions) and first.status.attempt != attempt:
        return  # a claim: the next round is about another attempt
    second = decide(again(job, first.status), observed, NOW, settings)
    assert second.status == first.status


@relaxed
@given(observed=observations(), changes=SPECS, kind=st.sampled_from(["Complete", "Failed"]))
def test_a_terminal_state_never_changes_and_nothing_is_made(
    job_model: Callable[..., CompressionJob], settings: Settings, observed: Observed, changes: Any, kind: str
) -> None:
    condition = {"type": kind, "status": "True", "reason": "Any", "lastTransitionTime": NOW.isoformat()}
    status = {"attempt": 2, "conditions": [condition], "completionTime": NOW.isoformat(), "observedGeneration": 1}
    job = job_model(**changes, status=status)
    decision = decide(job, observed, NOW, settings)
    assert decision.status == job.status
    assert not any(isinstance(action, Create | Record) for action in decision.actions)
    assert not decision.events


@relaxed
@given(observed=observations(), changes=SPECS, attempt=st.integers(0, 3), seen=st.booleans())
def test_conditions_keep_to_their_rules(
    job_model: Callable[..., CompressionJob],
    settings: Settings,
    observed: Observed,
    changes: Any,
    attempt: int,
    seen: bool,
) -> None:
    status = {"attempt": attempt, "rayJob": f"emoji-{attempt}" if attempt and seen else ""}
    decided = decide(job_model(**changes, status=status), observed, NOW, settings)
    after = decided.status
    assert holds(after, ConditionType.STALLED) == holds(after, ConditionType.FAILED)
    assert not (holds(after, ConditionType.COMPLETE) and holds(after, ConditionType.FAILED))
    if is_finished(after):
        assert not holds(after, ConditionType.RECONCILING)
        assert after.completion_time == NOW
    if any(isinstance(action, Create) for action in decided.actions):
        assert holds(after, ConditionType.RECONCILING)
        assert not [pod for pod in observed.pods if after.attempt != attempt]


@pytest.mark.parametrize(("failures", "wait"), [(1, 10), (2, 20), (3, 40), (9, 360)])
def test_each_failure_doubles_the_pause_up_to_a_bound(
    job_model: Callable[..., CompressionJob], settings: Settings, failures: int, wait: float
) -> None:
    entries = tuple(Entry(number, Ending.FAILED, NOW, 1.0, "crashed") for number in range(1, failures + 1))
    job = job_model(**{"spec.backoffLimit": 20}, status={"attempt": failures})
    observed = Observed(ledger=Ledger(entries))
    decision = decide(job, observed, NOW, settings)
    assert decision.requeue_after == pytest.approx(wait)
    assert decision.status.attempt == failures
    later = decide(again(job, decision.status), observed, NOW + timedelta(seconds=wait), settings)
    assert later.status.attempt == failures + 1


def test_preemptions_have_a_budget_of_their_own(job_model: Callable[..., CompressionJob], settings: Settings) -> None:
    entries = tuple(Entry(number, Ending.PREEMPTED, NOW - timedelta(hours=1), 1.0) for number in (1, 2, 3))
    job = job_model(**{"spec.backoffLimit": 0}, status={"attempt": 3})
    within = decide(job, Observed(ledger=Ledger(entries)), NOW, settings.model_copy(update={"preemption_budget": 3}))
    assert within.status.attempt == 4
    beyond = decide(job, Observed(ledger=Ledger(entries)), NOW, settings.model_copy(update={"preemption_budget": 2}))
    assert beyond.status.conditions[0].reason == "PreemptionBudgetExceeded"


def test_a_ledger_survives_its_text_form_and_what_cannot_be_read_counts_as_failed() -> None:
    ledger = Ledger((Entry(1, Ending.SUSPENDED, NOW, 3.5, "m"), Entry(2, Ending.FAILED, NOW, 1.0)))
    assert Ledger.from_json(ledger.to_json()) == ledger
    assert Ledger.from_json("no json") == Ledger()
    assert Ledger.from_json('[{"attempt": 1}, 7]').count(Ending.FAILED, 3) == 2
