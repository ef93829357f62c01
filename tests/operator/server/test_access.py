from __future__ import annotations

from typing import Any

import pytest

from limbeck.kube.errors import ForbiddenError, ServerError, TooManyRequestsError, UnreachableError
from limbeck.server.access import Access, check_belongs
from limbeck.server.cluster import TOKEN_REVIEWS
from limbeck.server.jobs import Jobs
from limbeck.server.metrics import Metrics
from limbeck.server.refusal import Refusal

AUDIENCE = "limbeck.dev/server"


@pytest.fixture
def access(cluster: Any, clock: Any) -> Access:
    return Access(cluster, AUDIENCE, Metrics(), clock, cache_seconds=30, reviews_per_second=5)


@pytest.fixture
def jobs(cluster: Any, clock: Any) -> Jobs:
    return Jobs(cluster, clock, cache_seconds=2)


def refusal(access: Access, token: str) -> tuple[int, str]:
    with pytest.raises(Refusal) as caught:
        access.poster_of(token)
    return caught.value.status, caught.value.reason


def test_a_token_tells_pod_job_and_attempt(access: Access, cluster: Any) -> None:
    poster = access.poster_of(cluster.add_pod("emoji", attempt=2))
    assert (poster.namespace, poster.pod, poster.job, poster.attempt) == ("vision", "emoji-2-x7k2p-head", "emoji", 2)


def test_a_token_is_reviewed_once_in_a_while(access: Access, cluster: Any, clock: Any) -> None:
    token = cluster.add_pod("emoji")
    for _ in range(5):
        access.poster_of(token)
    assert cluster.count("create", TOKEN_REVIEWS) == 1
    clock.advance(31)
    access.poster_of(token)
    assert cluster.count("create", TOKEN_REVIEWS) == 2


def test_a_token_that_is_revoked_is_refused_after_the_cache_has_forgotten_it(
    access: Access, cluster: Any, clock: Any
) -> None:
    token = cluster.add_pod("emoji")
    access.poster_of(token)
    del cluster.tokens[token]
    clock.advance(31)
    assert refusal(access, token) == (401, "Unauthorized")


def test_a_bad_token_is_reviewed_once_in_a_while_too(access: Access, cluster: Any) -> None:
    assert [refusal(access, "made-up") for _ in range(5)] == [(401, "Unauthorized")] * 5
    assert cluster.count("create", TOKEN_REVIEWS) == 1


def test_made_up_tokens_do_not_reach_the_api_server_without_bound(access: Access, cluster: Any, clock: Any) -> None:
    answers = [refusal(access, f"made-up-{number}")[0] for number in range(50)]
    assert cluster.count("create", TOKEN_REVIEWS) == answers.count(401) == 10
    assert answers.count(429) == 40
    clock.advance(1)
    access.poster_of(cluster.add_pod("emoji"))


@pytest.mark.parametrize("token", ["", "x" * 20_000])
def test_what_cannot_be_a_token_is_not_asked_about(access: Access, cluster: Any, token: str) -> None:
    assert refusal(access, token) == (401, "Unauthorized")
    assert cluster.calls == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"authenticated": False}, (401, "Unauthorized")),
        ({"audiences": ["https://kubernetes.default.svc"]}, (401, "Unauthorized")),
        ({"audiences": None}, (401, "Unauthorized")),
        ({"user": None}, (403, "NotAPod")),
        ({"user": {"username": "jane", "extra": {}}}, (403, "NotAPod")),
        ({"user": {"username": "system:serviceaccount:vision:runtime"}}, (403, "NotAPod")),
    ],
)
def test_a_review_that_does_not_name_a_pod_for_our_audience_is_refused(
    access: Access, cluster: Any, change: dict[str, Any], expected: tuple[int, str]
) -> None:
    token = cluster.add_pod("emoji")
    cluster.tokens[token] |= change
    assert refusal(access, token) == expected


def test_a_token_of_a_pod_that_is_gone_is_refused(access: Access, cluster: Any) -> None:
    token = cluster.add_pod("emoji")
    cluster.pods.clear()
    assert refusal(access, token) == (401, "Unauthorized")


def test_a_token_of_an_earlier_pod_of_the_same_name_is_refused(access: Access, cluster: Any) -> None:
    token = cluster.add_pod("emoji")
    cluster.add_pod("emoji")
    assert refusal(access, token) == (401, "Unauthorized")


@pytest.mark.parametrize(
    "fault",
    [
        UnreachableError("refused"),
        ServerError(500, "InternalError", "etcd is gone"),
        TooManyRequestsError(429, "TooManyRequests", "later", 7),
        ForbiddenError(403, "Forbidden", "no right to review tokens"),
    ],
)
@pytest.mark.parametrize("verb", ["create", "get"])
def test_no_answer_from_the_api_server_refuses_for_now_and_is_not_remembered(
    access: Access, cluster: Any, fault: Exception, verb: str
) -> None:
    token = cluster.add_pod("emoji")
    cluster.fail(verb, fault)
    with pytest.raises(Refusal) as caught:
        access.poster_of(token)
    assert caught.value.status == 503
    assert caught.value.retry_after_seconds == (7 if isinstance(fault, TooManyRequestsError) else 5)
    assert token not in caught.value.message
    assert access.poster_of(token).job == "emoji"


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({}, None),
        ({"labels": {}}, (403, "WrongJob")),
        ({"labels": {"limbeck.dev/job": "other", "limbeck.dev/attempt": "2"}}, (403, "WrongJob")),
        ({"labels": {"limbeck.dev/job": "emoji"}}, (403, "WrongJob")),
        ({"labels": {"limbeck.dev/job": "emoji", "limbeck.dev/attempt": "\u0662"}}, (403, "WrongJob")),
        ({"ownerReferences": []}, (403, "WrongJob")),
        ({"creationTimestamp": "2026-11-24T05:59:59Z"}, (403, "WrongJob")),
    ],
)
def test_a_pod_must_be_labelled_owned_and_as_young_as_the_job(
    access: Access, jobs: Jobs, cluster: Any, metadata: dict[str, Any], expected: tuple[int, str] | None
) -> None:
    cluster.add_job("emoji", attempt=2)
    poster = access.poster_of(cluster.add_pod("emoji", attempt=2, **metadata))
    assert answer(poster, jobs) == expected


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, None),
        ({"kind": "ReplicaSet", "apiVersion": "apps/v1"}, (403, "WrongJob")),
        ({"apiVersion": "other.io/v1"}, (403, "WrongJob")),
        ({"name": "other-2-x7k2p"}, (403, "WrongJob")),
        ({"name": "emoji-1-x7k2p"}, (403, "WrongJob")),
        ({"controller": False}, (403, "WrongJob")),
        ({"kind": "CompressionJob", "apiVersion": "limbeck.dev/v1alpha1", "name": "x", "uid": "uid-1"}, None),
        ({"kind": "CompressionJob", "apiVersion": "limbeck.dev/v1alpha1", "name": "x", "uid": "u"}, (403, "WrongJob")),
    ],
)
def test_the_owner_must_be_the_attempts_ray_cluster_or_the_job(
    access: Access, jobs: Jobs, cluster: Any, change: dict[str, Any], expected: tuple[int, str] | None
) -> None:
    assert cluster.add_job("emoji", attempt=2) == "uid-1"
    token = cluster.add_pod("emoji", attempt=2)
    cluster.pods["vision", "emoji-2-x7k2p-head"]["metadata"]["ownerReferences"][0] |= change
    assert answer(access.poster_of(token), jobs) == expected


@pytest.mark.parametrize(("attempt", "expected"), [(1, (409, "StaleAttempt")), (2, None), (3, None)])
def test_a_pod_of_an_attempt_that_is_over_is_refused(
    access: Access, jobs: Jobs, cluster: Any, attempt: int, expected: tuple[int, str] | None
) -> None:
    cluster.add_job("emoji", attempt=2)
    assert answer(access.poster_of(cluster.add_pod("emoji", attempt=attempt)), jobs) == expected


def answer(poster: Any, jobs: Jobs) -> tuple[int, str] | None:
    try:
        check_belongs(poster, jobs.current("vision", "emoji"))
    except Refusal as found:
        return found.status, found.reason
    return None
