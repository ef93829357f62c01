"""Takes one post: who, which job, how often, what; then the history has it, and the reply says what is wanted.

Left out: HTTP (`app.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError

from limbeck.api.posts import ProgressPost, ProgressReply
from limbeck.server.access import Access, check_belongs
from limbeck.server.announcements import Announcement
from limbeck.server.history import History, JobKey, StaleRunError
from limbeck.server.jobs import Jobs
from limbeck.server.limits import Buckets
from limbeck.server.refusal import Refusal

_RETRY_SECONDS = 5.0


class Intake:
    """The way of a post into the history."""

    def __init__(
        self,
        access: Access,
        jobs: Jobs,
        history: History,
        posts: Buckets[tuple[str, str]],
        taken: Callable[[str], None],
        announce: Callable[[JobKey, Announcement], None],
    ) -> None:
        """`taken` is told the UID of each job about which something new is known, `announce` what deserves an Event.

        Any thread may call.
        """
        self._access, self._jobs, self._history, self._posts = access, jobs, history, posts
        self._taken, self._announce = taken, announce

    def accept(self, namespace: str, name: str, token: str, body: bytes) -> ProgressReply:
        """Take a post for one job. Raises Refusal."""
        poster = self._access.poster_of(token)
        if (poster.namespace, poster.job) != (namespace, name):
            raise Refusal(403, "WrongJob", f"pod {poster.pod} may not speak for job {name} in {namespace}")
        wait_seconds = self._posts.take((namespace, name))
        if wait_seconds:
            raise Refusal(429, "TooManyPosts", f"job {name} posts too often; try again later", wait_seconds)
        job = self._jobs.current(namespace, name)
        check_belongs(poster, job)
        post = _parsed(body)
        key = JobKey(job.uid, namespace, name)
        try:
            is_new = self._history.record(key, post, job.standing, partial(self._announce, key))
        except StaleRunError as error:
            raise Refusal(409, "StaleRun", f"{error}; stop") from error
        except SQLAlchemyError as error:
            raise Refusal(503, "HistoryUnavailable", "the history takes nothing now", _RETRY_SECONDS) from error
        if is_new and (post.events or post.records):
            self._taken(job.uid)
        return ProgressReply(wanted=job.wanted, duplicate=not is_new)


def _parsed(body: bytes) -> ProgressPost:
    try:
        return ProgressPost.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the body"
        raise Refusal(
            422, "InvalidPost", f"`{place}`: {first['msg']} ({error.error_count()} faults); post what the API describes"
        ) from error
