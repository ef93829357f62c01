"""What every part of a run is handed: where to write, what to tell, when to stop. Made once by the driver."""

from __future__ import annotations

import logging
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from limbeck.api.v1alpha1.job import CompressionJob, Spec
from limbeck_runtime import cluster, names
from limbeck_runtime.commitlog import CommitLog, Fence
from limbeck_runtime.errors import InterruptedRunError
from limbeck_runtime.storage import Storage, StorageError
from limbeck_runtime.telemetry.events import EventLog
from limbeck_runtime.telemetry.log_upload import LogUpload, uploaded_lines
from limbeck_runtime.telemetry.metrics import Metrics, MetricsServer
from limbeck_runtime.telemetry.progress import ProgressLog, ProgressRecord, read_history

if TYPE_CHECKING:
    from limbeck_runtime.teacher.capture import CaptureSettings
    from limbeck_runtime.teacher.ray_workers import WarmActors
    from limbeck_runtime.teacher.workers import Workers

    TeacherWorkers = Callable[[CaptureSettings], Workers]

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Context:
    """One run of one job."""

    job: CompressionJob
    output: Storage
    store: Storage
    fence: Fence
    events: EventLog
    metrics: Metrics
    progress: ProgressLog
    progress_path: Path
    stop: threading.Event
    scratch: Path
    device: str
    num_threads: int
    warm_actors: WarmActors
    # Where the output cannot append to logs.
    log_upload: LogUpload | None = None
    # Where the teacher runs, if not on Ray.
    teacher_workers: TeacherWorkers | None = None

    @property
    def spec(self) -> Spec:
        """The resolved spec."""
        return self.job.spec

    def log(self, *place: str) -> CommitLog:
        """The commit log at `place` under the output, fenced against older drivers."""
        return CommitLog(self.output.child("/".join(place)), self.fence)

    def warn(self, message: str) -> None:
        """Tell people something that does not stop the run."""
        self.events.emit("warning", message=message)

    def history(self) -> list[ProgressRecord]:
        """The training history so far, of all attempts that wrote to the same place."""
        return read_history(self.progress_path.read_bytes())

    def upload_logs(self) -> None:
        """Bring the logs so far to the output, where they do not lie there anyway."""
        if self.log_upload is not None:
            self.log_upload.upload(self.warn)

    def end_steps(self) -> None:
        """Give back the processes that only steps want, while what is left of the run goes on."""
        self.warm_actors.close()
        cluster.leave()

    def check_stop(self) -> None:
        """Raise InterruptedRunError where the run was asked to stop and nothing is half done."""
        if self.stop.is_set():
            raise InterruptedRunError("stopped on request; run the same command again to go on from here")


@contextmanager
def open_context(
    job: CompressionJob,
    *,
    stop: threading.Event,
    stream: TextIO,
    attempt: int,
    metrics_port: int | None = None,
    metrics_host: str = names.LOOPBACK,
    output: Storage | None = None,
    teacher_workers: TeacherWorkers | None = None,
) -> Iterator[Context]:
    """Claim the output, open the logs, and close all of it at the end.

    For tests: `output` replaces the storage that `spec.output` names by one that they watch or break, and
    `teacher_workers` the Ray actors in which the teacher runs.

    Raises:
        ValueError: a URI cannot be opened. StorageError: the store cannot be written.
    """
    import torch

    from limbeck_runtime.teacher.ray_workers import WarmActors

    output = output or Storage.open(job.spec.output.uri)
    store = Storage.open(job.spec.store.uri) if job.spec.store else output.child("store")
    fence = Fence.claim(output, {"job": job.metadata.name, "attempt": attempt})
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="limbeck-run-")))
        # Logs are appended to, which object stores cannot: those of a cloud output grow in the scratch folder.
        folder = (output.local_path(names.FILE_PROGRESS) or scratch / names.FILE_PROGRESS).parent
        stack.callback(cluster.disconnect)
        warm_actors = WarmActors()
        stack.callback(warm_actors.close)
        events = stack.enter_context(EventLog(stream, folder / names.FILE_EVENTS))
        if folder == scratch:
            _fetch_history(output, folder / names.FILE_PROGRESS, events)
        progress = ProgressLog(folder / names.FILE_PROGRESS)
        stack.callback(progress.close)
        log_upload = None
        if folder == scratch and events.lines is not None:
            log = CommitLog(output.child(names.FOLDER_LOGS), fence)
            log_upload = LogUpload(log, {names.FILE_PROGRESS: progress.lines, names.FILE_EVENTS: events.lines})
            # The run's last event is said by then; what goes wrong now is for the machine's own log.
            stack.callback(log_upload.upload, _LOG.warning)
        metrics = Metrics(job.metadata.name, _version())
        if metrics_port is not None:
            server = MetricsServer(metrics, metrics_port, metrics_host)
            stack.callback(server.close)
            events.emit("metrics_serving", url=server.url)
        yield Context(
            job=job,
            output=output,
            store=store,
            fence=fence,
            events=events,
            metrics=metrics,
            progress=progress,
            progress_path=folder / names.FILE_PROGRESS,
            stop=stop,
            scratch=scratch,
            device="cuda" if torch.cuda.is_available() else "cpu",
            num_threads=torch.get_num_threads(),
            warm_actors=warm_actors,
            log_upload=log_upload,
            teacher_workers=teacher_workers,
        )


def _fetch_history(output: Storage, path: Path, events: EventLog) -> None:
    """Begin with the training history of the attempts before, which the report shows too."""
    try:
        path.write_bytes(uploaded_lines(CommitLog(output.child(names.FOLDER_LOGS)), names.FILE_PROGRESS))
    except StorageError as error:
        events.emit("warning", message=f"the training history of earlier attempts is not there: {error}")


def _version() -> str:
    from importlib.metadata import version

    return version("limbeck")
