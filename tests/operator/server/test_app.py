from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from limbeck.kube.errors import ForbiddenError, UnreachableError

STARTED = ("run_started", {"job": "emoji", "steps": ["distil", "int8"], "epoch": 1, "attempt": 1})
DISTIL = ("step_started", {"step": "distil", "method": "distil", "index": 1, "total": 2})
WARNING = ("warning", {"message": "the disk is slow"})
JOB = "/api/v1/namespaces/vision/jobs/emoji"


def moved(done: int) -> tuple[str, dict[str, Any]]:
    fields = {"step": "distil", "phase": "train", "done": done, "total": 100, "unit": "batches"}
    return "step_progress", fields


def test_what_a_run_posts_is_shown_and_written_to_the_jobs_status(serve: Any, cluster: Any, build_post: Any) -> None:
    uid = cluster.add_job("emoji")
    served = serve(cluster)
    post = build_post(1, STARTED, DISTIL, WARNING, records=[("distil", 1)])
    reply = served.post(cluster.add_pod("emoji"), post)
    assert (reply.status_code, reply.json()) == (200, {"wanted": "Run", "duplicate": False})

    shown = served.client.get(JOB).json()
    assert (shown["uid"], shown["progress"]["step"], shown["steps"][0]["state"]) == (uid, "distil", "Running")
    assert served.client.get("/api/v1/jobs").json() == {"items": [shown], "next": None}
    history = served.client.get(f"{JOB}/history").json()
    assert [item["kind"] for item in history["items"]] == ["run_started", "step_started", "warning", "record"]
    assert history["items"][2]["body"] == post["events"][2]
    assert history["items"][3]["body"]["loss"] == 1.0

    assert cluster.written.wait(20)
    [distil, _] = cluster.jobs["vision", "emoji"]["status"]["steps"]
    assert distil == {name: value for name, value in shown["steps"][0].items() if value is not None}


def test_two_posts_of_the_same_sequence_count_once(serve: Any, cluster: Any, build_post: Any) -> None:
    cluster.add_job("emoji")
    served, token = serve(cluster), cluster.add_pod("emoji")
    replies = [served.post(token, build_post(1, WARNING)).json() for _ in range(2)]
    assert replies == [{"wanted": "Run", "duplicate": False}, {"wanted": "Run", "duplicate": True}]
    assert len(served.client.get(f"{JOB}/history").json()["items"]) == 1


FINISHED = ("step_finished", {"step": "distil", "seconds": 41.0, "metrics": {"recall@10": 0.5}})
CAPTURE = ("capture_progress", {"step": "distil", "done": 12, "total": 12, "replicas": 1})


def test_what_people_should_know_becomes_an_event_of_the_job_once(serve: Any, cluster: Any, build_post: Any) -> None:
    uid = cluster.add_job("emoji")
    served, token = serve(cluster), cluster.add_pod("emoji")
    post = build_post(1, STARTED, CAPTURE)
    for _ in range(2):  # the second is known by its number
        served.post(token, post)
    served.post(token, build_post(2, CAPTURE, WARNING, FINISHED))
    assert cluster.announced(3) == ["TeacherCaptureStarted", "TeacherStoreReady", "StepCompleted"]
    event = cluster.events[2]
    assert (event["type"], event["note"]) == ("Normal", "step distil is complete: recall@10 0.5")
    assert event["reportingController"] == "limbeck.dev/server"
    assert event["regarding"] == {
        "apiVersion": "limbeck.dev/v1alpha1", "kind": "CompressionJob", "name": "emoji", "namespace": "vision",
        "uid": uid, "resourceVersion": "",
    }  # fmt: skip


def test_neither_a_restart_nor_a_second_replica_repeats_an_event(serve: Any, cluster: Any, build_post: Any) -> None:
    cluster.add_job("emoji")
    token = cluster.add_pod("emoji")
    serve(cluster).post(token, build_post(1, CAPTURE))
    cluster.announced(2)
    serve(cluster).post(token, build_post(1, CAPTURE, FINISHED, run="second-run", epoch=2))
    assert cluster.announced(3) == ["TeacherCaptureStarted", "TeacherStoreReady", "StepCompleted"]


def test_a_server_that_may_write_no_events_still_takes_posts(serve: Any, cluster: Any, build_post: Any) -> None:
    cluster.add_job("emoji")
    served, token = serve(cluster), cluster.add_pod("emoji")
    served.post(token, build_post(1, STARTED))
    cluster.fail("create", ForbiddenError(403, "Forbidden", "may not create events"))
    assert served.post(token, build_post(2, FINISHED)).json() == {"wanted": "Run", "duplicate": False}
    assert cluster.refused.wait(20)
    served.post(token, build_post(3, CAPTURE))
    assert cluster.announced(2) == ["TeacherCaptureStarted", "TeacherStoreReady"]


@pytest.mark.parametrize(("job", "namespace"), [("other", "vision"), ("emoji", "speech"), ("emoji-2", "vision")])
def test_a_token_of_another_jobs_pod_is_refused(
    serve: Any, cluster: Any, build_post: Any, job: str, namespace: str
) -> None:
    cluster.add_job("emoji")
    cluster.add_job(job, namespace)
    served = serve(cluster)
    reply = served.post(cluster.add_pod(job, namespace), build_post(1, WARNING))
    assert (reply.status_code, reply.json()["reason"]) == (403, "WrongJob")
    assert served.client.get(JOB).status_code == 404


def test_a_post_without_a_token_is_told_what_it_needs(serve: Any, cluster: Any, build_post: Any) -> None:
    reply = serve(cluster).post("", build_post())
    assert (reply.status_code, reply.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert "Authorization: Bearer" in reply.json()["message"]


def test_a_suspended_job_is_told_to_write_a_checkpoint(serve: Any, cluster: Any, build_post: Any) -> None:
    cluster.add_job("emoji", suspend=True)
    assert serve(cluster).post(cluster.add_pod("emoji"), build_post()).json()["wanted"] == "Checkpoint"


def test_a_run_that_a_newer_one_replaced_is_told_so(serve: Any, cluster: Any, build_post: Any) -> None:
    cluster.add_job("emoji")
    served, token = serve(cluster), cluster.add_pod("emoji")
    assert served.post(token, build_post(1, epoch=3, run="new-run-")).status_code == 200
    reply = served.post(token, build_post(5, WARNING, epoch=2, run="old-run-"))
    assert (reply.status_code, reply.json()["reason"]) == (409, "StaleRun")


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_post_that_is_too_large_is_refused(serve: Any, cluster: Any, is_chunked: bool) -> None:
    cluster.add_job("emoji")
    served, token = serve(cluster, max_post_bytes=2048), cluster.add_pod("emoji")

    def chunks() -> Iterator[bytes]:
        for _ in range(100):
            yield b" " * 100

    content: Any = chunks() if is_chunked else b" " * 10_000
    headers = {"Authorization": f"Bearer {token}"}
    reply = served.client.post(f"{JOB}/progress", content=content, headers=headers)
    assert (reply.status_code, reply.json()["reason"]) == (413, "PostTooLarge")
    assert cluster.calls == []


@pytest.mark.parametrize(
    ("body", "place"),
    [
        (b"", "the body"),
        (b"[]", "the body"),
        (b"\xff", "the body"),
        (b'{"run": "6f1c0e0a", "epoch": 1, "attempt": 1, "sequence": 0}', "sequence"),
        (b'{"run": "6f1c0e0a", "epoch": 1, "attempt": 1, "sequence": 1, "extra": 1}', "extra"),
        (b'{"run": "6f1c0e0a", "epoch": 1, "attempt": 1, "sequence": 1, "events": [{"event": "x"}]}', "events.0"),
        (b'{"run": "6f1c0e0a", "epoch": 1, "attempt": 1, "sequence": 99999999999}', "sequence"),
    ],
)
def test_a_body_that_is_no_post_is_refused_with_the_place_of_its_fault(
    serve: Any, cluster: Any, body: bytes, place: str
) -> None:
    cluster.add_job("emoji")
    reply = serve(cluster).post(cluster.add_pod("emoji"), body)
    assert (reply.status_code, reply.json()["reason"]) == (422, "InvalidPost")
    assert reply.json()["message"].startswith(f"`{place}`")


def test_a_job_that_posts_too_often_is_slowed_down_and_others_are_not(
    serve: Any, cluster: Any, build_post: Any, clock: Any
) -> None:
    cluster.add_job("emoji")
    cluster.add_job("other")
    served = serve(cluster, posts_per_second=1, posts_burst=3)
    token, other = cluster.add_pod("emoji"), cluster.add_pod("other")
    replies = [served.post(token, build_post(number)) for number in range(1, 6)]
    assert [reply.status_code for reply in replies] == [200, 200, 200, 429, 429]
    assert replies[-1].headers["Retry-After"] == "1"
    assert served.post(other, build_post(1), job="other").status_code == 200
    clock.advance(1)
    assert served.post(token, build_post(4)).status_code == 200


def test_while_the_api_server_is_away_a_new_token_has_to_wait_and_a_known_one_does_not(
    serve: Any, cluster: Any, build_post: Any, clock: Any
) -> None:
    cluster.add_job("emoji")
    served, token = serve(cluster), cluster.add_pod("emoji")
    cluster.fail("create", UnreachableError("refused"))
    reply = served.post(token, build_post(1))
    assert (reply.status_code, reply.headers["Retry-After"]) == (503, "5")
    assert served.post(token, build_post(1)).status_code == 200
    clock.advance(10)
    cluster.fail("get", UnreachableError("refused"))
    assert served.post(token, build_post(2)).status_code == 200


def test_a_server_that_lost_its_history_goes_on_from_what_the_status_shows(
    serve: Any, cluster: Any, build_post: Any, tmp_path: Path
) -> None:
    cluster.add_job("emoji")
    token = cluster.add_pod("emoji")
    first = serve(cluster)
    first.post(token, build_post(1, STARTED, DISTIL, moved(10)))
    assert cluster.written.wait(20)
    anew = serve(cluster, database_url=f"sqlite:///{tmp_path / 'another.sqlite'}")
    anew.post(token, build_post(7, moved(60)))
    shown = anew.client.get(JOB).json()
    assert [(step["name"], step["state"], step["progressPercent"]) for step in shown["steps"]] == [
        ("distil", "Running", 60),
        ("int8", "Pending", 0),
    ]


def test_no_job_of_that_name_is_a_plain_answer(serve: Any, cluster: Any) -> None:
    served = serve(cluster)
    for path in (JOB, f"{JOB}/history", f"{JOB}/stream"):
        reply = served.client.get(path)
        assert (reply.status_code, reply.json()["reason"]) == (404, "NotFound")


def test_lists_come_in_pages(serve: Any, cluster: Any, build_post: Any) -> None:
    served = serve(cluster)
    for name in ("c", "a", "b"):
        cluster.add_job(name)
        served.post(cluster.add_pod(name), build_post(1, WARNING, WARNING, WARNING), job=name)
    first = served.client.get("/api/v1/jobs", params={"limit": 2, "namespace": "vision"}).json()
    rest = served.client.get("/api/v1/jobs", params={"limit": 2, "after": first["next"]}).json()
    assert [[item["name"] for item in page["items"]] for page in (first, rest)] == [["a", "b"], ["c"]]
    assert rest["next"] is None

    path = "/api/v1/namespaces/vision/jobs/a/history"
    begun = served.client.get(path, params={"limit": 2}).json()
    ended = served.client.get(path, params={"limit": 2, "after": begun["next"]}).json()
    assert (len(begun["items"]), len(ended["items"]), ended["next"]) == (2, 1, None)
    assert served.client.get(path, params={"kind": "record"}).json()["items"] == []


@pytest.mark.parametrize("after", ["x", "e30=", "WzEsMl0=", "\u00e4"])
def test_a_place_that_no_page_gave_is_refused(serve: Any, cluster: Any, after: str) -> None:
    assert serve(cluster).client.get("/api/v1/jobs", params={"after": after}).status_code == 422


def events_of(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    name = ""
    for line in lines:
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        if line.startswith("data: "):
            yield {"event": name, **json.loads(line.removeprefix("data: "))}


def test_a_stream_tells_where_a_job_stands_and_then_each_change(serve: Any, cluster: Any, build_post: Any) -> None:
    cluster.add_job("emoji")
    # It would look by itself only after a day: what comes, comes because a post was taken.
    served, token = serve(cluster, stream_poll_seconds=86_400), cluster.add_pod("emoji")
    served.post(token, build_post(1, STARTED, DISTIL, moved(10)))
    with served.client.stream("GET", f"{JOB}/stream") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        events = events_of(stream.iter_lines())
        first = next(events)
        assert (first["event"], first["steps"][0]["progressPercent"]) == ("progress", 10)
        served.post(token, build_post(2, moved(60)))
        assert next(events)["steps"][0]["progressPercent"] == 60


def test_a_stream_finds_what_another_replica_took(serve: Any, cluster: Any, build_post: Any) -> None:
    cluster.add_job("emoji")
    one, other = serve(cluster, stream_poll_seconds=0.05), serve(cluster)
    token = cluster.add_pod("emoji")
    one.post(token, build_post(1, STARTED, DISTIL, moved(10)))
    with one.client.stream("GET", f"{JOB}/stream") as stream:
        events = events_of(stream.iter_lines())
        next(events)
        other.post(token, build_post(2, moved(60)))
        assert next(events)["steps"][0]["progressPercent"] == 60


def test_no_more_clients_may_follow_than_there_is_room_for(serve: Any, cluster: Any, build_post: Any) -> None:
    cluster.add_job("emoji")
    served = serve(cluster, max_streams=1)
    served.post(cluster.add_pod("emoji"), build_post(1, WARNING))
    with served.client.stream("GET", f"{JOB}/stream") as stream:
        events = events_of(stream.iter_lines())
        next(events)
        reply = served.client.get(f"{JOB}/stream")
        assert (reply.status_code, reply.json()["reason"]) == (503, "TooManyStreams")


def test_the_server_is_alive_and_ready(serve: Any, cluster: Any) -> None:
    client: httpx.Client = serve(cluster).client
    assert [client.get(path).text for path in ("/livez", "/readyz")] == ["ok", "ok"]


def test_metrics_count_by_outcome_and_name_no_job(serve: Any, cluster: Any, build_post: Any) -> None:
    cluster.add_job("emoji")
    served, token = serve(cluster), cluster.add_pod("emoji")
    for post in (build_post(1, WARNING), build_post(1, WARNING), {}):
        served.post(token, post)
    text = served.client.get("/metrics").text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    posts = {sample.labels.get("outcome"): sample.value for sample in families["limbeck_server_posts"].samples}
    assert posts["taken"] == posts["duplicate"] == posts["InvalidPost"] == 1
    ours = {name for name in families if name.startswith("limbeck") and not name.endswith("_created")}
    assert ours == {
        "limbeck_server_posts",
        "limbeck_server_token_reviews",
        "limbeck_server_status_patches",
        "limbeck_server_post_seconds",
        "limbeck_server_streams",
        "limbeck_server_jobs_behind",
    }
    assert "emoji" not in text
    assert token not in text
