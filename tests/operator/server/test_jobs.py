from __future__ import annotations

from typing import Any

import pytest

from limbeck.api.posts import Wanted
from limbeck.kube.errors import ServerError, UnreachableError
from limbeck.server.cluster import JOBS
from limbeck.server.jobs import Jobs
from limbeck.server.refusal import Refusal


@pytest.fixture
def jobs(cluster: Any, clock: Any) -> Jobs:
    return Jobs(cluster, clock, cache_seconds=2)


def test_a_job_is_read_once_in_a_while(jobs: Jobs, cluster: Any, clock: Any) -> None:
    cluster.add_job("emoji", attempt=3)
    for _ in range(5):
        assert jobs.current("vision", "emoji").attempt == 3
    assert cluster.count("get", JOBS) == 1
    clock.advance(3)
    jobs.current("vision", "emoji")
    assert cluster.count("get", JOBS) == 2


def test_a_suspended_job_is_to_write_a_checkpoint(jobs: Jobs, cluster: Any, clock: Any) -> None:
    cluster.add_job("emoji")
    assert jobs.current("vision", "emoji").wanted is Wanted.RUN
    cluster.jobs["vision", "emoji"]["spec"]["suspend"] = True
    clock.advance(3)
    assert jobs.current("vision", "emoji").wanted is Wanted.CHECKPOINT


def test_a_job_that_is_being_deleted_is_to_write_a_checkpoint(jobs: Jobs, cluster: Any) -> None:
    cluster.add_job("emoji")
    cluster.jobs["vision", "emoji"]["metadata"]["deletionTimestamp"] = "2026-11-24T07:00:00Z"
    assert jobs.current("vision", "emoji").wanted is Wanted.CHECKPOINT


def test_a_job_without_a_status_yet_is_at_no_attempt(jobs: Jobs, cluster: Any) -> None:
    cluster.add_job("emoji")
    del cluster.jobs["vision", "emoji"]["status"]
    assert jobs.current("vision", "emoji").attempt == 0


def test_a_status_that_another_version_wrote_is_begun_anew(jobs: Jobs, cluster: Any) -> None:
    cluster.add_job("emoji")
    cluster.jobs["vision", "emoji"]["status"]["steps"] = [{"name": "distil", "state": "Dreaming"}]
    assert jobs.current("vision", "emoji").standing.steps == []


def test_a_job_that_is_not_there_is_not_found(jobs: Jobs, cluster: Any, clock: Any) -> None:
    cluster.add_job("emoji")
    jobs.current("vision", "emoji")
    cluster.jobs.clear()
    clock.advance(3)
    with pytest.raises(Refusal, match="no CompressionJob emoji in namespace vision") as caught:
        jobs.current("vision", "emoji")
    assert caught.value.status == 404


@pytest.mark.parametrize("fault", [UnreachableError("refused"), ServerError(500, "InternalError", "etcd is gone")])
def test_without_the_api_server_a_job_is_believed_for_a_minute(
    jobs: Jobs, cluster: Any, clock: Any, fault: Exception
) -> None:
    uid = cluster.add_job("emoji")
    jobs.current("vision", "emoji")
    clock.advance(59)
    cluster.fail("get", fault)
    assert jobs.current("vision", "emoji").uid == uid
    clock.advance(2)
    cluster.fail("get", fault)
    with pytest.raises(Refusal) as caught:
        jobs.current("vision", "emoji")
    assert caught.value.status == 503
