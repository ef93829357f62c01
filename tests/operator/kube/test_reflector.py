"""A reflector against a server that does everything an API server does on a bad day."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from queue import Empty, SimpleQueue
from typing import Any

import pytest

from limbeck.kube.backoff import Backoff
from limbeck.kube.cache import Cache, Change, Key
from limbeck.kube.errors import ForbiddenError, NotFoundError, ServerError, UnreachableError
from limbeck.kube.reflector import Patience, Reflector, StaleListError

FAST = Backoff(base_seconds=0.001, cap_seconds=0.02)


class Told:
    """What the reflector said, in order: `+a2` appeared at version 2, `~a3` changed, `-a` went."""

    def __init__(self) -> None:
        self._said: SimpleQueue[str] = SimpleQueue()

    def __call__(self, change: Change) -> None:
        sign = "+" if change.old is None else "-" if change.new is None else "~"
        version = change.new["metadata"]["resourceVersion"] if change.new is not None else ""
        self._said.put(f"{sign}{change.key.name}{version}")

    def next(self, number: int) -> list[str]:
        return [self._said.get(timeout=10) for _ in range(number)]

    def nothing_more(self) -> bool:
        try:
            self._said.get_nowait()
        except Empty:
            return True
        return False


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def run(server, widgets, told) -> Iterator[Callable[..., Reflector]]:
    """Starts a reflector with the given Patience; each is stopped at the end and must be able to."""
    running: list[Reflector] = []

    def start(*, page_size: int = 500, clock: Callable[[], float] | None = None, **patience: Any) -> Reflector:
        patience.setdefault("backoff", FAST)
        more = {} if clock is None else {"clock": clock}
        reflector = Reflector(
            server.transport(), widgets, Cache(), told, page_size=page_size, patience=Patience(**patience), **more
        )
        reflector.start()
        running.append(reflector)
        return reflector

    yield start
    assert all(reflector.stop() for reflector in running)


def names(reflector: Reflector) -> list[str]:
    return sorted(key.name for key in reflector.cache.all_keys())


def test_a_list_is_read_in_pages_and_watched_from_its_version(server, serve, run, told) -> None:
    server.lists.extend(
        [
            serve.page(9, serve.item("a", 1), token="more"),
            serve.page(9, serve.item("b", 2), token="still"),
            serve.page(9, serve.item("c", 3)),
        ]
    )
    reflector = run(page_size=1)
    (watch,) = server.wait_for("watch", 1)
    assert watch.query["resourceVersion"] == "9"
    assert [request.query.get("continue") for request in server.seen("list")] == [None, "more", "still"]
    assert {request.query["limit"] for request in server.seen("list")} == {"1"}
    assert reflector.synced.is_set()
    assert told.next(3) == ["+a1", "+b2", "+c3"]


def test_items_know_their_kind_though_a_list_leaves_it_out(server, serve, run) -> None:
    server.lists.append(serve.page(9, serve.item("a", 1)))
    reflector = run()
    server.wait_for("watch", 1)
    (item,) = reflector.cache.objects()
    assert (item["apiVersion"], item["kind"]) == ("example.dev/v1", "Widget")


def test_a_page_token_that_expires_costs_a_list_in_one_piece(server, serve, run) -> None:
    whole = serve.page(10, serve.item("a", 1), serve.item("b", 2))
    server.lists.extend([serve.page(9, serve.item("a", 1), token="old"), serve.status(410, "Expired"), whole])
    reflector = run(page_size=1)
    server.wait_for("watch", 1)
    assert [request.query.get("limit") for request in server.seen("list")] == ["1", "1", None]
    assert names(reflector) == ["a", "b"]


def test_events_change_the_cache_and_are_told(server, serve, run, told) -> None:
    server.lists.append(serve.page(1))
    server.watches.append(
        serve.events(("ADDED", serve.item("a", 2)), ("MODIFIED", serve.item("a", 3)), ("DELETED", serve.item("a", 4)))
    )
    reflector = run()
    assert told.next(3) == ["+a2", "~a3", "-a"]
    assert names(reflector) == []


@pytest.mark.parametrize("end", ["close", "cut"])
def test_a_watch_that_ends_goes_on_where_it_was_without_a_new_list(server, serve, run, end) -> None:
    server.lists.append(serve.page(1))
    server.watches.append(serve.events(("ADDED", serve.item("a", 2)), serve.bookmark(7), end=end))
    run()
    watches = server.wait_for("watch", 2)
    assert [watch.query["resourceVersion"] for watch in watches] == ["1", "7"]
    assert len(server.seen("list")) == 1


def test_a_watch_that_goes_silent_is_started_again(server, serve, run, told) -> None:
    server.lists.append(serve.page(1))
    late = serve.events(("ADDED", serve.item("b", 3)))
    server.watches.extend([serve.events(("ADDED", serve.item("a", 2)), end="silence"), late])
    run(silence=0.1)
    assert told.next(2) == ["+a2", "+b3"]
    assert server.wait_for("watch", 2)[1].query["resourceVersion"] == "2"


@pytest.mark.parametrize("as_event", [True, False])
def test_a_version_that_is_gone_is_answered_by_a_new_list_that_shows_what_was_missed(
    server, serve, run, told, as_event
) -> None:
    server.lists.extend([serve.page(5, serve.item("a", 1), serve.item("b", 2)), serve.page(9, serve.item("b", 8))])
    server.watches.append(serve.events(serve.expired()) if as_event else serve.status(410, "Expired"))
    run()
    assert told.next(4) == ["+a1", "+b2", "~b8", "-a"]
    assert server.wait_for("watch", 2)[1].query["resourceVersion"] == "9"


@pytest.mark.parametrize(
    ("code", "reason", "error"),
    [(500, "InternalError", ServerError), (403, "Forbidden", ForbiddenError), (404, "NotFound", NotFoundError)],
)
def test_a_server_that_refuses_for_a_while_costs_nothing_that_is_known(
    server, serve, run, told, eventually, code, reason, error
) -> None:
    """Also rights that were taken away and given back, and a kind that is not served yet."""
    server.lists.append(serve.page(5, serve.item("a", 1)))
    server.watches.extend([serve.status(code, reason)] * 4)
    reflector = run(backoff=Backoff(base_seconds=0.05, cap_seconds=0.05))
    eventually(lambda: type(reflector.problem) is error)
    assert names(reflector) == ["a"]
    server.wait_for("watch", 5)
    eventually(lambda: reflector.problem is None)
    assert told.next(1) == ["+a1"]
    assert told.nothing_more()


def test_a_first_list_that_fails_is_tried_until_it_works(server, serve, run) -> None:
    server.lists.extend([serve.status(404, "NotFound")] * 3 + [serve.page(5, serve.item("a", 1))])
    reflector = run()
    assert reflector.synced.wait(10)
    assert names(reflector) == ["a"]


def test_retry_after_is_waited(server, serve, run) -> None:
    server.lists.extend([serve.status(429, "TooManyRequests", retry_after=0.3), serve.page(5)])
    run()
    first, second = server.wait_for("list", 2)
    assert second.at - first.at >= 0.3


@pytest.mark.parametrize("kind", ["refused", "ended at once", "old news for ever"])
def test_no_failure_becomes_a_hot_loop(server, serve, run, kind) -> None:
    server.lists.append(serve.page(5))
    answer = {
        "refused": serve.status(500, "InternalError"),
        "ended at once": serve.events(end="close"),
        "old news for ever": serve.events(("ADDED", serve.item("gone", 3)), end="close"),
    }[kind]
    server.watches.extend([answer] * 6)
    run(backoff=Backoff(base_seconds=0.005, cap_seconds=10, spread=0))
    watches = server.wait_for("watch", 6)
    gaps = [later.at - earlier.at for earlier, later in pairwise(watches)]
    assert all(gap >= 0.005 * 2**number for number, gap in enumerate(gaps))


def test_events_that_come_twice_are_told_once(server, serve, run, told) -> None:
    server.lists.append(serve.page(1))
    twice = [("ADDED", serve.item("a", 2))] * 2 + [("MODIFIED", serve.item("a", 3))] * 2
    gone = [("DELETED", serve.item("a", 4))] * 2
    server.watches.append(serve.events(*twice, *gone, ("ADDED", serve.item("end", 5))))
    run()
    assert told.next(4) == ["+a2", "~a3", "-a", "+end5"]
    assert len(server.seen("list")) == 1


def test_an_older_event_after_a_newer_one_changes_nothing(server, serve, run, told) -> None:
    server.lists.append(serve.page(1))
    server.watches.append(
        serve.events(
            ("ADDED", serve.item("a", 2)),
            ("MODIFIED", serve.item("a", 6)),
            ("MODIFIED", serve.item("a", 4)),
            ("DELETED", serve.item("a", 5)),
            ("ADDED", serve.item("end", 7)),
        )
    )
    reflector = run()
    assert told.next(3) == ["+a2", "~a6", "+end7"]
    assert reflector.cache.version(Key("shop", "a")) == 6


def test_events_of_two_objects_in_the_wrong_order_lose_neither(server, serve, run, told) -> None:
    server.lists.append(serve.page(5, serve.item("a", 1), serve.item("b", 2)))
    server.watches.append(serve.events(("MODIFIED", serve.item("a", 9)), ("MODIFIED", serve.item("b", 8))))
    run()
    assert told.next(4) == ["+a1", "+b2", "~a9", "~b8"]


def test_a_late_event_of_an_object_that_is_not_known_is_settled_by_a_list(server, serve, run, told) -> None:
    """It may have been deleted since, or its beginning may only now have come: the list knows."""
    server.lists.extend([serve.page(5, serve.item("a", 1)), serve.page(9, serve.item("a", 1))])
    server.watches.append(serve.events(("DELETED", serve.item("gone", 8)), ("ADDED", serve.item("gone", 7))))
    reflector = run()
    server.wait_for("watch", 2)
    assert len(server.seen("list")) == 2
    assert names(reflector) == ["a"]
    assert told.next(1) == ["+a1"]
    assert told.nothing_more()


def test_a_list_older_than_what_was_seen_is_refused_until_a_newer_one_comes(server, serve, run, told) -> None:
    doomed = serve.item("a", 3)
    doomed["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    server.lists.extend(
        [serve.page(5, serve.item("a", 4)), *[serve.page(3, doomed)] * 3, serve.page(8, serve.item("a", 7))]
    )
    server.watches.append(serve.events(serve.expired()))
    run()
    assert told.next(2) == ["+a4", "~a7"]
    assert told.nothing_more()
    assert len(server.seen("list")) == 5


def test_a_server_that_went_back_for_good_is_believed_in_the_end(server, serve, run, told, clock, eventually) -> None:
    """As after etcd was restored from a backup; resource versions then begin again lower."""
    server.lists.extend([serve.page(50, serve.item("a", 40), serve.item("b", 41)), serve.page(9, serve.item("a", 8))])
    server.watches.append(serve.events(serve.expired()))
    reflector = run(clock=clock, stale_list=60)
    assert told.next(2) == ["+a40", "+b41"]
    server.wait_for("list", 4)
    eventually(lambda: type(reflector.problem) is StaleListError)
    assert names(reflector) == ["a", "b"]
    clock.advance(61)
    assert told.next(3) == ["-a", "-b", "+a8"]
    assert names(reflector) == ["a"]


def test_an_event_that_was_lost_for_good_is_made_up_for_by_the_next_list(server, serve, run, told) -> None:
    server.lists.extend([serve.page(1), serve.page(9, serve.item("lost", 2))])
    run(relist=0.1, silence=0.1)
    assert told.next(1) == ["+lost2"]


def test_a_list_that_fails_while_the_watch_still_works_does_not_stop_the_watch(server, serve, run, told) -> None:
    server.lists.extend([serve.page(1), serve.status(500, "InternalError")])
    server.watches.extend([serve.events(end="silence"), serve.events(("ADDED", serve.item("a", 2)))])
    run(relist=0.05, silence=0.1)
    assert told.next(1) == ["+a2"]


def test_an_unreachable_server_is_found_again(server, serve, run, eventually) -> None:
    server.lists.append(serve.page(1))
    server.watches.append(serve.events(("ADDED", serve.item("a", 2)), end="cut"))
    reflector = run(backoff=Backoff(base_seconds=0.2, cap_seconds=0.2))
    eventually(lambda: type(reflector.problem) is UnreachableError)
    server.wait_for("watch", 2)
    eventually(lambda: reflector.problem is None)


def test_an_answer_that_makes_no_sense_is_survived(server, serve, run) -> None:
    server.lists.extend([serve.raw(200, b"{}"), serve.raw(200, b"[1]"), serve.page(5, serve.item("a", 1))])
    reflector = run()
    assert reflector.synced.wait(10)


def test_a_silent_watch_does_not_delay_the_stop(server, serve, run) -> None:
    server.lists.append(serve.page(1))
    reflector = run()
    server.wait_for("watch", 1)
    assert reflector.stop(timeout_seconds=2)


def test_a_stop_between_two_pages_takes_nothing_for_deleted(server, serve, run, told, widgets) -> None:
    server.lists.extend(
        [serve.page(5, serve.item("a", 1), serve.item("b", 2)), serve.page(9, serve.item("a", 1), token="t")]
    )
    server.watches.append(serve.events(serve.expired()))
    reflector = run()
    server.wait_for("list", 4)  # the second page of the new list is the first page again, for ever
    assert reflector.stop()
    assert names(reflector) == ["a", "b"]
