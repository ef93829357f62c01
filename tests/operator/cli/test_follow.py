"""Following one job through watches that end, are cut, grow too old, or say nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from limbeck.cli.follow import Patience, TimeIsUpError, follow
from limbeck.kube.errors import KubeError, UnreachableError

JOBS = "/apis/limbeck.dev/v1alpha1/namespaces/vision/compressionjobs"
EXPIRED = {"type": "ERROR", "object": {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}}


@dataclass
class Waiting:
    """A clock that moves when somebody waits."""

    now: float = 0.0
    pauses: list[float] = field(default_factory=list)
    troubles: list[KubeError] = field(default_factory=list)

    def patience(self, seconds: float = 120.0) -> Patience:
        return Patience(seconds, pause=self.pause, clock=lambda: self.now, told=self.troubles.append)

    def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


@pytest.fixture
def waiting() -> Waiting:
    return Waiting()


@pytest.fixture
def stored(build_stored: Callable[..., dict[str, Any]]) -> Callable[[int], dict[str, Any]]:
    return lambda version: build_stored("Running", version=version)


def versions(states: Iterator[dict[str, Any] | None], number: int) -> list[str | None]:
    found = [next(states) for _ in range(number)]
    return [None if state is None else state["metadata"]["resourceVersion"] for state in found]


def test_the_state_now_comes_first_and_then_each_change(api, cluster, stored, waiting) -> None:
    api.job(stored(7), ("MODIFIED", stored(8)), ("MODIFIED", stored(9)))
    states = follow(cluster, stored(7), patience=waiting.patience())
    assert versions(states, 3) == ["7", "8", "9"]
    assert api.requests[0].query["fieldSelector"] == "metadata.name=emoji"
    assert api.requests[1].query["resourceVersion"] == "7"


def test_a_state_that_was_shown_is_not_shown_again(api, cluster, stored, waiting) -> None:
    bookmark = ("BOOKMARK", {"kind": "CompressionJob", "metadata": {"resourceVersion": "8"}})
    api.job(stored(7), ("MODIFIED", stored(7)), bookmark, ("MODIFIED", stored(9)))
    assert versions(follow(cluster, stored(7), patience=waiting.patience()), 2) == ["7", "9"]


def test_a_watch_that_ends_goes_on_from_where_it_was_without_a_list(api, cluster, stored, waiting) -> None:
    api.job(stored(7), ("MODIFIED", stored(8)), end="close")
    api.watch(JOBS, ("MODIFIED", stored(9)))
    assert versions(follow(cluster, stored(7), patience=waiting.patience()), 3) == ["7", "8", "9"]
    assert [request.query.get("resourceVersion") for request in api.requests] == [None, "7", "8"]
    assert len(waiting.pauses) == 1, "a watch that ended at once is not begun again at once"


def test_a_watch_that_is_cut_is_preceded_by_a_list_and_the_trouble_is_told_once(api, cluster, stored, waiting) -> None:
    api.job(stored(7), end="cut")
    api.watch(JOBS, end="cut")
    api.watch(JOBS, ("MODIFIED", stored(9)))
    assert versions(follow(cluster, stored(7), patience=waiting.patience()), 2) == ["7", "9"]
    assert [request.query.get("watch") for request in api.requests] == [None, "true"] * 3
    assert len(waiting.troubles) == 1
    assert len(waiting.pauses) == 2


def test_a_version_that_is_too_old_means_a_new_list(api, cluster, stored, waiting, answer) -> None:
    api.job(stored(7), end="close")
    api.answers[f"watch {JOBS}"] = [answer(events=[EXPIRED])]
    api.watch(JOBS, ("MODIFIED", stored(9)))
    assert versions(follow(cluster, stored(7), patience=waiting.patience()), 2) == ["7", "9"]
    assert [request.query.get("watch") for request in api.requests] == [None, "true"] * 2
    assert waiting.troubles == []


def test_a_version_that_is_always_too_old_is_asked_for_ever_more_slowly(api, cluster, stored, waiting, answer) -> None:
    api.job(stored(7))
    api.answers[f"watch {JOBS}"] = [answer(events=[EXPIRED])]
    with pytest.raises(TimeIsUpError):
        list(follow(cluster, stored(7), timeout_seconds=100, patience=waiting.patience()))
    assert len(api.requests) < 50


def test_trouble_that_lasts_is_raised_in_the_end(api, cluster, stored, waiting) -> None:
    api.job(stored(7), end="cut")
    api.answers[JOBS] = api.answers[JOBS][:1]
    api.status(JOBS, 503, "ServiceUnavailable")
    with pytest.raises(KubeError, match="told ServiceUnavailable"):
        list(follow(cluster, stored(7), patience=waiting.patience(seconds=60)))
    assert 60 < waiting.now < 90
    assert len(waiting.troubles) == 1


def test_a_refusal_is_raised_at_once(api, cluster, stored, waiting) -> None:
    api.status(JOBS, 403, "Forbidden")
    with pytest.raises(KubeError, match="told Forbidden"):
        list(follow(cluster, stored(7), patience=waiting.patience()))
    assert waiting.pauses == []


@pytest.mark.parametrize("how", ["deleted", "replaced", "absent"])
def test_a_job_that_is_gone_is_the_last_word(api, cluster, stored, build_stored, waiting, how) -> None:
    other = build_stored("Running", version=9)
    other["metadata"]["uid"] = "another"
    later = {"deleted": [("DELETED", stored(9))], "replaced": [("ADDED", other)], "absent": []}[how]
    api.job(other if how == "absent" else stored(7), *later)
    assert list(follow(cluster, stored(7), patience=waiting.patience()))[-1] is None


def test_time_is_up_while_a_watch_says_nothing(api, cluster, stored) -> None:
    api.job(stored(7), end="close")
    states = follow(cluster, stored(7), timeout_seconds=0.3)
    assert versions(states, 1) == ["7"]
    with pytest.raises(TimeIsUpError):
        next(states)
    assert api.requests[1].query["timeoutSeconds"] == "1"


def test_a_server_that_never_answered_is_unreachable(api, cluster, stored, waiting) -> None:
    api.close()
    with pytest.raises(UnreachableError):
        list(follow(cluster, stored(7), patience=waiting.patience(seconds=5)))
