"""`limbeck logs`: what the pods of an attempt have written.

KubeRay submits the driver from a container beside the head, whose log is the driver's output; the log of Ray's own
container says how Ray started. Where no such container is, Ray's is shown.
Left out: pods that join while logs are followed, and pods that are gone: a cluster's log collector has those.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from limbeck import names
from limbeck.cli.cluster import Cluster
from limbeck.cli.exits import OK
from limbeck.cli.failures import CommandError, explained
from limbeck.cli.jobs import Job, is_finished, outcome, status_of
from limbeck.cli.kinds import PODS
from limbeck.cli.printable import printable
from limbeck.kube.errors import GoneError, KubeError, UnreachableError
from limbeck.kube.lines import LineStream
from limbeck.kube.transport import Object

POOLS: Final = ("head", "teacher", "student")
# What KubeRay calls the container that submits the driver in SidecarMode.
_SUBMITTER: Final = "ray-job-submitter"
_LABEL_COMPONENT: Final = "app.kubernetes.io/component"
_WAIT_SECONDS: Final = 300.0


@dataclass(frozen=True)
class Wish:
    """Which logs, and how much of them."""

    pool: str = "head"
    attempt: int | None = None
    container: str | None = None
    follow: bool = False
    tail: int | None = None


@dataclass(frozen=True)
class _Source:
    """One container of one pod."""

    pod: str
    container: str
    prefix: str


def logs(cluster: Cluster, name: str, wish: Wish) -> int:
    """Print the logs; with `follow`, wait for the pods to start and go on until they end."""
    job = cluster.job(name)
    attempt = wish.attempt or int(status_of(job).get("attempt") or 0)
    if not attempt:
        raise CommandError(f"{name} has had no attempt yet: {outcome(job)}; `limbeck describe {name}` says more")
    pods = _started(cluster, job, attempt, wish)
    sources = [_Source(pod["metadata"]["name"], _container(pod, wish), _prefix(pod, pods)) for pod in pods]
    namespace = job["metadata"]["namespace"]
    if len(sources) == 1 or not wish.follow:
        for source in sources:
            with _open(cluster, namespace, source, wish) as stream:
                _copy(stream, source.prefix, threading.Lock())
    else:
        _follow_all(cluster, namespace, sources, wish)
    return OK


def _started(cluster: Cluster, job: Job, attempt: int, wish: Wish) -> list[Object]:
    """The pods whose container has started, oldest name first. Raises CommandError where there are none."""
    selector = ",".join(
        [
            f"{names.LABEL_JOB}={job['metadata']['name']}",
            f"{names.LABEL_ATTEMPT}={attempt}",
            f"{_LABEL_COMPONENT}={wish.pool}",
        ]
    )
    what, namespace = f"{wish.pool} pod of attempt {attempt} of {job['metadata']['name']}", job["metadata"]["namespace"]
    is_said = False
    while True:
        page = cluster.transport.list(PODS, namespace, label_selector=selector)
        pods = sorted(page["items"], key=lambda pod: pod["metadata"]["name"])
        started = [pod for pod in pods if _has_started(pod, _container(pod, wish))]
        if started:
            return started
        is_over = is_finished(job) or attempt < int(status_of(job).get("attempt") or 0)
        if not wish.follow or is_over:
            raise CommandError(_why_none(job, what, pods, wish))
        if not is_said:
            is_said = True
            print(printable(f"waiting for the {what} to start"), file=sys.stderr)
        _wait_for_change(cluster, namespace, selector, page["metadata"]["resourceVersion"])
        job = cluster.job(job["metadata"]["name"])


def _wait_for_change(cluster: Cluster, namespace: str, selector: str, version: str) -> None:
    """Returns at the next change of such a pod, or after a while."""
    try:
        with cluster.transport.watch(
            PODS, namespace, resource_version=version, timeout_seconds=_WAIT_SECONDS, label_selector=selector
        ) as stream:
            for event in stream:
                if event["type"] != "BOOKMARK":
                    return
    except GoneError:
        return


def _why_none(job: Job, what: str, pods: Sequence[Object], wish: Wish) -> str:
    name = job["metadata"]["name"]
    if not pods:
        if is_finished(job):
            return f"the {what} is gone: {outcome(job)}; `limbeck describe {name}` and `limbeck report {name}` remain"
        return f"there is no {what}: {outcome(job)}; give -f to wait for it, or another --pool or --attempt"
    reasons = sorted({_waiting_reason(pod, _container(pod, wish)) for pod in pods})
    return f"the {what} has not started: {', '.join(reasons)}; give -f to wait for it"


def _container(pod: Mapping[str, Any], wish: Wish) -> str:
    present = [container["name"] for container in pod["spec"]["containers"]]
    if wish.container is None:
        return _SUBMITTER if _SUBMITTER in present else str(present[0])
    if wish.container not in present:
        pod_name = pod["metadata"]["name"]
        raise CommandError(f"pod {pod_name} has no container {wish.container}; it has {', '.join(present)}")
    return wish.container


def _status_of(pod: Mapping[str, Any], container: str) -> Mapping[str, Any]:
    statuses = (pod.get("status") or {}).get("containerStatuses") or []
    return next((each for each in statuses if each.get("name") == container), {})


def _has_started(pod: Mapping[str, Any], container: str) -> bool:
    status = _status_of(pod, container)
    state = status.get("state") or {}
    return "running" in state or "terminated" in state or "terminated" in (status.get("lastState") or {})


def _waiting_reason(pod: Mapping[str, Any], container: str) -> str:
    waiting = (_status_of(pod, container).get("state") or {}).get("waiting") or {}
    if waiting.get("reason"):
        return f"{waiting['reason']}" + (f" ({waiting['message']})" if waiting.get("message") else "")
    conditions = (pod.get("status") or {}).get("conditions") or []
    unscheduled = next((each for each in conditions if each.get("reason") == "Unschedulable"), None)
    return str(unscheduled["message"]) if unscheduled else str((pod.get("status") or {}).get("phase") or "Pending")


def _prefix(pod: Mapping[str, Any], pods: Sequence[Object]) -> str:
    return f"[{pod['metadata']['name']}] " if len(pods) > 1 else ""


def _open(cluster: Cluster, namespace: str, source: _Source, wish: Wish) -> LineStream:
    return cluster.transport.logs(
        source.pod, namespace, container=source.container, follow=wish.follow, tail_lines=wish.tail
    )


def _copy(stream: LineStream, prefix: str, lock: threading.Lock) -> None:
    """Line by line, as they are: a log is the user's own text, and colours in it are welcome."""
    for line in stream:
        text = line.decode("utf-8", "replace")
        with lock:
            sys.stdout.write(f"{prefix}{text}\n")
            sys.stdout.flush()


def _follow_all(cluster: Cluster, namespace: str, sources: Sequence[_Source], wish: Wish) -> None:
    """All at once, one thread each; ends when all have ended, whatever became of one of them."""
    lock = threading.Lock()
    failures: list[KubeError] = []

    def follow_one(source: _Source) -> None:
        try:
            with _open(cluster, namespace, source, wish) as stream:
                _copy(stream, source.prefix, lock)
        except KubeError as error:
            failures.append(error)
            message, _ = explained(error)
            print(printable(f"{source.prefix}{message}"), file=sys.stderr)
        except BrokenPipeError:
            failures.append(UnreachableError("nobody reads on"))

    # Daemons: Ctrl-C ends the process, not each of them.
    threads = [threading.Thread(target=follow_one, args=(source,), daemon=True) for source in sources]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(failures) == len(sources):
        raise failures[0]
