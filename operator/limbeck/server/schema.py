"""Tables of the history and their version.

Left out: queries (`history.py`). A new version adds a function to `_MIGRATIONS`; an older program refuses a newer one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Double,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    event,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.engine import Engine

VERSION: Final = 1

METADATA: Final = MetaData()
_BIG = BigInteger().with_variant(Integer(), "sqlite")

SCHEMA: Final = Table("limbeck_schema", METADATA, Column("version", Integer, nullable=False))

# One row for each job that ever posted. Times are Unix seconds.
JOBS: Final = Table(
    "limbeck_jobs",
    METADATA,
    Column("uid", String(64), primary_key=True),
    Column("namespace", String(63), nullable=False),
    Column("name", String(63), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("dropped", BigInteger, nullable=False),
    Column("standing", Text, nullable=False),
    Column("updated", Double, nullable=False),
    # Grows with each change of `standing`; `patched` is the one that the job's status shows.
    Column("revision", Integer, nullable=False),
    Column("patched", Integer, nullable=False),
    Column("patch_due", Double, nullable=False),
    Index("limbeck_jobs_by_name", "namespace", "name"),
)

# The last post of each driver process that was taken.
RUNS: Final = Table(
    "limbeck_runs",
    METADATA,
    Column("job_uid", String(64), primary_key=True),
    Column("run", String(64), primary_key=True),
    Column("sequence", Integer, nullable=False),
)

# Events (`kind` as in the event) and training records (`kind` "record", `number` the update).
ENTRIES: Final = Table(
    "limbeck_entries",
    METADATA,
    Column("id", _BIG, primary_key=True, autoincrement=True),
    Column("job_uid", String(64), nullable=False),
    Column("kind", String(32), nullable=False),
    Column("step", Text, nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("body", Text, nullable=False),
    Index("limbeck_entries_by_job", "job_uid", "id"),
    Index("limbeck_entries_by_step", "job_uid", "kind", "step", "number"),
    # An id that was given is never given again, so a reader's place in the history stays right.
    sqlite_autoincrement=True,
)

# From the version that is the key to the next one.
_MIGRATIONS: Final[dict[int, Callable[[Connection], None]]] = {}

# Any number, the same in every replica: only one of them makes the schema.
_ADVISORY_LOCK = 7_246_812_001


class SchemaError(Exception):
    """The database cannot be used by this version."""


def open_engine(url: str) -> Engine:
    """An engine whose connections know how to share a SQLite file."""
    engine = create_engine(url, pool_pre_ping=True)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def prepare(engine: Engine) -> None:
    """Make the tables, or bring them to this version. Raises SchemaError for those of a newer one."""
    with engine.execution_options(is_write=True).begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
        SCHEMA.create(connection, checkfirst=True)
        found = connection.execute(select(SCHEMA.c.version)).scalar_one_or_none()
        if found is None:
            METADATA.create_all(connection)
            connection.execute(insert(SCHEMA).values(version=VERSION))
            return
        if found > VERSION:
            raise SchemaError(
                f"the database's schema must be of version {VERSION} at most, got {found}; run the newer limbeck "
                "server that made it, or give this one another database"
            )
        for version in range(found, VERSION):
            _MIGRATIONS[version](connection)
        if found < VERSION:
            connection.execute(update(SCHEMA).values(version=VERSION))


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # transactions begin where `_begin_sqlite` says, not where the driver guesses
    cursor = connection.cursor()
    cursor.execute("PRAGMA busy_timeout = 10000")
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = NORMAL")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that reads first and writes later would meet another writer and could not wait for it.
    is_write = connection.get_execution_options().get("is_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if is_write else "BEGIN")
