"""A driver that was told of a server posts what it does there, and stops when the server wants it to."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

Job = dict[str, Any]
# `server(wanted)`: the environment of a driver, and the events that arrive.
Server = Callable[[str], tuple[dict[str, str], list[dict[str, Any]]]]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with ExitStack() as stack:

        def start(wanted: str) -> tuple[dict[str, str], list[dict[str, Any]]]:
            events: list[dict[str, Any]] = []

            class Handler(BaseHTTPRequestHandler):
                def do_POST(self) -> None:
                    body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                    events.extend(body["events"])
                    self.send_response(200)
                    self.end_headers()
                    self.wfile.write(json.dumps({"wanted": wanted}).encode())

                def log_message(self, format: str, *args: Any) -> None:
                    pass

            listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
            stack.callback(listening.server_close)
            thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.02})
            thread.start()
            stack.callback(thread.join)
            stack.callback(listening.shutdown)
            token_file = tmp_path / "token"
            token_file.write_text("token")
            url = f"http://127.0.0.1:{listening.server_address[1]}/progress"
            return {"LIMBECK_PROGRESS_URL": url, "LIMBECK_PROGRESS_TOKEN_FILE": str(token_file)}, events

        yield start


def test_a_run_that_fails_has_told_the_server_how(
    drive: Callable[..., Any], classification: Callable[..., Job], server: Server, tmp_path: Path
) -> None:
    environment, events = server("Run")
    (tmp_path / "my_models.py").write_text("def broken():\n    raise KeyError('mine')\n")
    model = {"loader": "Python", "function": "my_models:broken", "imageSize": 16}
    job = classification(tmp_path / "out", student=model)
    ended = drive(job, environment={"PYTHONPATH": str(tmp_path), **environment})
    assert ended.code == 11
    kinds = [event["event"] for event in events]
    assert (kinds[0], kinds[-1]) == ("run_started", "run_finished")
    assert events[-1] == ended.events[-1]


@pytest.mark.slow
def test_a_run_that_the_server_wants_to_stop_ends_as_by_a_signal(
    drive: Callable[..., Any], classification: Callable[..., Job], server: Server, tmp_path: Path
) -> None:
    environment, events = server("Checkpoint")
    ended = drive(classification(tmp_path / "out"), environment=environment)
    assert (ended.code, ended.outcome["reason"]) == (130, "Stopped")
    assert (events[-1]["event"], events[-1]["state"]) == ("run_finished", "Stopped")
