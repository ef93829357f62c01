"""Events of a run from limbeck's server as it really is, another process with a history."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from limbeck.api.posts import ProgressPost
from limbeck.cli.server_events import NothingYetError, ServerError, ServerEvents
from limbeck.server.history import History, JobKey

pytestmark = pytest.mark.slow

AT = "2026-11-24T11:59:00Z"
STARTED = {"time": AT, "event": "run_started", "job": "emoji", "steps": ["distil"], "epoch": 1, "attempt": 1}
STEP = {"time": AT, "event": "step_started", "step": "distil", "method": "distil", "index": 1, "total": 1}
WORK = {
    "time": AT,
    "event": "step_progress",
    "step": "distil",
    "phase": "train",
    "done": 3,
    "total": 9,
    "unit": "batches",
}
RECORD = {"step": "distil", "update": 1, "epoch": 0.1, "loss": 1.25}


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    history = History(f"sqlite:///{tmp_path / 'server.sqlite'}", time.time)
    yield history
    history.close()


@pytest.fixture
def server_url(api, history: History, tmp_path: Path) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    environment = os.environ | {
        "KUBECONFIG": str(api.kubeconfig),
        "LIMBECK_SERVER_HOST": "127.0.0.1",
        "LIMBECK_SERVER_PORT": str(port),
        "LIMBECK_SERVER_DATABASE_URL": f"sqlite:///{tmp_path / 'server.sqlite'}",
        # How soon it finds what another replica, here the test, took.
        "LIMBECK_SERVER_STREAM_POLL_SECONDS": "0.05",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "limbeck.server"],
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if "running on" in line:
            break
    else:
        raise AssertionError("".join(said))
    drain = threading.Thread(target=process.stderr.read, daemon=True)
    drain.start()
    yield f"http://127.0.0.1:{port}"
    process.kill()
    process.wait()
    drain.join()
    process.stderr.close()


def record(history: History, sequence: int, *events: dict[str, Any], records: tuple[dict[str, Any], ...] = ()) -> None:
    post = {"run": "0123456789", "epoch": 1, "attempt": 1, "sequence": sequence, "events": events, "records": records}
    history.record(JobKey("uid-of-emoji", "vision", "emoji"), ProgressPost.model_validate(post))


def test_events_come_once_each_and_progress_with_each_change(history, server_url) -> None:
    with ServerEvents(server_url, "vision", "emoji") as server:
        server.check()
        with pytest.raises(NothingYetError, match="no run of job emoji in namespace vision has posted yet"):
            next(server.news())
        record(history, 1, STARTED, STEP, records=(RECORD,))
        news = server.news()
        first = next(news)
        assert first is not None
        assert (first["uid"], first["ended"]) == ("uid-of-emoji", None)
        assert first["steps"][0]["state"] == "Running"
        assert [event["event"] for event in server.fresh("uid-of-emoji")] == ["run_started", "step_started"]
        assert list(server.fresh("uid-of-emoji")) == []
        record(history, 2, WORK)
        second = next(state for state in news if state is not None)
        assert second["steps"][0]["message"] == "train: 3 of 9 batches"
        assert list(server.fresh("uid-of-another-job-of-that-name")) == []


def test_a_watch_on_the_real_server_shows_its_events_and_the_jobs_end(
    api, limbeck, history, server_url, build_stored, answer
) -> None:
    finished = {"time": AT, "event": "run_finished", "state": "Complete", "card": "s3://results/emoji/README.md"}
    record(history, 1, STARTED, STEP, {"time": AT, "event": "warning", "message": "the disk is slow"}, finished)
    done = build_stored("Complete", version=8)
    api.job(build_stored("Running"), ("MODIFIED", done))
    path = "/apis/limbeck.dev/v1alpha1/namespaces/vision/compressionjobs/emoji"
    api.tell(path, answer(body=done))
    result = limbeck("watch", "emoji", "--server", server_url, kubeconfig=api.kubeconfig)
    assert result.exit_code == 0
    assert "warning: the disk is slow" in result.stdout
    assert "card: s3://results/emoji/README.md" in result.stdout


def test_what_is_not_the_server_is_a_server_error(api, answer) -> None:
    api.tell("/api/v1/namespaces/vision/jobs/emoji/history", answer(body=b"welcome to nginx"))
    with ServerEvents(api.url, "vision", "emoji") as server:
        with pytest.raises(ServerError, match="not limbeck's server"):
            list(server.fresh("u"))
        with pytest.raises(ServerError, match="404"):
            server.check()


def test_a_certificate_file_that_is_no_good_is_named(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match=r"--server-ca .*absent.* cannot be used"):
        ServerEvents("https://x", "vision", "emoji", str(tmp_path / "absent.pem"))
