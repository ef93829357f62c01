"""What can be read over HTTP: jobs, one job, its history, its progress as it comes.

Objects are in camelCase as the status is; the bodies of events and records are as they were posted, in snake_case.
Left out: specs and conditions, which the API server has.
"""

from __future__ import annotations

import base64
import binascii
import json
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from pydantic import Field
from sse_starlette import EventSourceResponse

from limbeck.api.fields import ApiModel
from limbeck.api.progress import RunState
from limbeck.api.status import Progress, Result, StepStatus
from limbeck.server.history import History, JobKey, JobView
from limbeck.server.refusal import Refusal
from limbeck.server.stream import Hub, follow

Namespace = Annotated[str, Path(max_length=63)]
Name = Annotated[str, Path(max_length=63)]
_PING_SECONDS = 15


class JobObject(ApiModel):
    """One job, as far as runs have told."""

    namespace: str = Field(description="Namespace, e.g. vision.")
    name: str = Field(description="Name, e.g. emoji.")
    uid: str = Field(description="UID, which tells it from an earlier job of the same name.")
    attempt: int = Field(description="Attempt that posted last, e.g. 2.")
    epoch: int = Field(description="Fence epoch of the run that posted last, e.g. 2.")
    dropped: int = Field(description="Entries that runs dropped while no server answered, e.g. 0.")
    last_post_time: datetime = Field(description="When it last posted, e.g. 2026-11-24T06:00:00Z.")
    ended: RunState | None = Field(description="How the newest run ended; null while it runs.")
    steps: list[StepStatus] = Field(description="Steps of the pipeline.")
    progress: Progress = Field(description="Latest progress.")
    result: Result | None = Field(description="What came out.")


class JobList(ApiModel):
    """A page of jobs."""

    items: list[JobObject] = Field(description="Jobs by namespace and name.")
    next: str | None = Field(description="Pass it as `after` for the next page; null on the last.")


class EntryObject(ApiModel):
    """One event or training record."""

    id: int = Field(description="Place in the history, ascending.")
    kind: str = Field(description="Kind of event, or record.")
    body: dict[str, Any] = Field(description="The event or record as it was posted.")


class EntryList(ApiModel):
    """A page of one job's history."""

    uid: str = Field(description="UID of the job.")
    items: list[EntryObject] = Field(description="Entries in the order in which they came.")
    next: int | None = Field(description="Pass it as `after` for the next page; null where this is the last.")


def make_router(history: History, hub: Hub, poll_seconds: float) -> APIRouter:
    """The routes below /api/v1."""
    router = APIRouter(prefix="/api/v1")

    @router.get("/jobs")
    def list_jobs(
        namespace: Annotated[str | None, Query(max_length=63)] = None,
        after: Annotated[str | None, Query(max_length=512)] = None,
        limit: Annotated[int, Query(ge=1, le=500)] = 100,
    ) -> JobList:
        views = history.jobs(namespace, None if after is None else _key_of(after), limit + 1)
        page = views[:limit]
        return JobList(
            items=[_job_object(view) for view in page],
            next=_token_of(page[-1].key) if len(views) > limit else None,
        )

    @router.get("/namespaces/{namespace}/jobs/{name}")
    def get_job(namespace: Namespace, name: Name) -> JobObject:
        return _job_object(_found(history, namespace, name))

    @router.get("/namespaces/{namespace}/jobs/{name}/history")
    def get_history(
        namespace: Namespace,
        name: Name,
        kind: Annotated[str | None, Query(max_length=32)] = None,
        after: Annotated[int, Query(ge=0, le=2**63 - 1)] = 0,
        limit: Annotated[int, Query(ge=1, le=5000)] = 1000,
    ) -> EntryList:
        view = _found(history, namespace, name)
        entries = history.entries(view.key.uid, after, limit + 1, kind)
        items = [EntryObject(id=entry.id, kind=entry.kind, body=json.loads(entry.body)) for entry in entries[:limit]]
        return EntryList(uid=view.key.uid, items=items, next=items[-1].id if len(entries) > limit else None)

    @router.get("/namespaces/{namespace}/jobs/{name}/stream", response_class=EventSourceResponse)
    def stream(namespace: Namespace, name: Name) -> EventSourceResponse:
        hub.check_room()
        uid = _found(history, namespace, name).key.uid
        return EventSourceResponse(
            follow(history, hub, uid, _as_json, poll_seconds), ping=_PING_SECONDS, send_timeout=_PING_SECONDS
        )

    return router


def _found(history: History, namespace: str, name: str) -> JobView:
    view = history.job(namespace, name)
    if view is None:
        raise Refusal(404, "NotFound", f"no run of job {name} in namespace {namespace} has posted yet")
    return view


def _job_object(view: JobView) -> JobObject:
    return JobObject(
        namespace=view.key.namespace,
        name=view.key.name,
        uid=view.key.uid,
        attempt=view.attempt,
        epoch=view.epoch,
        dropped=view.dropped,
        last_post_time=datetime.fromtimestamp(view.updated, UTC),
        ended=view.standing.ended,
        steps=view.standing.steps,
        progress=view.standing.progress,
        result=view.standing.result,
    )


def _as_json(view: JobView) -> str:
    return _job_object(view).model_dump_json(by_alias=True)


def _token_of(key: JobKey) -> str:
    return base64.urlsafe_b64encode(json.dumps([key.namespace, key.name, key.uid]).encode()).decode()


def _key_of(token: str) -> JobKey:
    try:
        namespace, name, uid = json.loads(base64.urlsafe_b64decode(token))
        return JobKey(uid=str(uid), namespace=str(namespace), name=str(name))
    except (binascii.Error, ValueError, TypeError) as error:
        raise Refusal(422, "InvalidQuery", "`after` must be what `next` of the page before says") from error
