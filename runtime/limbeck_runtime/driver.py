"""The driver: reads one resolved job, runs its pipeline, and says how it ended.

    python -m limbeck_runtime.driver --job job.json

Events go to standard output as JSON lines, everything else to standard error. The exit code tells whether another
attempt makes sense (see `limbeck.names`), and the last line repeats the outcome as JSON for whoever reads only the log.
SIGTERM and SIGINT ask for a checkpoint and an orderly stop.
"""

from __future__ import annotations

import argparse
import errno
import json
import logging
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from limbeck import names
from limbeck.api.plan import derive_plan
from limbeck.api.progress import RunState
from limbeck.api.support import unsupported
from limbeck.api.v1alpha1.job import CompressionJob
from limbeck_runtime.errors import InterruptedRunError, InvalidSpecError, RunError
from limbeck_runtime.fence import FencedError
from limbeck_runtime.names import LOOPBACK
from limbeck_runtime.storage_backend import StorageError
from limbeck_runtime.telemetry.events import EventLog

if TYPE_CHECKING:
    from limbeck.api.report import Report
    from limbeck_runtime.context import Context

# Something that may be over when it is tried again.
_EXIT_ERROR = 1


@dataclass(frozen=True)
class Outcome:
    """How a run ended, for machines."""

    exit_code: int
    reason: str
    message: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job and return the exit code."""
    options = _parser().parse_args(arguments)
    stop = threading.Event()
    _stop_on_signals(stop)
    if options.lifeline:
        threading.Thread(target=_stop_at_end_of_input, args=(stop,), name="lifeline", daemon=True).start()
    outcome = _run(options, stop)
    try:
        print(f"{names.OUTCOME_PREFIX} {json.dumps(asdict(outcome))}", flush=True)
    except OSError:
        # Whoever started us is gone. What is left in the buffer must not fail once more when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return outcome.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="limbeck_runtime.driver", description="Run one CompressionJob.")
    parser.add_argument("--job", type=Path, required=True, help="resolved job as JSON")
    parser.add_argument("--attempt", type=int, default=1, help="number of this attempt, for people")
    parser.add_argument("--metrics-port", type=int, help="serve Prometheus metrics; 0 takes a free port")
    parser.add_argument(
        "--metrics-host",
        default=LOOPBACK,
        help="address at which they are served, %(default)s unless told; 0.0.0.0 lets other machines scrape them",
    )
    parser.add_argument("--lifeline", action="store_true", help="stop when standard input ends")
    return parser


def _run(options: argparse.Namespace, stop: threading.Event) -> Outcome:
    """The run, with every way to end it turned into an outcome and told as the last event."""
    try:
        job = _resolved(options.job)
        # Heavy from here on: torch and all that needs it. It logs about its own future when transformers comes in.
        logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
        from limbeck_runtime.context import open_context
        from limbeck_runtime.telemetry.poster import post_progress

        opened = open_context(
            job,
            stop=stop,
            stream=sys.stdout,
            attempt=options.attempt,
            metrics_port=options.metrics_port,
            metrics_host=options.metrics_host,
        )
        with (
            opened as context,
            post_progress(
                os.environ,
                context.events,
                context.progress,
                stop,
                epoch=context.fence.epoch,
                attempt=options.attempt,
            ),
        ):
            return _run_in(context, options.attempt)
    except Exception as error:  # before there was a context, so that the run's own event log is not open
        with EventLog(sys.stdout) as events:
            # A ValueError is about a place that the job names.
            return _failed(InvalidSpecError(str(error)) if isinstance(error, ValueError) else error, events)


def _resolved(path: Path) -> CompressionJob:
    """The job in a file with nothing left to derive.

    Raises InvalidSpecError for what this version cannot run, before anything has started.
    """
    try:
        return resolve(CompressionJob.model_validate_json(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise InvalidSpecError(str(error)) from error


def resolve(job: CompressionJob) -> CompressionJob:
    """The job with its plan. Raises ValueError for what cannot be planned or run."""
    plan = derive_plan(job.spec)
    refusals = unsupported(plan.spec)
    if refusals:
        raise ValueError("; ".join(str(refusal) for refusal in refusals))
    return job.model_copy(
        update={"spec": plan.spec, "status": job.status.model_copy(update={"plan": list(plan.entries)})}
    )


def _run_in(context: Context, attempt: int) -> Outcome:
    """The pipeline, its end told as an event while the event log is open."""
    from limbeck_runtime.pipeline import run
    from limbeck_runtime.report.build import short_table
    from limbeck_runtime.report.outcome import result_of

    context.events.emit(
        "run_started",
        job=context.job.metadata.name,
        steps=[step.name for step in context.spec.pipeline],
        epoch=context.fence.epoch,
        attempt=attempt,
    )
    context.events.emit("plan", entries=[entry.model_dump() for entry in context.job.status.plan])
    try:
        report, published = run(context)
    except Exception as error:
        return _failed(error, context.events)
    passed = report.gate.passed
    outcome = (
        Outcome(names.EXIT_OK, "Complete", "the job is complete")
        if passed
        else Outcome(names.EXIT_GATE_FAILED, "GateFailed", missed_checks(report))
    )
    context.events.emit(
        "run_finished",
        state=RunState.COMPLETE if passed else RunState.FAILED,
        reason=outcome.reason,
        message=outcome.message,
        report=published.report,
        model=published.model,
        card=published.card,
        table=short_table(report),
        result=result_of(report, published.report, published.model),
    )
    return outcome


def missed_checks(report: Report) -> str:
    """What the gate found wanting, in words."""
    missed = [
        f"`spec.target.{check.name}` must be {'at most' if check.at_most else 'at least'} {check.wanted:g}, got "
        + ("no measurement" if check.reached is None else f"{check.reached:.4g}")
        + f" ({check.detail})"
        for check in report.gate.checks
        if not check.passed
    ]
    return "; ".join(missed)


def _failed(error: Exception, events: EventLog) -> Outcome:
    """Tell how the run ended, in the event log and, for whoever looks for the cause, on standard error."""
    outcome = outcome_of(error)
    if isinstance(error, InterruptedRunError) or (isinstance(error, RunError) and error.__cause__ is None):
        print(error, file=sys.stderr)
    else:
        traceback.print_exception(error)
    state = RunState.STOPPED if isinstance(error, InterruptedRunError) else RunState.FAILED
    events.emit("run_finished", state=state, reason=outcome.reason, message=outcome.message)
    return outcome


def outcome_of(error: Exception) -> Outcome:
    """What an exception means for whoever started the run. Another attempt makes sense unless the code says no."""
    if isinstance(error, RunError):
        return Outcome(error.exit_code, error.reason, str(error))
    if isinstance(error, FencedError):
        return Outcome(_EXIT_ERROR, "Fenced", str(error))
    if isinstance(error, StorageError):
        return Outcome(_EXIT_ERROR, "StorageError", str(error))
    place = _full_place(error)
    if place is not None:
        return Outcome(
            _EXIT_ERROR,
            "StorageError",
            f"cannot write {place}: the disk or quota is full; free space there, or set TMPDIR to a folder that has "
            "more, then run the same command again: it goes on from the last commit",
        )
    return Outcome(_EXIT_ERROR, "Error", f"{type(error).__name__}: {error}")


def _full_place(error: BaseException | None) -> str | None:
    """What could not be written where a library met a full disk, as a plain file; None where that was not the error.

    Such files lie in scratch folders; what goes to storage is named by its own error.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT) and error.filename:
            return str(error.filename)
        # Rust's libraries have the number only in their text.
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or f"os error {errno.ENOSPC})" in str(error):
            return f"a scratch file in {tempfile.gettempdir()}"
        error = error.__cause__ or error.__context__
    return None


def _stop_on_signals(stop: threading.Event) -> None:
    def ask(number: int, frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, ask)


def _stop_at_end_of_input(stop: threading.Event) -> None:
    """The parent holds the other end of standard input: when it dies, the read ends."""
    with os.fdopen(os.dup(sys.stdin.fileno()), "rb", buffering=0) as stream:
        while stream.read(4096):
            pass
    stop.set()


if __name__ == "__main__":
    sys.exit(main())
