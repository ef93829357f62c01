"""Who posts: a pod, told by its projected service account token, and whether that pod is of the job it speaks for.

A token is good if the API server says so for our audience, if it is bound to a pod, and if that very pod (by UID) is
there still. The answer is remembered for a short time, under the token's hash, whether it was good or not.
Left out: people. Reading is open to whoever reaches the port; the network and `kubectl port-forward` decide who does.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from limbeck import names
from limbeck.kube.errors import KubeError, NotFoundError
from limbeck.server.cluster import PODS, TOKEN_REVIEWS, Cluster
from limbeck.server.jobs import Job, unavailable
from limbeck.server.limits import Buckets, Cache
from limbeck.server.metrics import Metrics
from limbeck.server.refusal import Refusal

_POD_NAME: Final = "authentication.kubernetes.io/pod-name"
_POD_UID: Final = "authentication.kubernetes.io/pod-uid"
_ACCOUNT: Final = re.compile(r"system:serviceaccount:([a-z0-9.-]{1,253}):([a-z0-9.-]{1,253})")
_MAX_TOKEN_BYTES: Final = 16_384
_MAX_TOKENS: Final = 10_000


@dataclass(frozen=True)
class Poster:
    """A pod, as the API server describes it."""

    namespace: str
    pod: str
    created: datetime
    job: str
    attempt: int
    owners: tuple[tuple[str, str, str], ...]  # (API group, kind, name) of its controller
    owner_uids: frozenset[str]


class Access:
    """Tells posters by their tokens."""

    def __init__(
        self,
        cluster: Cluster,
        audience: str,
        metrics: Metrics,
        clock: Callable[[], float],
        *,
        cache_seconds: float,
        reviews_per_second: float,
    ) -> None:
        self._cluster, self._audience, self._metrics = cluster, audience, metrics
        self._cache_seconds = cache_seconds
        self._known: Cache[bytes, Poster | Refusal] = Cache(_MAX_TOKENS, clock)
        self._reviews: Buckets[str] = Buckets(reviews_per_second, 2 * reviews_per_second, clock)

    def poster_of(self, token: str) -> Poster:
        """The pod that the token is bound to. Raises Refusal: 401, 403, or 503 where nobody can tell now."""
        if not token or len(token) > _MAX_TOKEN_BYTES:
            raise _unauthorized("a post needs a service account token: `Authorization: Bearer TOKEN`")
        key = hashlib.sha256(token.encode()).digest()
        known = self._known.get(key, self._cache_seconds)
        if known is None:
            known = self._ask(token)
            self._known.put(key, known)
        if isinstance(known, Refusal):
            raise known.again()
        return known

    def _ask(self, token: str) -> Poster | Refusal:
        """What the API server says. A refusal is an answer too; that there is no answer is raised, not remembered."""
        wait_seconds = self._reviews.take("all")
        if wait_seconds:
            raise Refusal(429, "TooManyTokens", "too many new tokens at once; try again later", wait_seconds)
        try:
            answer = self._poster(token)
        except KubeError as error:
            self._metrics.token_reviews.labels("error").inc()
            raise unavailable("the token", error) from error
        self._metrics.token_reviews.labels("refused" if isinstance(answer, Refusal) else "accepted").inc()
        return answer

    def _poster(self, token: str) -> Poster | Refusal:
        review = self._cluster.create(
            TOKEN_REVIEWS,
            {
                "apiVersion": "authentication.k8s.io/v1",
                "kind": "TokenReview",
                "spec": {"token": token, "audiences": [self._audience]},
            },
        )
        status = review.get("status") or {}
        if not status.get("authenticated") or self._audience not in (status.get("audiences") or []):
            return _unauthorized(f"the token is not one for audience {self._audience!r}, or it has expired")
        user = status.get("user") or {}
        account = _ACCOUNT.fullmatch(str(user.get("username", "")))
        extra = user.get("extra") or {}
        pod_name, pod_uid = _single(extra.get(_POD_NAME)), _single(extra.get(_POD_UID))
        if account is None or not pod_name or not pod_uid:
            return Refusal(403, "NotAPod", "the token is not bound to a pod; mount a projected one into the pod")
        namespace = account.group(1)
        try:
            pod = self._cluster.get(PODS, pod_name, namespace)
        except NotFoundError:
            return _unauthorized(f"pod {pod_name} that the token is bound to is gone")
        if pod["metadata"].get("uid") != pod_uid:
            return _unauthorized(f"pod {pod_name} that the token is bound to is gone; another one has its name")
        return _described(namespace, pod_name, pod["metadata"])


def check_belongs(poster: Poster, job: Job) -> None:
    """Raise Refusal unless the pod is one of the job's newest attempt.

    Its labels must say so, and its owner: the Ray cluster of the attempt's RayJob (which bears the RayJob's name), or
    the job itself. A pod older than the job belonged to an earlier job of the same name.
    """
    if (poster.namespace, poster.job) != (job.namespace, job.name):
        raise _wrong_job(poster, job, f"it is labelled as one of job {poster.job or '(none)'} in {poster.namespace}")
    ray_job = f"{job.name}-{poster.attempt}"
    is_ray = any(
        group == "ray.io" and kind in ("RayCluster", "RayJob") and (name == ray_job or name.startswith(f"{ray_job}-"))
        for group, kind, name in poster.owners
    )
    if not is_ray and job.uid not in poster.owner_uids:
        raise _wrong_job(poster, job, f"it is not owned by a Ray cluster of {ray_job}")
    if poster.created < job.created:
        raise _wrong_job(poster, job, "it is older than the job, so it is of an earlier job of that name")
    if poster.attempt < job.attempt:
        raise Refusal(
            409, "StaleAttempt", f"attempt {poster.attempt} is over: {job.name} is at attempt {job.attempt}; stop"
        )


def _described(namespace: str, name: str, metadata: dict[str, Any]) -> Poster:
    labels = metadata.get("labels") or {}
    attempt = str(labels.get(names.LABEL_ATTEMPT, ""))
    owners = [owner for owner in metadata.get("ownerReferences") or [] if owner.get("controller")]
    return Poster(
        namespace=namespace,
        pod=name,
        created=datetime.fromisoformat(metadata["creationTimestamp"]),
        job=str(labels.get(names.LABEL_JOB, "")),
        attempt=int(attempt) if attempt.isascii() and attempt.isdigit() and len(attempt) < 10 else 0,
        owners=tuple(
            (str(owner.get("apiVersion", "")).rpartition("/")[0], str(owner.get("kind")), str(owner.get("name")))
            for owner in owners
        ),
        owner_uids=frozenset(str(owner.get("uid")) for owner in owners),
    )


def _single(values: Any) -> str:
    return str(values[0]) if isinstance(values, list) and len(values) == 1 else ""


def _unauthorized(message: str) -> Refusal:
    return Refusal(401, "Unauthorized", message)


def _wrong_job(poster: Poster, job: Job, why: str) -> Refusal:
    return Refusal(403, "WrongJob", f"pod {poster.pod} may not speak for job {job.name} in {job.namespace}: {why}")
