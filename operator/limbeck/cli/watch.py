"""`limbeck watch`: a job on a cluster, shown as `limbeck local` shows one.

The status of the job decides what it is and when it ends. What happens inside a run comes from limbeck's server where
one is given and answers, else from the status as well, which says less.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from limbeck.api.progress import EVENT, RunFinished
from limbeck.cli import view_words as words
from limbeck.cli.cluster import Cluster
from limbeck.cli.exits import JOB_FAILED, OK
from limbeck.cli.failures import explained
from limbeck.cli.follow import Patience, follow
from limbeck.cli.jobs import Job, holds, is_finished, phase, status_of
from limbeck.cli.kinds import JOBS
from limbeck.cli.printable import printable
from limbeck.cli.server_events import NothingYetError, ServerError, ServerEvents
from limbeck.cli.status_events import StatusEvents, condition_words, finished_event, progress_events, timed
from limbeck.cli.view import View
from limbeck.kube.errors import KubeError
from limbeck.kube.transport import Object


def watch(cluster: Cluster, name: str, *, log_format: str, server_url: str | None, server_ca: str | None) -> int:
    """Show the job until it ends: 0 Complete, 1 Failed or deleted."""
    job = cluster.job(name)
    view = View.choose(log_format, resume_command="")
    try:
        with view:
            return _Watcher(cluster, view, job, _server(view, job, server_url, server_ca)).run()
    except KeyboardInterrupt:
        print(printable(f"{name} goes on; `limbeck watch {name}` shows it again"), file=sys.stderr)
        raise


class _Watcher:
    """One view of one job."""

    def __init__(self, cluster: Cluster, view: View, job: Object, server: ServerEvents | None) -> None:
        self._cluster, self._view, self._first, self._server = cluster, view, job, server
        self._from_status = StatusEvents()
        self._before: Job | None = None
        self._has_server_spoken = False
        # The end of a run is not that of its job: it is shown once the job says the same.
        self._run_finished: dict[str, Any] | None = None

    def run(self) -> int:
        """Until the job ends; the exit code."""
        for job in follow(self._cluster, self._first, patience=Patience(told=self._trouble)):
            if job is None:
                _note(self._view, "JobDeleted", f"{self._first['metadata']['name']} was deleted")
                return JOB_FAILED
            self._conditions(job)
            # Even where the server tells more, the changes of the status are kept up with, should it be lost.
            events = self._from_status.after(job, datetime.now(UTC))
            if not self._speaks_for(job):
                for event in events:
                    self._view.show(event)
            if is_finished(job):
                return self._end(job)
        raise AssertionError("following ends with the job's end or with an error")

    def _conditions(self, job: Job) -> None:
        if self._before is None or phase(self._before) != phase(job):
            word = "no operator has looked at it yet" if phase(job) == "-" else phase(job)
            _note(self._view, "Phase", f"{job['metadata']['name']}: {word}", phase=phase(job))
        for line in condition_words(self._before, job):
            _note(self._view, line.partition(":")[0], line)
        self._before = job

    def _speaks_for(self, job: Object) -> bool:
        """Show what the server tells of a running job, as long as it tells anything; whether it did."""
        if self._server is None:
            return False
        if phase(job) != "Running":
            return self._has_server_spoken
        try:
            self._follow_run(self._server, job)
        except NothingYetError:
            pass
        except ServerError as error:
            text = f"limbeck's server is lost, the status is shown instead, which says less: {error}"
            _note(self._view, "ServerLost", text, style="yellow")
            self._server = None
        return self._has_server_spoken

    def _follow_run(self, server: ServerEvents, job: Object) -> None:
        """Until the run has ended, or the job is no longer what it was."""
        for standing in server.news():
            if standing is not None and standing.get("uid") == job["metadata"]["uid"]:
                for event in server.fresh(standing["uid"]):
                    self._show_from_server(event)
                if not standing.get("ended"):
                    for event in progress_events(standing):
                        self._view.show(timed(event, datetime.now(UTC)))
            if (standing is None or standing.get("ended")) and self._is_over(job):
                return

    def _is_over(self, job: Object) -> bool:
        """Whether the attempt is, as far as the job says; where nothing is said, following the job copes with that."""
        try:
            now = self._cluster.transport.get(JOBS, job["metadata"]["name"], job["metadata"]["namespace"])
        except KubeError:
            return True
        is_same = now["metadata"]["uid"] == job["metadata"]["uid"]
        is_same = is_same and status_of(now).get("attempt") == status_of(job).get("attempt")
        return not is_same or phase(now) != "Running"

    def _show_from_server(self, event: dict[str, Any]) -> None:
        self._has_server_spoken = True
        if event.get("event") == "run_finished":
            self._run_finished = event
            _note(self._view, "RunEnded", f"the run has ended: {_closing(event)}")
            return
        self._view.show(event)

    def _end(self, job: Job) -> int:
        event = timed(finished_event(job), datetime.now(UTC))
        if self._server is not None and self._has_server_spoken:
            try:
                for news in self._server.fresh(job["metadata"]["uid"]):
                    self._show_from_server(news)
            except ServerError:
                pass  # the status knows the end as well
        run = self._run_finished
        if run is not None and run.get("state") == event["state"]:
            # The run knows more about its end; why the job is over, the job says.
            event = {**run, "reason": event["reason"], "message": event["message"]}
        self._view.show(event)
        return OK if holds(job, "Complete") else JOB_FAILED

    def _trouble(self, error: KubeError) -> None:
        message, _ = explained(error)
        _note(self._view, "Trouble", f"trying again: {message}", style="yellow")


def _server(view: View, job: Job, url: str | None, ca_file: str | None) -> ServerEvents | None:
    """The server, if it is there."""
    if url is None:
        return None
    try:
        server = ServerEvents(url, job["metadata"]["namespace"], job["metadata"]["name"], ca_file)
        server.check()
    except ServerError as error:
        _note(
            view, "ServerLost", f"the status is shown, which says less than limbeck's server: {error}", style="yellow"
        )
        return None
    return server


def _closing(event: Mapping[str, Any]) -> str:
    try:
        finished = EVENT.validate_python(event)
    except ValueError:
        return str(event.get("state"))
    return words.closing(finished) if isinstance(finished, RunFinished) else ""


def _note(view: View, reason: str, text: str, *, style: str = "dim", **fields: str) -> None:
    now = datetime.now(UTC)
    wire = {"time": now.isoformat().replace("+00:00", "Z"), "event": "job", "reason": reason, "message": text}
    view.note({**wire, **fields}, now, text, style=style)
