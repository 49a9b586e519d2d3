"""The table of jobs, in SQLite or PostgreSQL: every change of a job's state is one guarded statement.

What is true of a job stands here; DBOS knows which parts of a running one are done.
"""

from __future__ import annotations

import json
import logging
import math
import secrets
import sqlite3
import time
from collections import deque
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from kinema.errors import InsufficientDisk, InvalidRequest, JobNotFound, QueueUnavailable
from kinema.jobs.binding import check_format
from kinema.jobs.job import Failure, Job, JobPage
from kinema.jobs.sqlite_file import SqliteFile
from kinema.messages import Message
from kinema.values import VideoRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from kinema.jobs.job import Status

log = logging.getLogger(__name__)

_tables = sa.MetaData()
_jobs = sa.Table(
    "kinema_jobs",
    _tables,
    sa.Column("seq", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("id", sa.Text, nullable=False, unique=True),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("passed", sa.Integer, nullable=False, default=0),  # how often another job went ahead of it
    sa.Column("request", sa.Text, nullable=False),
    sa.Column("title", sa.Text),
    sa.Column("image", sa.Text, index=True),
    sa.Column("idempotency_key", sa.Text, unique=True),
    sa.Column("fingerprint", sa.Text),
    sa.Column("stage", sa.Text),
    sa.Column("step", sa.Integer, nullable=False, default=0),
    sa.Column("total", sa.Integer, nullable=False, default=0),
    sa.Column("progress", sa.Integer, nullable=False, default=0),
    sa.Column("eta", sa.Float),
    sa.Column("stage_durations", sa.Text, nullable=False, default="{}"),
    sa.Column("previews", sa.Integer, nullable=False, default=0),
    sa.Column("attempts", sa.Integer, nullable=False, default=0),
    sa.Column("error_code", sa.Text),
    sa.Column("error_message", sa.Text),
    sa.Column("pinned", sa.Boolean, nullable=False, default=False),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("started_at", sa.Float),
    sa.Column("completed_at", sa.Float),
    sa.Column("expires_at", sa.Float),
    sa.Index("kinema_jobs_order", "status", "priority", "seq"),
    sqlite_autoincrement=True,  # a deleted job's number is never given again, so that paging stays true
)
# Which database this is: the folder whose files it knows has the same id.
_identity = sa.Table(
    "kinema_database",
    _tables,
    sa.Column("only", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("id", sa.Text, nullable=False),
    sa.Column("format", sa.Integer, nullable=False),
)
# Raised whenever the tables or the requests in them change.
FORMAT = 2
# Jobs whose files may still be there: noted with the deletion itself, so that no crash makes them unknown.
_deletions = sa.Table(
    "kinema_deletions", _tables, sa.Column("job", sa.Text, primary_key=True), sa.Column("image", sa.Text)
)
_QUEUED = _jobs.c.status == "queued"
_RUNNING = _jobs.c.status == "in_progress"
# Each step of priority is worth so much waiting: a job goes ahead of those that came up to so many seconds before it.
AGING_SECONDS = 60.0
# Smallest first. What waits rises as time passes, all alike, so their order is fixed when they come.
_rank = _jobs.c.created_at - _jobs.c.priority * AGING_SECONDS
_TURN = (_rank, _jobs.c.seq)
_WAITING = sa.select(sa.func.count()).select_from(_jobs).where(_QUEUED)

# Keys of PostgreSQL's advisory locks: "kinema" in hexadecimal, and one more.
_SUBMIT_LOCK = 0x6B696E656D61
_RUNNER_LOCK = _SUBMIT_LOCK + 1
# Reading all pages is work, and anyone may ask whether the server is ready: it is done no more often than this.
READ_THROUGH_SECONDS = 30.0
# How often a job may be passed over for another of the model that is loaded.
MAX_PASSED = 3


class JobTable:
    """The table of jobs at a database's address; made at its first use.

    Attributes:
        id: The database's own, drawn when it was made.
        beside: Another file without which no job is made, checked with this one.

    Raises:
        QueueUnavailable: from every method, where the database does not answer, or is no longer the one it was.
        InsufficientDisk: from every method that changes something, where its disk is full.
    """

    def __init__(self, url: str) -> None:
        try:
            parsed = sa.make_url(url)
            self.address = parsed.render_as_string()
            self._file = SqliteFile(parsed) if parsed.get_backend_name() == "sqlite" else None
            self._engine = _engine(parsed if self._file is None else self._file.url)
            self._sqlite = self._file is not None
            # SQLite lets one writer in at a time; here they wait in order, there they would sleep and try again.
            self._writing = Lock() if self._sqlite else nullcontext()
            self._adding = Lock()
            self._additions: deque[_Addition] = deque()
            self._runner_session: _RunnerSession | None = None  # the latest, also where it is lost
            self._fault: str | None = None
            self.beside: SqliteFile | None = None
            self._read_through = -math.inf  # when all pages were read
            try:
                self.id = self._prepare()
            except (SQLAlchemyError, sqlite3.Error) as error:
                if self._file is None or not _is_full(error):
                    raise
                self._file.release_reserve()
                self.id = self._prepare()
            if self._file is not None:
                self._file.hold()
        except InvalidRequest:
            raise
        except (SQLAlchemyError, sqlite3.Error, OSError, ImportError, ValueError) as error:
            raise QueueUnavailable(
                f"the queue's database can't be opened ({_reason(error)}); KINEMA_DATABASE_URL is postgresql://…, or "
                "unset for an SQLite file in the data folder"
            ) from None

    def _prepare(self) -> str:
        """Create the tables where there are none; return the database's id."""
        with self._engine.begin() as connection:  # two servers that begin at once
            if self._sqlite:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            else:
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_SUBMIT_LOCK)))
            self._check_format(connection)
            _tables.create_all(connection)
            values = {"only": 1, "id": secrets.token_hex(16), "format": FORMAT}
            own = self._insert(_identity).values(values).on_conflict_do_nothing()
            connection.execute(own)
            return str(connection.execute(sa.select(_identity.c.id)).scalar_one())

    def _check_format(self, connection: sa.Connection) -> None:
        """Refuse a database that another version of Kinema wrote, before anything in it is changed.

        Raises:
            InvalidRequest: naming both formats.
        """
        found = sa.inspect(connection)
        if not found.has_table(_jobs.name):
            return
        numbered = found.has_table(_identity.name) and "format" in {
            c["name"] for c in found.get_columns(_identity.name)
        }
        number = connection.execute(sa.select(_identity.c.format)).scalar() if numbered else 1
        if number is not None:
            check_format(number, FORMAT, self.address)

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()
        if self._file is not None:
            self._file.close()

    def check(self) -> None:
        """Ask the database itself, not what is cached of it, whether it is there, the one that was opened, and whole.

        Raises:
            QueueUnavailable: where it is not; no job is added until a later check finds it whole.
        """
        if self._file is None:
            with self._read() as connection:
                found = connection.execute(sa.select(_identity.c.id)).scalar()
        else:
            self._check_in_place()
            with _translated():
                try:
                    with self._file.fresh() as fresh:
                        found = (fresh.execute("SELECT id FROM kinema_database").fetchone() or (None,))[0]
                    now = time.monotonic()
                    if self._fault is not None or now - self._read_through > READ_THROUGH_SECONDS:
                        beside = None if self.beside is None else self.beside.fault()
                        self._fault, self._read_through = self._file.fault() or beside, now
                except sqlite3.DatabaseError as error:
                    self._fault = _reason(error)
            self._check_whole()
        if found != self.id:
            raise _replaced()

    def _check_in_place(self) -> None:
        if self._file is not None and not self._file.is_in_place():
            raise _replaced()

    def _check_whole(self) -> None:
        if self._fault is not None:
            raise QueueUnavailable(
                Message(
                    "database_damaged",
                    "the queue's database is damaged ({reason}), so no job can be stored; stop the server and restore "
                    "its database from a backup",
                    reason=self._fault,
                )
            )

    @property
    def _insert(self) -> Callable[[sa.Table], Any]:
        return sqlite.insert if self._sqlite else postgresql.insert

    @contextmanager
    def _write(self) -> Iterator[sa.Connection]:
        self._check_in_place()
        with self._writing, _translated(), self._engine.begin() as connection:
            if self._sqlite:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            yield connection

    @contextmanager
    def _write_as_runner(self) -> Iterator[sa.Connection]:
        """As `_write`, in the session that holds the runner's lock: once that is lost, nothing is written."""
        if self._runner_session is None:
            with self._write() as connection:
                yield connection
            return
        with _translated(), self._runner_session.begin() as connection:
            yield connection

    @contextmanager
    def _read(self) -> Iterator[sa.Connection]:
        self._check_in_place()
        with _translated(), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def sole_runner(self) -> Iterator[bool]:
        """Whether this process may run this database's jobs, until the context is left or `is_sole_runner` is False.

        In PostgreSQL the lock belongs to one session and ends with its connection; beside SQLite's file, a file has it.
        """
        if self._file is not None:
            with self._file.sole_runner() as taken:
                yield taken
            return
        with _translated(), self._engine.connect() as connection:
            lock = sa.select(sa.func.pg_try_advisory_lock(_RUNNER_LOCK))
            taken = bool(connection.execute(lock).scalar())
            connection.commit()
            if not taken:
                yield False
                return
            session = self._runner_session = _RunnerSession(connection)
            try:
                yield True
            finally:
                session.end()

    def is_sole_runner(self) -> bool:
        """Whether `sole_runner` holds its lock yet; once it was lost, never again in that context."""
        return self._runner_session is None or self._runner_session.is_alive()

    def has_runner(self) -> bool:
        """Whether any process, this one or another, holds the lock of `sole_runner`."""
        if self._file is not None:
            return self._file.has_runner()
        locks = sa.text(
            "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 1 "
            "AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) "
            "AND classid = :high AND objid = :low LIMIT 1"
        )
        with self._read() as connection:
            found = connection.execute(locks, {"high": _RUNNER_LOCK >> 32, "low": _RUNNER_LOCK & 0xFFFFFFFF})
            return found.first() is not None

    def add(self, values: Mapping[str, Any], bound: int) -> int | None:
        """A new queued job; its place, or None where `bound` are waiting.

        Whoever comes while another's job is written waits for the next turn, and all who wait share one: a disk that
        takes some milliseconds to be sure takes no more for twenty.

        Raises:
            KeyTaken: where the idempotency key is another job's.
        """
        mine = _Addition(values, bound)
        self._additions.append(mine)
        with self._adding:
            if not mine.done:
                batch = [self._additions.popleft() for _ in range(len(self._additions))]
                try:
                    self._check_whole()
                    with self._write() as connection:
                        self._add_all(batch, connection)
                    self._check_kept(batch)
                except BaseException as error:
                    for addition in batch:
                        addition.error = error
                    raise
                finally:
                    for addition in batch:
                        addition.done = True
        if mine.error is not None:
            raise mine.error
        return mine.place

    def _check_kept(self, batch: list[_Addition]) -> None:
        """See with a new connection to SQLite's file that the next start would find these jobs.

        What is written to a file that was removed or overwritten meanwhile is reported as stored, and lost.
        """
        if self._file is None:
            return  # a server that is asked over a socket has only one answer
        ids = [addition.values["id"] for addition in batch if addition.place is not None]
        self._check_in_place()
        with _translated():
            try:
                with self._file.fresh() as fresh:
                    found = fresh.execute(
                        "SELECT count(*) FROM kinema_jobs WHERE id IN (SELECT value FROM json_each(?))",
                        [json.dumps(ids)],
                    )
                    kept = found.fetchone()[0] == len(ids)
            except sqlite3.DatabaseError as error:
                self._fault = _reason(error)
                self._check_whole()
        if not kept:
            raise _replaced()

    def _add_all(self, batch: list[_Addition], connection: sa.Connection) -> None:
        if not self._sqlite:
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_SUBMIT_LOCK)))
        waiting = connection.execute(_WAITING).scalar_one()
        insert = self._insert(_jobs)
        for addition in batch:
            if waiting >= addition.bound:
                continue
            added = insert.values(status="queued", **addition.values).on_conflict_do_nothing()
            try:
                with connection.begin_nested():  # what is wrong with one is no matter of the others
                    row = connection.execute(added.returning(_rank)).first()
            except (sa.exc.DataError, UnicodeError, ValueError) as error:
                said = Message("not_kept", "the database can't keep this request: {reason}", reason=_reason(error))
                addition.error = InvalidRequest(said)
                continue
            if row is None:
                addition.error = KeyTaken()
                continue
            waiting += 1
            addition.place = connection.execute(_WAITING.where(_rank <= row[0])).scalar_one()

    def waiting(self) -> int:
        """How many jobs are queued."""
        with self._read() as connection:
            return connection.execute(_WAITING).scalar_one()

    def by_key(self, key: str) -> tuple[Job, str] | None:
        """The job with an idempotency key, and the fingerprint of what was asked."""
        with self._read() as connection:
            row = connection.execute(_with_places().where(_jobs.c.idempotency_key == key)).mappings().first()
        return None if row is None else (_job(row), row["fingerprint"])

    def get(self, job_id: str) -> Job:
        """One job.

        Raises:
            JobNotFound: where there is none with this id.
        """
        found = self.some([job_id])
        if not found:
            raise JobNotFound(f"there is no job {job_id!r}; it was deleted, it expired, or it never was")
        return found[0]

    def some(self, ids: Collection[str]) -> list[Job]:
        """Those of these jobs that are there."""
        with self._read() as connection:
            rows = connection.execute(_with_places().where(_jobs.c.id.in_(ids))).mappings().all()
        return [_job(row) for row in rows]

    def page(self, after: str | None, limit: int, *, newest_first: bool) -> JobPage:
        """Jobs by their time of coming, those after one of them or from the start."""
        query = _with_places().order_by(_jobs.c.seq.desc() if newest_first else _jobs.c.seq).limit(limit + 1)
        with self._read() as connection:
            if after is not None:
                seq = connection.execute(sa.select(_jobs.c.seq).where(_jobs.c.id == after)).scalar()
                if seq is None:
                    raise JobNotFound(f"there is no job {after!r} to list those after it")
                query = query.where(_jobs.c.seq < seq if newest_first else _jobs.c.seq > seq)
            rows = connection.execute(query).mappings().all()
        return JobPage(tuple(_job(row) for row in rows[:limit]), has_more=len(rows) > limit)

    def claim(self, models: Collection[str | None]) -> tuple[str, str] | None:
        """Take the next job (id and model) for workers with these models loaded, or None where none waits.

        A job of a loaded model goes ahead of the first of its priority, which at most MAX_PASSED may do.
        """
        columns = (_jobs.c.id, _jobs.c.model, _jobs.c.priority, _jobs.c.passed)
        with self._write_as_runner() as connection:
            first = connection.execute(sa.select(*columns).where(_QUEUED).order_by(*_TURN).limit(1)).first()
            if first is None:
                return None
            chosen = first
            if first.model not in models and None not in models and first.passed < MAX_PASSED:
                alike = sa.select(*columns).where(
                    _QUEUED, _jobs.c.priority == first.priority, _jobs.c.model.in_([m for m in models if m])
                )
                chosen = connection.execute(alike.order_by(*_TURN).limit(1)).first() or first
            if chosen is not first:
                passed = _jobs.update().where(_jobs.c.id == first.id).values(passed=first.passed + 1)
                connection.execute(passed)
            started = {"status": "in_progress", "started_at": time.time()}
            connection.execute(_jobs.update().where(_jobs.c.id == chosen.id, _QUEUED).values(started))
        return chosen.id, chosen.model

    def unclaim(self, job_id: str) -> bool:
        """Queue a claimed job again, at its old place; whether it was in progress."""
        unbegun = {"started_at": None, "stage": None, "step": 0, "total": 0, "progress": 0, "eta": None}
        return self._change(job_id, _RUNNING, as_runner=True, status="queued", **unbegun)

    def running(self) -> list[Job]:
        """All jobs in progress."""
        with self._read() as connection:
            rows = connection.execute(_with_places().where(_RUNNING)).mappings().all()
        return [_job(row) for row in rows]

    def record(self, job_id: str, **values: Any) -> bool:
        """Write down how a running job stands; whether it is still running."""
        if "stage_durations" in values:
            values["stage_durations"] = json.dumps(values["stage_durations"])
        return self._change(job_id, _RUNNING, as_runner=True, **values)

    def complete(self, job_id: str, keep_seconds: float) -> bool:
        """A running job is completed, once; whether it was this call."""
        now = time.time()
        expires = sa.case((_jobs.c.pinned, None), else_=now + keep_seconds)
        done = {"status": "completed", "progress": 100, "eta": None, "completed_at": now, "expires_at": expires}
        return self._change(job_id, _RUNNING, as_runner=True, **done)

    def fail(self, job_id: str, failure: Failure, keep_seconds: float, *, as_runner: bool = False) -> bool:
        """A queued or running job failed, or was cancelled by anyone, once; whether it was this call."""
        now = time.time()
        expires = sa.case((_jobs.c.pinned, None), else_=now + keep_seconds)
        fault = {"error_code": failure.code, "error_message": failure.message}
        ended = {"status": "failed", "eta": None, "completed_at": now, "expires_at": expires}
        return self._change(job_id, sa.or_(_QUEUED, _RUNNING), as_runner=as_runner, **ended, **fault)

    def pin(self, job_id: str, keep_seconds: float, *, pinned: bool) -> bool:
        """Keep a job for good, or let it expire counted from now; whether it is there."""
        ended = _jobs.c.completed_at.is_not(None)
        expires = sa.null() if pinned else sa.case((ended, time.time() + keep_seconds), else_=None)
        return self._change(job_id, sa.true(), pinned=pinned, expires_at=expires)

    def rename(self, job_id: str, title: str) -> bool:
        """Give a job another title; whether it is there."""
        return self._change(job_id, sa.true(), title=title)

    def count_attempt(self, job_id: str) -> int:
        """A worker died or hung under this job; how many there were."""
        with self._write_as_runner() as connection:
            counted = _jobs.update().where(_jobs.c.id == job_id).values(attempts=_jobs.c.attempts + 1)
            found = connection.execute(counted.returning(_jobs.c.attempts)).scalar()
        return int(found or 0)

    def remove(self, job_id: str, *, only_expired: bool = False) -> RemovedJob | None:
        """Forget a job, or only if its time is over, for it may just have been pinned; None where it was not there.

        That its files are to be deleted is noted with it (`deletions`). A full disk does not hinder it.
        """
        guard = _over() if only_expired else sa.true()
        try:
            return self._remove(job_id, guard)
        except InsufficientDisk:
            if self._file is None:
                raise
            self._file.release_reserve()
            return self._remove(job_id, guard)

    def _remove(self, job_id: str, guard: sa.ColumnElement[bool]) -> RemovedJob | None:
        delete = _jobs.delete().where(_jobs.c.id == job_id, guard).returning(_jobs.c.status, _jobs.c.image)
        with self._write() as connection:
            gone = connection.execute(delete).first()
            if gone is None:
                return None
            connection.execute(self._insert(_deletions).values(job=job_id, image=gone.image).on_conflict_do_nothing())
        return RemovedJob(gone.status, gone.image)

    def deletions(self) -> list[tuple[str, str | None]]:
        """Jobs that were removed, and their images, whose files may still be there."""
        with self._read() as connection:
            return [(row.job, row.image) for row in connection.execute(sa.select(_deletions))]

    def forget_deletions(self, jobs: Collection[str]) -> None:
        """The files of these jobs are gone."""
        with self._write() as connection:
            connection.execute(_deletions.delete().where(_deletions.c.job.in_(jobs)))

    def refill_reserve(self) -> None:
        """Keep room on the database's disk for the next deletions on a full one."""
        if self._file is not None:
            self._file.refill_reserve()

    def expired(self) -> list[str]:
        """Jobs whose time is over."""
        with self._read() as connection:
            return list(connection.execute(sa.select(_jobs.c.id).where(_over())).scalars())

    def needs(self, image: str) -> bool:
        """Whether any job was made, or will be, from this still."""
        with self._read() as connection:
            return connection.execute(sa.select(_jobs.c.id).where(_jobs.c.image == image).limit(1)).first() is not None

    def everything(self) -> tuple[set[str], set[str]]:
        """The ids of all jobs, and the stills that they need."""
        with self._read() as connection:
            rows = connection.execute(sa.select(_jobs.c.id, _jobs.c.image)).all()
        return {row.id for row in rows}, {row.image for row in rows if row.image is not None}

    def needed(self) -> set[str]:
        """The ids of all jobs that have a video, and the images of all jobs: what is to be found in the data folder."""
        with self._read() as connection:
            rows = connection.execute(sa.select(_jobs.c.id, _jobs.c.image, _jobs.c.status)).all()
        done = {row.id for row in rows if row.status == "completed"}
        return done | {row.image for row in rows if row.image is not None}

    def latest_completed(self, count: int) -> list[Job]:
        """The jobs that were completed last, the newest first."""
        query = sa.select(_jobs, sa.null().label("place")).where(_jobs.c.status == "completed")
        with self._read() as connection:
            rows = connection.execute(query.order_by(_jobs.c.completed_at.desc()).limit(count)).mappings().all()
        return [_job(row) for row in rows]

    def _change(self, job_id: str, guard: sa.ColumnElement[bool], *, as_runner: bool = False, **values: Any) -> bool:
        with self._write_as_runner() if as_runner else self._write() as connection:
            return connection.execute(_jobs.update().where(_jobs.c.id == job_id, guard).values(values)).rowcount == 1


class _RunnerSession:
    """PostgreSQL's session that holds the runner's lock. What is written in it is written by who holds the lock."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection
        self._using = Lock()
        self._lost = False

    @contextmanager
    def begin(self) -> Iterator[sa.Connection]:
        """A transaction of this session.

        Raises:
            QueueUnavailable: the session is over.
        """
        with self._using:
            if self._lost:
                raise QueueUnavailable(
                    Message(
                        "runner_lock_lost", "the connection to the queue's database was lost; jobs wait for another"
                    )
                )
            try:
                with self._connection.begin():
                    yield self._connection
            finally:
                # SQLAlchemy would connect again with the next statement, in a session without the lock.
                self._lost = self._lost or self._connection.invalidated

    def is_alive(self) -> bool:
        """Ask the database."""
        try:
            with self.begin() as connection:
                connection.execute(sa.select(1))
        except Exception:  # noqa: BLE001 - whatever the reason, the lock can't be relied on
            self._lost = True
        return not self._lost

    def end(self) -> None:
        """Close the connection, and release the lock with it."""
        with self._using:
            self._lost = True
            self._connection.invalidate()


class KeyTaken(Exception):
    """Another job has this idempotency key."""


@dataclass(frozen=True, slots=True)
class RemovedJob:
    """A job as it was at the moment of its removal."""

    status: Status
    image: str | None


@dataclass(slots=True, eq=False)
class _Addition:
    """A job on its way into the table, and what became of it."""

    values: Mapping[str, Any]
    bound: int
    place: int | None = None
    error: BaseException | None = None
    done: bool = False


def _engine(url: sa.URL) -> sa.Engine:
    if url.get_backend_name() == "sqlite":
        engine = sa.create_engine(url, connect_args={"timeout": 30, "isolation_level": "IMMEDIATE"})

        @sa.event.listens_for(engine, "connect")
        def _(connection: Any, _record: Any) -> None:
            connection.execute("PRAGMA journal_mode=WAL")  # who reads never waits for who writes
            connection.execute("PRAGMA synchronous=FULL")  # what was accepted survives a power cut
            connection.execute("PRAGMA temp_store=MEMORY")  # so that a full disk hinders no deletion

        return engine
    if url.get_backend_name() not in ("postgresql", "postgres"):
        raise ValueError(f"{url.drivername!r} is no database that the queue knows")
    # A server that is cut off is noticed within seconds, not after the many minutes that TCP would wait.
    patience = {"connect_timeout": 5, "tcp_user_timeout": 10_000, "keepalives_idle": 10, "keepalives_interval": 5}
    return sa.create_engine(
        url.set(drivername="postgresql+psycopg"), pool_pre_ping=True, connect_args=patience | dict(url.query)
    )


def _over() -> sa.ColumnElement[bool]:
    """Whether a job's time is over."""
    return sa.and_(_jobs.c.expires_at < time.time(), sa.not_(_jobs.c.pinned))


def _with_places() -> sa.Select[Any]:
    """All jobs, each queued one with its place among them."""
    place = sa.func.row_number().over(order_by=_TURN).label("place")
    places = sa.select(_jobs.c.seq, place).where(_QUEUED).subquery()
    return sa.select(_jobs, places.c.place).outerjoin(places, places.c.seq == _jobs.c.seq)


def _job(row: sa.RowMapping) -> Job:
    return Job(
        id=row["id"],
        status=row["status"],
        # It was checked when it came; a later version's narrower ranges don't make it unreadable.
        request=VideoRequest.model_construct(**json.loads(row["request"])),
        title=row["title"],
        image=row["image"],
        priority=row["priority"],
        created_at=row["created_at"],
        started_at=row["started_at"],
        completed_at=row["completed_at"],
        expires_at=row["expires_at"],
        pinned=row["pinned"],
        queue_position=row["place"],
        stage=row["stage"],
        step=row["step"],
        total=row["total"],
        progress=row["progress"],
        eta=row["eta"],
        error=None if row["error_code"] is None else Failure(row["error_code"], row["error_message"]),
        stage_durations=json.loads(row["stage_durations"]),
        previews=row["previews"],
        attempts=row["attempts"],
    )


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (SQLAlchemyError, sqlite3.Error) as error:
        if _is_full(error):
            raise InsufficientDisk(
                Message("database_full", "the disk of the queue's database is full: delete videos, or make room")
            ) from None
        log.warning("the queue's database does not answer: %s", _reason(error))  # with its address, perhaps
        raise QueueUnavailable(
            Message("no_database", "the queue's database does not answer; try again in a moment")
        ) from None


# Without room SQLite raises either, the second for the file that its processes share.
_FULL = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE)


def _is_full(error: Exception) -> bool:
    return getattr(getattr(error, "orig", error), "sqlite_errorcode", None) in _FULL


def _replaced() -> QueueUnavailable:
    return QueueUnavailable(
        Message(
            "database_gone",
            "the queue's database was removed or replaced while the server runs; put it back, or stop the server and "
            "restore it from a backup",
        )
    )


def _reason(error: Exception) -> str:
    """What went wrong, in the driver's words: they hold neither address nor password of ours."""
    return str(error.orig if isinstance(error, DBAPIError) else error).strip().partition("\n")[0]
