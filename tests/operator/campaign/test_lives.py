"""Whole lives of jobs on a real API server, cut off at every write, and with every watch event lost once."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from faulty_client import Cut, Faults
from mimic import CRASHED, PREEMPTED, RUNS_ON, SUCCEEDED, outcome

pytestmark = pytest.mark.controlplane

Object = dict[str, Any]
NewWorld = Callable[..., Any]


def nothing(_world: Any) -> None:
    """The user only waits."""


def suspend_and_resume(world: Any) -> None:
    world.wait(lambda: world.phase() == "Running")
    world.change_spec(suspend=True)
    world.wait(lambda: world.says("Suspended", "True"))
    world.change_spec(suspend=False)


def run_out_of_time(world: Any) -> None:
    world.wait(lambda: world.phase() == "Running")
    world.change_spec(activeDeadlineSeconds=1)


def bring_kuberay(world: Any) -> None:
    world.wait(lambda: world.says("Reconciling", "True", "KubeRayAbsent"))
    world.unserved.clear()


@dataclass(frozen=True)
class Life:
    """What a job says, how its attempts end, what its user does meanwhile, and what has to come of it."""

    endings: Sequence[Object]
    condition: tuple[str, str]
    attempts: int
    changes: Object = field(default_factory=dict)
    settings: Object = field(default_factory=dict)
    drive: Callable[[Any], None] = nothing
    unserved: frozenset[str] = frozenset()


COMPLETE = ("Complete", "Completed")
LIVES = {
    "straight to the end": Life([SUCCEEDED], COMPLETE, 1),
    "a crash, then the end": Life([CRASHED, SUCCEEDED], COMPLETE, 2),
    "one crash too many": Life([CRASHED], ("Failed", "BackoffLimitExceeded"), 2, {"spec.backoffLimit": 1}),
    "missed the gate": Life([outcome(10, "GateFailed", "too large")], ("Failed", "GateFailed"), 1),
    "preempted once": Life([PREEMPTED, SUCCEEDED], COMPLETE, 2, {"spec.backoffLimit": 0}),
    "suspended and resumed": Life(
        [RUNS_ON, SUCCEEDED], COMPLETE, 2, {}, {"server_url": "https://limbeck.example:8443"}, suspend_and_resume
    ),
    "out of time": Life([RUNS_ON], ("Failed", "DeadlineExceeded"), 1, drive=run_out_of_time),
    "gone after its time": Life([SUCCEEDED], ("", ""), 0, {"spec.ttlSecondsAfterFinished": 0}),
    "KubeRay comes late": Life([SUCCEEDED], COMPLETE, 1, drive=bring_kuberay, unserved=frozenset({"rayjobs"})),
}


@dataclass(frozen=True)
class Lived:
    """What was left of a life, and how it went."""

    end: Object
    writes: dict[str, list[str]]
    num_watch_events: int
    event_reasons: list[str]
    crashed: bool


def live(new_world: NewWorld, life: Life, faults: Faults | None = None) -> Lived:
    """From the job's creation to the end; an operator that crashes is followed by another."""
    world = new_world(life.endings, life.settings, **life.changes)
    world.unserved |= life.unserved
    first = world.start(faults)
    life.drive(world)
    world.wait(world.is_over if life.attempts else world.is_gone)
    world.stop()
    world.mimic.stop()
    client = first.client
    return Lived(
        world.snapshot(), client.writes, client.num_watch_events, world.event_reasons(), client.crashed.is_set()
    )


@pytest.mark.parametrize("name", LIVES)
def test_a_life_on_a_real_api_server_ends_as_it_should(new_world: NewWorld, name: str) -> None:
    life = LIVES[name]
    lived = live(new_world, life)
    if not life.attempts:
        assert not any(lived.end.values())
        return
    (status,) = lived.end["jobs"]
    assert status["attempt"] == life.attempts
    kind, reason = life.condition
    assert [each["reason"] for each in status["conditions"] if (each["type"], each["status"]) == (kind, "True")] == [
        reason
    ]
    stalled = [each["status"] for each in status["conditions"] if each["type"] == "Stalled"]
    assert stalled == (["True"] if kind == "Failed" else [])
    assert (lived.end["rayJobs"], lived.end["pods"]) == ([], [])
    print(f"{name}: {len(lived.writes['state'])} writes and {len(lived.writes['event'])} events")


def test_a_life_without_trouble_takes_at_most_twelve_writes_with_its_events(new_world: NewWorld) -> None:
    lived = live(new_world, LIVES["straight to the end"])
    writes = [*lived.writes["state"], *lived.writes["event"]]
    assert len(writes) <= 12, writes


@pytest.fixture(scope="module")
def tally() -> Iterator[list[str]]:
    """The life of each cut; said at the end."""
    cuts: list[str] = []
    yield cuts
    if cuts:
        print(f"\ncrashed {len(cuts)} times, before and after every write of {len(set(cuts))} lives: same end")


def lives(*always: str) -> list[Any]:
    """Those in `always` in every run of the tests, all others in `make campaign`, which takes a quarter of an hour."""
    return [pytest.param(name, marks=[] if name in always else [pytest.mark.campaign]) for name in LIVES]


@pytest.mark.slow
@pytest.mark.parametrize("carried_out", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("name", lives("straight to the end", "suspended and resumed"))
def test_an_operator_that_crashes_at_any_write_changes_nothing_about_the_end(
    new_world: NewWorld, tally: list[str], name: str, carried_out: bool
) -> None:
    life = LIVES[name]
    wanted = live(new_world, life)
    for kind, writes in wanted.writes.items():
        # How many writes a life takes varies with what meets whom: until one ends before the cut comes.
        for number in itertools.count(1):
            lived = live(new_world, life, Faults(cut=Cut(kind, number, carried_out)))
            where = f"crash at {kind} write {number}, {lived.writes[kind][-1:]}"
            assert lived.end == wanted.end, where
            assert set(lived.event_reasons) <= set(wanted.event_reasons), where
            if not lived.crashed:
                break
            tally.append(name)
        assert number > len(writes) / 2


@pytest.mark.slow
@pytest.mark.parametrize("name", lives("straight to the end"))
def test_any_one_watch_event_that_gets_lost_changes_nothing_about_the_end(new_world: NewWorld, name: str) -> None:
    life = LIVES[name]
    wanted = live(new_world, life)
    for number in range(1, wanted.num_watch_events + 1):
        lived = live(new_world, life, Faults(lost_event=number))
        assert lived.end == wanted.end, f"event {number} was lost"
    print(f"{name}: each of {wanted.num_watch_events} watch events lost once: same end")


def test_lists_older_than_what_was_seen_change_nothing_about_the_end(new_world: NewWorld) -> None:
    world = new_world([RUNS_ON])
    first = world.start()
    first.client.remember_lists()
    world.wait(lambda: world.phase() == "Running")
    first.client.faults.old_lists = True
    world.wait(lambda: first.client.num_old_lists >= 3)
    world.end_attempt(1, SUCCEEDED)
    world.wait(world.is_over)
    assert world.status()["attempt"] == 1
    assert world.says("Complete", "True")


def test_a_new_operator_whose_first_lists_are_old_repeats_nothing(new_world: NewWorld) -> None:
    world = new_world([RUNS_ON])
    first = world.start()
    first.client.remember_lists()
    world.wait(lambda: world.phase() == "Running")
    first.end()
    second = world.start(old_lists_of=first)
    assert second.client.num_old_lists == 3
    world.end_attempt(1, SUCCEEDED)
    world.wait(world.is_over)
    assert world.says("Complete", "True")
    assert world.status()["attempt"] == 1
    assert not [write for write in second.client.writes["state"] if write.startswith("POST")]
