"""`limbeck local`: run a job on this machine, the runtime in a child process, its events shown here.

The child writes one JSON event a line on standard output. Its standard input is a life line: when this process
is gone, however it went, the child reads the end of the file and stops after a checkpoint.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, Any

from limbeck import names
from limbeck.api.v1alpha1.job import CompressionJob
from limbeck.cli.exits import JOB_FAILED, OK, USAGE
from limbeck.cli.jobfile import JobFileError, resolve_paths
from limbeck.cli.validate import read_runnable_job
from limbeck.cli.view import View

_EXITS = {names.EXIT_OK: OK, names.EXIT_INVALID_SPEC: USAGE, names.EXIT_INTERRUPTED: names.EXIT_INTERRUPTED}


def local(source: str, *, log_format: str, metrics_port: int | None, verbose: bool) -> int:
    """Run the job in the file `source` to its end and return the exit code."""
    try:
        job = read_runnable_job(source)
    except JobFileError as error:
        print(error, file=sys.stderr)
        return USAGE
    base = Path.cwd() if source == "-" else Path(source).resolve().parent
    job = resolve_paths(job, base)
    _warn_about_cluster_fields(job)
    with tempfile.TemporaryDirectory(prefix="limbeck-") as scratch:
        job_file = Path(scratch) / "job.json"
        job_file.write_text(json.dumps(job.to_wire()), encoding="utf-8")
        command = [sys.executable, "-m", "limbeck_runtime.driver", "--job", str(job_file), "--lifeline"]
        if metrics_port is not None:
            command += ["--metrics-port", str(metrics_port)]
        log_path = Path(scratch) / "runtime.log"
        with log_path.open("w+", encoding="utf-8", errors="replace") as log:
            code = _run(command, log_format=log_format, log=None if verbose else log, source=source)
            if code not in (*_EXITS, names.EXIT_GATE_FAILED, names.EXIT_USER_CODE_ERROR) and not verbose:
                _show_tail(log)
    return _EXITS.get(code, JOB_FAILED)


def _run(command: list[str], *, log_format: str, log: IO[str] | None, source: str) -> int:
    view = View.choose(log_format, resume_command=shlex.join(["limbeck", "local", source]))
    # Teacher and student share this machine's cores. Threads that spin while they wait for each other would take them
    # from one another: seven times slower was seen with twice as many threads as cores.
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, "PYTHONUNBUFFERED": "1"}
    # A session of its own: Ctrl-C reaches the child through us, once, as a request to stop.
    child = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        start_new_session=True,
        env=environment,
    )
    assert child.stdout is not None
    with _signals_to(child) as asked, view:
        for event in _events(child.stdout):
            if asked.is_set():
                asked.clear()
                view.stopping()
            view.show(event)
        code = child.wait()
        view.close(code)
    return code


@contextmanager
def _signals_to(child: subprocess.Popen[str]) -> Iterator[threading.Event]:
    """Pass SIGINT and SIGTERM on as a request to stop; a second one ends the child, and all it started, at once.

    The event is set by the first one.
    """
    times = 0
    asked = threading.Event()

    def forward(number: int, frame: FrameType | None) -> None:
        nonlocal times
        times += 1
        asked.set()
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL) if times > 1 else child.send_signal(signal.SIGTERM)

    previous = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def _events(stream: IO[str]) -> Iterator[dict[str, Any]]:
    """Events among the child's lines; what is no event is user code's own print, and goes to standard error."""
    for line in stream:
        if line.startswith(names.OUTCOME_PREFIX):
            continue
        try:
            event = json.loads(line)
        except json.JSONDecodeError:
            event = None
        if isinstance(event, dict) and "event" in event:
            yield event
        else:
            print(line, end="", file=sys.stderr)


def _warn_about_cluster_fields(job: CompressionJob) -> None:
    """A setting that a local run ignores is named, never dropped in silence."""
    ignored = [
        field
        for field, given in (
            ("spec.cluster.image", job.spec.cluster.image),
            ("spec.cluster.head.template", job.spec.cluster.head.template),
            ("spec.cluster.teacher.template", job.spec.cluster.teacher.template),
            ("spec.cluster.teacher.spot", job.spec.cluster.teacher.spot),
            ("spec.cluster.student.template", job.spec.cluster.student.template),
            ("spec.activeDeadlineSeconds", job.spec.active_deadline_seconds),
            ("spec.ttlSecondsAfterFinished", job.spec.ttl_seconds_after_finished),
        )
        if given
    ]
    if ignored:
        print(f"limbeck local ignores what only a cluster has: {', '.join(ignored)}", file=sys.stderr)


def _show_tail(log: IO[str]) -> None:
    """The end of the runtime's log, when it died without saying why."""
    log.flush()
    log.seek(0)
    lines = log.read().splitlines()[-40:]
    if lines:
        print("The runtime ended without a result; the end of its log:", file=sys.stderr)
        print("\n".join(lines), file=sys.stderr)
