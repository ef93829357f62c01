"""History: what runs posted, in SQLite or PostgreSQL, each post once, newer drivers before older ones.

Left out: who may post (`access.py`) and how a standing is made (`standing.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Row, and_, delete, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from limbeck.api.posts import ProgressPost, TrainingRecord
from limbeck.api.progress import RATE_LIMITED, to_wire
from limbeck.server.announcements import Announcement, announce
from limbeck.server.names import KIND_RECORD
from limbeck.server.schema import ENTRIES, JOBS, RUNS, open_engine, prepare
from limbeck.server.standing import Standing, fold


class StaleRunError(Exception):
    """A newer driver of the same job has posted already."""


@dataclass(frozen=True)
class JobKey:
    """One job, told apart from an earlier one of the same name."""

    uid: str
    namespace: str
    name: str


@dataclass(frozen=True)
class JobView:
    """What is known of one job."""

    key: JobKey
    attempt: int
    epoch: int
    dropped: int
    standing: Standing
    updated: float
    revision: int


@dataclass(frozen=True)
class Entry:
    """One event or training record; `body` is its JSON."""

    id: int
    kind: str
    body: str


class History:
    """The history of all jobs. Safe to use from several threads and by several replicas.

    Raises what SQLAlchemy raises where the database does not answer.
    """

    def __init__(self, url: str, clock: Callable[[], float], *, max_entries_per_job: int = 100_000) -> None:
        """Open the database and make its tables. Raises SchemaError for a database of a newer version."""
        self._clock, self._max_entries = clock, max_entries_per_job
        self._engine = open_engine(url)
        self._write = self._engine.execution_options(is_write=True)
        try:
            prepare(self._engine)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def ping(self) -> None:
        """Ask the database for a sign of life."""
        with self._engine.connect() as connection:
            connection.execute(select(1))

    def record(
        self,
        key: JobKey,
        post: ProgressPost,
        first: Standing | None = None,
        said: Callable[[Announcement], None] = lambda announcement: None,
    ) -> bool:
        """Take one post; False if it had been taken before. Raises StaleRunError.

        A job that the history does not know stands where `first` says. `said` is told, once the post is taken for
        good, what it makes worth announcing.
        """
        first = first or Standing()
        try:
            announcements = self._record(key, post, first)
        except IntegrityError:  # two replicas met the job's first post at once: now the row is there
            announcements = self._record(key, post, first)
        for announcement in announcements or ():
            said(announcement)
        return announcements is not None

    def _record(self, key: JobKey, post: ProgressPost, first: Standing) -> list[Announcement] | None:
        """What to announce; None for a post that had been taken before."""
        announcements: list[Announcement] = []
        with self._write.begin() as connection:
            job = connection.execute(select(JOBS).where(JOBS.c.uid == key.uid).with_for_update()).one_or_none()
            if job is None:
                connection.execute(insert(JOBS).values(**_new_job(key, first)))
                job = connection.execute(select(JOBS).where(JOBS.c.uid == key.uid)).one()
            if post.epoch < job.epoch:
                raise StaleRunError(f"epoch {post.epoch} is over: a driver with epoch {job.epoch} has taken over")
            if not _is_new(connection, key.uid, post):
                return None
            now = self._clock()
            values: dict[str, Any] = {"attempt": post.attempt, "epoch": post.epoch, "updated": now}
            values["dropped"] = job.dropped + post.dropped
            if post.events:
                before = Standing.model_validate_json(job.standing)
                standing = fold(before, post.events, datetime.fromtimestamp(now, UTC))
                standing, announcements = announce(standing, post.events)
                values |= {"standing": standing.model_dump_json(), "revision": job.revision + 1}
            connection.execute(update(JOBS).where(JOBS.c.uid == key.uid).values(**values))
            self._append(connection, key.uid, post)
        return announcements

    def _append(self, connection: Connection, uid: str, post: ProgressPost) -> None:
        for step, records in _by_step(post.records).items():
            connection.execute(delete(ENTRIES).where(_replaced_by(uid, step, records)))
        # Where a step stands is in the standing; its course is in the records.
        kept = [event for event in post.events if event.event not in RATE_LIMITED]
        rows = [
            {"job_uid": uid, "kind": event.event, "step": str(getattr(event, "step", "")), "number": 0}
            | {"body": to_wire(event)}
            for event in kept
        ] + [
            {"job_uid": uid, "kind": KIND_RECORD, "step": record.step, "number": record.update}
            | {"body": record.model_dump_json()}
            for record in _newest(post.records)
        ]
        if rows:
            connection.execute(insert(ENTRIES), rows)
            self._drop_oldest(connection, uid)

    def _drop_oldest(self, connection: Connection, uid: str) -> None:
        of_job = select(ENTRIES.c.id).where(ENTRIES.c.job_uid == uid)
        oldest_kept = connection.execute(
            of_job.order_by(ENTRIES.c.id.desc()).offset(self._max_entries - 1).limit(1)
        ).scalar_one_or_none()
        if oldest_kept is not None:
            connection.execute(delete(ENTRIES).where(ENTRIES.c.job_uid == uid, ENTRIES.c.id < oldest_kept))

    def job(self, namespace: str, name: str) -> JobView | None:
        """The newest job of a name."""
        found = select(JOBS).where(JOBS.c.namespace == namespace, JOBS.c.name == name)
        with self._engine.connect() as connection:
            row = connection.execute(found.order_by(JOBS.c.updated.desc()).limit(1)).one_or_none()
        return None if row is None else _view(row)

    def by_uid(self, uid: str) -> JobView | None:
        """One job."""
        with self._engine.connect() as connection:
            row = connection.execute(select(JOBS).where(JOBS.c.uid == uid)).one_or_none()
        return None if row is None else _view(row)

    def jobs(self, namespace: str | None, after: JobKey | None, limit: int) -> list[JobView]:
        """Jobs by namespace, name and UID, those behind `after`."""
        order = (JOBS.c.namespace, JOBS.c.name, JOBS.c.uid)
        query = select(JOBS).order_by(*order).limit(limit)
        if namespace is not None:
            query = query.where(JOBS.c.namespace == namespace)
        if after is not None:
            query = query.where(
                or_(
                    JOBS.c.namespace > after.namespace,
                    and_(JOBS.c.namespace == after.namespace, JOBS.c.name > after.name),
                    and_(JOBS.c.namespace == after.namespace, JOBS.c.name == after.name, JOBS.c.uid > after.uid),
                )
            )
        with self._engine.connect() as connection:
            return [_view(row) for row in connection.execute(query)]

    def entries(self, uid: str, after: int, limit: int, kind: str | None = None) -> list[Entry]:
        """Events and records of a job in the order in which they came, those behind `after`."""
        query = select(ENTRIES).where(ENTRIES.c.job_uid == uid, ENTRIES.c.id > after)
        if kind is not None:
            query = query.where(ENTRIES.c.kind == kind)
        with self._engine.connect() as connection:
            rows = connection.execute(query.order_by(ENTRIES.c.id).limit(limit)).all()
        return [Entry(row.id, row.kind, row.body) for row in rows]

    def behind(self) -> int:
        """How many jobs' status does not show yet what is known."""
        with self._engine.connect() as connection:
            return connection.execute(select(func.count()).where(JOBS.c.revision > JOBS.c.patched)).scalar_one()

    def claim_due(self, hold_seconds: float, limit: int) -> list[JobView]:
        """Jobs whose status is behind and due; nobody else gets them for `hold_seconds`."""
        now = self._clock()
        due = and_(JOBS.c.revision > JOBS.c.patched, JOBS.c.patch_due <= now)
        with self._engine.connect() as connection:
            rows = connection.execute(select(JOBS).where(due).order_by(JOBS.c.patch_due).limit(limit)).all()
        return [_view(row) for row in rows if self._claim(row, now + hold_seconds)]

    def _claim(self, row: Row[Any], until: float) -> bool:
        mine = and_(JOBS.c.uid == row.uid, JOBS.c.patch_due == row.patch_due)
        with self._write.begin() as connection:
            return connection.execute(update(JOBS).where(mine).values(patch_due=until)).rowcount == 1

    def patched(self, view: JobView) -> None:
        """The job's status shows this view."""
        with self._write.begin() as connection:
            connection.execute(
                update(JOBS)
                .where(JOBS.c.uid == view.key.uid, JOBS.c.patched < view.revision)
                .values(patched=view.revision)
            )

    def postpone(self, view: JobView, seconds: float) -> None:
        """Try again after so long."""
        with self._write.begin() as connection:
            due = {"patch_due": self._clock() + seconds}
            connection.execute(update(JOBS).where(JOBS.c.uid == view.key.uid).values(**due))

    def forget(self, unheard_seconds: float) -> int:
        """Drop the jobs that have not posted for so long; returns how many."""
        old = JOBS.c.updated < self._clock() - unheard_seconds
        with self._write.begin() as connection:
            uids = select(JOBS.c.uid).where(old)
            connection.execute(delete(ENTRIES).where(ENTRIES.c.job_uid.in_(uids)))
            connection.execute(delete(RUNS).where(RUNS.c.job_uid.in_(uids)))
            return connection.execute(delete(JOBS).where(old)).rowcount


def _new_job(key: JobKey, standing: Standing) -> dict[str, Any]:
    counters = dict.fromkeys(("attempt", "epoch", "dropped", "updated", "revision", "patched", "patch_due"), 0)
    names = {"uid": key.uid, "namespace": key.namespace, "name": key.name}
    return counters | names | {"standing": standing.model_dump_json()}


def _is_new(connection: Connection, uid: str, post: ProgressPost) -> bool:
    """Whether this post of its run is the first of its number; remembers it if so."""
    this = and_(RUNS.c.job_uid == uid, RUNS.c.run == post.run)
    last = connection.execute(select(RUNS.c.sequence).where(this)).scalar_one_or_none()
    if last is None:
        connection.execute(insert(RUNS).values(job_uid=uid, run=post.run, sequence=post.sequence))
        return True
    if post.sequence <= last:
        return False
    connection.execute(update(RUNS).where(this).values(sequence=post.sequence))
    return True


def _by_step(records: Sequence[TrainingRecord]) -> dict[str, list[int]]:
    updates: dict[str, list[int]] = {}
    for record in records:
        updates.setdefault(record.step, []).append(record.update)
    return updates


def _newest(records: Sequence[TrainingRecord]) -> list[TrainingRecord]:
    """Of each update the record that was made last, for it may be made again after a restart."""
    return list({(record.step, record.update): record for record in records}.values())


def _replaced_by(uid: str, step: str, updates: list[int]) -> Any:
    """What these updates of a step replace: the same and all later ones, for training goes on from there."""
    of_step = and_(ENTRIES.c.job_uid == uid, ENTRIES.c.kind == KIND_RECORD, ENTRIES.c.step == step)
    return and_(of_step, ENTRIES.c.number >= min(updates))


def _view(row: Row[Any]) -> JobView:
    return JobView(
        key=JobKey(row.uid, row.namespace, row.name),
        attempt=row.attempt,
        epoch=row.epoch,
        dropped=row.dropped,
        standing=Standing.model_validate_json(row.standing),
        updated=row.updated,
        revision=row.revision,
    )
