from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import pytest

from limbeck.kube.events import EVENTS, EventRecorder, Fact, Repeats, Write
from limbeck.kube.transport import Resource, Transport

FACT = Fact("shop", "u-1", "Normal", "Started", "Reconcile", "It began.")
NAMES = ("one", "two", "three")


@pytest.fixture
def repeats() -> Repeats:
    numbers = count()
    return Repeats(lambda: NAMES[next(numbers) % 3])


@pytest.fixture
def recorder(server) -> Iterator[EventRecorder]:
    recorder = EventRecorder(server.transport(), controller="example.dev/cook", instance="cook-0")
    recorder.start()
    yield recorder
    recorder.stop()


def test_the_same_fact_counts_up_one_event_and_is_written_when_the_count_has_doubled(repeats: Repeats) -> None:
    written = [repeats.say(FACT, 0.0) for _ in range(9)]
    assert [write for write in written if write] == [Write("one", times) for times in (1, 2, 4, 8)]


def test_a_fact_that_goes_on_is_refreshed_once_a_minute(repeats: Repeats) -> None:
    for _ in range(5):
        repeats.say(FACT, 0.0)
    assert [repeats.say(FACT, now) for now in (59.0, 61.0, 62.0)] == [None, Write("one", 7), None]


def test_a_fact_that_was_over_for_long_begins_a_new_event(repeats: Repeats) -> None:
    repeats.say(FACT, 0.0)
    assert repeats.say(FACT, 361.0) == Write("two", 1)


def test_another_object_note_or_reason_is_another_event(repeats: Repeats) -> None:
    facts = [FACT, FACT._replace(uid="u-2"), FACT._replace(note="Other."), FACT._replace(reason="Stopped")]
    assert [write.times for fact in facts if (write := repeats.say(fact, 0.0))] == [1, 1, 1, 1]


def test_an_object_that_says_ever_new_things_is_cut_short_and_others_are_not(repeats: Repeats) -> None:
    written = [repeats.say(FACT._replace(note=str(number)), 0.0) for number in range(100)]
    assert sum(write is not None for write in written) == 25
    assert repeats.say(FACT._replace(uid="u-2"), 0.0) is not None
    assert repeats.say(FACT._replace(note="a minute later"), 60.0) is not None


def test_what_is_remembered_has_an_end(repeats: Repeats) -> None:
    for number in range(10_000):
        repeats.say(FACT._replace(uid=f"u-{number}"), 0.0)
    assert len(repeats._said) == len(repeats._allowances) == 4096


def test_a_server_that_fails_gets_the_event_a_second_time(server, serve, recorder) -> None:
    server.writes.append(serve.status(500, "InternalError", retry_after=0.01))
    recorder.record(serve.item("a", 1), "Normal", "Started", "It began.")
    first, second = server.wait_for("write", 2)
    assert first.body == second.body
    assert recorder.stop()
    assert recorder.num_lost == 0


def test_an_event_whose_first_try_did_arrive_is_not_lost(server, serve, recorder) -> None:
    server.writes.extend(
        [serve.status(504, "Timeout", retry_after=0.01), serve.status(409, "AlreadyExists", retry_after=0.01)]
    )
    recorder.record(serve.item("a", 1), "Normal", "Started", "It began.")
    server.wait_for("write", 2)
    assert recorder.stop()
    assert recorder.num_lost == 0


def test_a_repeat_of_an_event_that_has_expired_begins_a_new_one(server, serve, recorder) -> None:
    server.writes.extend([serve.raw(200, b"{}"), serve.status(404, "NotFound")])
    for _ in range(2):
        recorder.record(serve.item("a", 1), "Normal", "Started", "It began.")
    made, counted, anew = server.wait_for("write", 3)
    assert [made.method, counted.method, anew.method] == ["POST", "PATCH", "POST"]
    assert made.body["metadata"]["name"] != anew.body["metadata"]["name"]


def test_an_event_that_is_refused_is_counted_as_lost_and_holds_nothing_up(server, serve, recorder) -> None:
    server.writes.append(serve.status(403, "Forbidden"))
    recorder.record(serve.item("a", 1), "Warning", "Failed", "It ended.")
    recorder.record(serve.item("b", 1), "Warning", "Failed", "It ended.")
    assert server.wait_for("write", 2)[1].body["regarding"]["name"] == "b"
    assert recorder.stop()
    assert recorder.num_lost == 1


def test_who_tells_never_waits(server, serve) -> None:
    recorder = EventRecorder(server.transport(), controller="example.dev/cook", instance="cook-0", max_waiting=3)
    for _ in range(5):  # nobody writes: not started
        recorder.record(serve.item("a", 1), "Normal", "Started", "It began.")
    assert recorder.num_lost == 2


@pytest.mark.parametrize("letter", ["x", "\N{GREEK SMALL LETTER ALPHA}"])
def test_a_note_is_cut_to_what_the_server_takes(server, serve, recorder, letter: str) -> None:
    recorder.record(serve.item("a", 1), "Normal", "Started", letter * 2000)
    (request,) = server.wait_for("write", 1)
    assert 1000 < len(request.body["note"].encode()) <= 1024
    assert request.body["note"].endswith(letter + "...")


@pytest.mark.controlplane
def test_a_real_server_shows_one_event_with_its_count(
    control_plane, namespace, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    transport = Transport(control_plane.client())
    maps = Resource("", "v1", "configmaps")
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}}
    regarding = body | {"metadata": transport.create(maps, body, namespace)["metadata"]}
    recorder = EventRecorder(transport, controller="example.dev/cook", instance="cook-0")
    recorder.start()
    for _ in range(4):
        recorder.record(regarding, "Warning", "Burnt", "It is black.")
    assert recorder.stop()

    def told(resource: Resource) -> list[dict[str, Any]]:
        return transport.list(resource, namespace)["items"]

    eventually(lambda: len(told(EVENTS)) == 1)
    (event,) = told(EVENTS)
    assert (event["reason"], event["note"], event["type"]) == ("Burnt", "It is black.", "Warning")
    assert event["series"]["count"] == 4
    # What `kubectl describe` looks for.
    (old,) = told(Resource("", "v1", "events"))
    assert old["involvedObject"]["uid"] == regarding["metadata"]["uid"]
    assert recorder.num_lost == 0
