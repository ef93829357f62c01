"""The server as an ASGI application: routes, health, metrics, and the work in the background.

Left out: the web page, and Kubernetes (`cluster.py`), which is passed in.
"""

from __future__ import annotations

import asyncio
import math
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from anyio.to_thread import run_sync
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from sqlalchemy.exc import SQLAlchemyError
from starlette.requests import ClientDisconnect

from limbeck import names
from limbeck.api.posts import ProgressReply
from limbeck.kube.events import EventRecorder
from limbeck.server.access import Access
from limbeck.server.announcements import Announcement
from limbeck.server.cluster import Cluster
from limbeck.server.history import History, JobKey
from limbeck.server.intake import Intake
from limbeck.server.jobs import Jobs
from limbeck.server.limits import Buckets
from limbeck.server.metrics import Metrics
from limbeck.server.names import EVENT_SOURCE
from limbeck.server.patcher import Patcher
from limbeck.server.refusal import Refusal
from limbeck.server.rest import Name, Namespace, make_router
from limbeck.server.settings import Settings
from limbeck.server.stream import Hub

_STOP_SECONDS = 10.0


def create_app(settings: Settings, cluster: Cluster, clock: Callable[[], float] = time.time) -> FastAPI:
    """The application. Raises SchemaError or what SQLAlchemy raises where the database cannot be used."""
    history = History(settings.database_url.get_secret_value(), clock, max_entries_per_job=settings.max_entries_per_job)
    metrics = Metrics()
    hub = Hub(metrics, settings.max_streams)
    access = Access(
        cluster,
        settings.audience,
        metrics,
        clock,
        cache_seconds=settings.token_cache_seconds,
        reviews_per_second=settings.token_reviews_per_second,
    )
    jobs = Jobs(cluster, clock, cache_seconds=settings.job_cache_seconds)
    buckets: Buckets[tuple[str, str]] = Buckets(settings.posts_per_second, settings.posts_burst, clock)
    recorder = EventRecorder(cluster, controller=EVENT_SOURCE, instance=socket.gethostname())
    intake = Intake(access, jobs, history, buckets, hub.notify, _announcer(recorder))
    patcher = Patcher(
        cluster,
        history,
        metrics,
        clock,
        interval_seconds=settings.patch_interval_seconds,
        retention_days=settings.retention_days,
    )
    app = FastAPI(
        title="limbeck server", docs_url=None, redoc_url=None, lifespan=_lifespan(history, hub, patcher, recorder)
    )
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(SQLAlchemyError, _history_unavailable)
    _add_intake(app, intake, metrics, settings.max_post_bytes)
    _add_probes(app, history, metrics)
    app.include_router(make_router(history, hub, settings.stream_poll_seconds))
    app.state.hub = hub
    return app


def _announcer(recorder: EventRecorder) -> Callable[[JobKey, Announcement], None]:
    """Has an Event of the job written; it may be lost, but is never repeated."""

    def announce(key: JobKey, announcement: Announcement) -> None:
        metadata = {"name": key.name, "namespace": key.namespace, "uid": key.uid}
        job = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": metadata}
        recorder.record(job, "Normal", announcement.reason, announcement.note, action="Run")

    return announce


def _lifespan(
    history: History, hub: Hub, patcher: Patcher, recorder: EventRecorder
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        hub.open()
        stop = threading.Event()
        worker = threading.Thread(target=patcher.run, args=(stop,), name="patcher", daemon=True)
        worker.start()
        recorder.start()
        app.state.worker = worker
        try:
            yield
        finally:
            hub.close()
            stop.set()
            await asyncio.to_thread(worker.join, _STOP_SECONDS)
            await asyncio.to_thread(recorder.stop)
            history.close()

    return lifespan


def _add_intake(app: FastAPI, intake: Intake, metrics: Metrics, max_bytes: int) -> None:
    @app.post("/api/v1/namespaces/{namespace}/jobs/{name}/progress")
    async def post_progress(namespace: Namespace, name: Name, request: Request) -> ProgressReply:
        with metrics.post_seconds.time():
            try:
                token = _token(request)
                body = await _read(request, max_bytes)
                reply = await run_sync(intake.accept, namespace, name, token, body)
            except Refusal as refusal:
                metrics.posts.labels(refusal.reason).inc()
                raise
        metrics.posts.labels("duplicate" if reply.duplicate else "taken").inc()
        return reply


def _add_probes(app: FastAPI, history: History, metrics: Metrics) -> None:
    @app.get("/livez")
    async def livez() -> PlainTextResponse:
        worker: threading.Thread | None = getattr(app.state, "worker", None)
        is_well = worker is not None and worker.is_alive()
        return PlainTextResponse("ok" if is_well else "the patcher has died", 200 if is_well else 500)

    @app.get("/readyz")
    async def readyz() -> PlainTextResponse:
        try:
            await run_sync(history.ping)
        except SQLAlchemyError:
            return PlainTextResponse("the history does not answer", 503)
        return PlainTextResponse("ok")

    @app.get("/metrics")
    def serve_metrics() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)


def _token(request: Request) -> str:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


async def _read(request: Request, max_bytes: int) -> bytes:
    """The body, as long as it is within bounds; what is longer is not read to its end."""
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > max_bytes:
                raise Refusal(413, "PostTooLarge", f"a post must have at most {max_bytes} bytes; send more posts")
    except ClientDisconnect as error:
        raise Refusal(400, "CutOff", "the post ended too early") from error
    return bytes(body)


def _refused(_request: Request, refusal: Exception) -> Response:
    assert isinstance(refusal, Refusal)
    headers = {}
    if refusal.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if refusal.retry_after_seconds is not None:
        headers["Retry-After"] = str(math.ceil(refusal.retry_after_seconds))
    return JSONResponse({"reason": refusal.reason, "message": refusal.message}, refusal.status, headers)


def _history_unavailable(_request: Request, _error: Exception) -> Response:
    body = {"reason": "HistoryUnavailable", "message": "the database does not answer; try again later"}
    return JSONResponse(body, 503, {"Retry-After": "5"})
