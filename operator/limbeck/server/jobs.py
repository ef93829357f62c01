"""What the server needs to know of a CompressionJob, read from the API server and believed for a moment.

While the API server does not answer, what it last said counts a little longer: runs go on meanwhile.
Left out: writing (`patcher.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from pydantic import ValidationError

from limbeck.api.posts import Wanted
from limbeck.kube.errors import KubeError, NotFoundError
from limbeck.server.announcements import assume_announced
from limbeck.server.cluster import JOBS, Cluster
from limbeck.server.limits import Cache
from limbeck.server.refusal import Refusal
from limbeck.server.standing import Standing

_MAX_JOBS: Final = 10_000
_MAX_STALE_SECONDS: Final = 60.0
_RETRY_SECONDS: Final = 5.0


@dataclass(frozen=True)
class Job:
    """One CompressionJob."""

    uid: str
    namespace: str
    name: str
    created: datetime
    attempt: int
    wanted: Wanted
    # What the status says of the server's part: where a server begins that has lost its history.
    standing: Standing


class Jobs:
    """Looks jobs up."""

    def __init__(self, cluster: Cluster, clock: Callable[[], float], *, cache_seconds: float) -> None:
        self._cluster, self._cache_seconds = cluster, cache_seconds
        self._known: Cache[tuple[str, str], Job] = Cache(_MAX_JOBS, clock)

    def current(self, namespace: str, name: str) -> Job:
        """The job. Raises Refusal: 404, or 503 where the API server has not answered for a minute."""
        known = self._known.get((namespace, name), self._cache_seconds)
        if known is not None:
            return known
        try:
            job = _described(self._cluster.get(JOBS, name, namespace))
        except NotFoundError as error:
            self._known.drop((namespace, name))
            raise Refusal(404, "NotFound", f"there is no CompressionJob {name} in namespace {namespace}") from error
        except KubeError as error:
            stale = self._known.get((namespace, name), _MAX_STALE_SECONDS)
            if stale is None:
                raise unavailable(f"job {name}", error) from error
            return stale
        self._known.put((namespace, name), job)
        return job


def unavailable(what: str, error: KubeError) -> Refusal:
    """The answer where the API server gives us none; what it said is for the log, not for the client."""
    seconds = max(_RETRY_SECONDS, error.retry_after or 0.0)
    return Refusal(503, "ApiServerUnavailable", f"the API server does not tell about {what}: {error.reason}", seconds)


def _described(found: dict[str, Any]) -> Job:
    metadata, spec, status = found["metadata"], found.get("spec") or {}, found.get("status") or {}
    ends = bool(spec.get("suspend")) or "deletionTimestamp" in metadata
    return Job(
        uid=metadata["uid"],
        namespace=metadata["namespace"],
        name=metadata["name"],
        created=datetime.fromisoformat(metadata["creationTimestamp"]),
        attempt=int(status.get("attempt") or 0),
        wanted=Wanted.CHECKPOINT if ends else Wanted.RUN,
        standing=_standing(status),
    )


def _standing(status: dict[str, Any]) -> Standing:
    try:
        return assume_announced(Standing.from_status(status))
    except ValidationError:  # written by a server of another version; the next run writes it anew
        return Standing()
