"""The table of jobs, in SQLite or PostgreSQL. Each state change is one guarded statement.

This table is the source of truth for jobs; DBOS only stores which parts of a running job are done.
"""

from __future__ import annotations

import json
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
from sqlalchemy.exc import SQLAlchemyError

from kinema.errors import InsufficientDisk, InvalidRequest, JobNotFound, QueueUnavailable
from kinema.jobs.change_feed import ChangeFeed
from kinema.jobs.database import (
    create_engine,
    database_replaced,
    driver_message,
    is_disk_full,
    translate_errors,
)
from kinema.jobs.job import Failure, Job, JobPage
from kinema.jobs.job_schema import (
    COUNT_QUEUED,
    DELETIONS,
    FORMAT,
    IDENTITY,
    IS_QUEUED,
    IS_RUNNING,
    JOBS,
    METADATA,
    OLDEST_READER,
    QUEUE_ORDER,
    STORE,
    TURN_ORDER,
    WEBHOOKS,
    is_expired,
    job_from_row,
    webhook_values,
)
from kinema.jobs.migrations import find_format, migrate
from kinema.jobs.owner_limits import LimitReached, OwnerLimits
from kinema.jobs.positions import position_of, positions_of
from kinema.jobs.scheduler_lease import SchedulerLease, current_scheduler
from kinema.jobs.sqlite_file import SqliteFile
from kinema.messages import Message

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from kinema.jobs.job import Status
    from kinema.jobs.job_files import JobFiles

# Options of a PostgreSQL URL that are not shown; SQLAlchemy itself hides only the password before the host.
_PASSWORDS = ("password", "sslpassword")
# Key of PostgreSQL's advisory lock for submissions: "kinema" in hexadecimal.
_SUBMIT_LOCK = 0x6B696E656D61
# Minimum interval of checks that read all pages, since any client may request /readyz.
FULL_CHECK_SECONDS = 30.0
# How many jobs of a loaded model may overtake a job.
MAX_PASSED = 3


class JobTable:
    """The table of jobs in the database of a URL. Missing tables are created.

    Attributes:
        id: The database's random id, from its creation.
        display_url: The URL without the password.
        workflow_file: The SQLite file of DBOS, which is checked together with this database.
        changes: Notifications of other processes' changes; None for SQLite.

    Raises:
        QueueUnavailable: by every method, if the database does not answer or was removed, replaced or damaged.
        InsufficientDisk: by every method that writes, if the database's disk is full.
    """

    def __init__(self, url: str) -> None:
        try:
            parsed = sa.make_url(url)
            self.display_url = parsed.difference_update_query(_PASSWORDS).render_as_string()
            self._file = SqliteFile(parsed) if parsed.get_backend_name() == "sqlite" else None
            self._engine = create_engine(parsed if self._file is None else self._file.url)
            self._sqlite = self._file is not None
            # SQLite allows one writer at a time. With this lock writers wait in order; SQLite would sleep and retry.
            self._write_lock = Lock() if self._sqlite else nullcontext()
            self._insert_lock = Lock()
            self._pending_inserts: deque[_PendingInsert] = deque()
            self._lease: SchedulerLease | None = None  # the latest one, which may be lost
            self.changes = None if self._sqlite else ChangeFeed(self._engine)
            self._damage: str | None = None
            self.workflow_file: SqliteFile | None = None
            self._last_full_check = -math.inf
            try:
                self.id = self._prepare()
            except (SQLAlchemyError, sqlite3.Error) as error:
                if self._file is None or not is_disk_full(error):
                    raise
                self._file.release_reserve()
                self.id = self._prepare()
            if self._file is not None:
                self._file.keep_open()
        except InvalidRequest:
            self._engine.dispose()
            raise
        except (SQLAlchemyError, sqlite3.Error, OSError, ImportError, ValueError) as error:
            raise QueueUnavailable(
                f"the queue's database can't be opened ({driver_message(error)}); set KINEMA_DATABASE_URL to "
                "postgresql://…, or leave it unset for a SQLite file in the data folder"
            ) from None

    def _prepare(self) -> str:
        """Create missing tables and return the database's id."""
        with self._engine.begin() as connection:
            # Two servers may start at the same time.
            if self._sqlite:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            else:
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_SUBMIT_LOCK)))
            found = find_format(connection)
            if found is not None:
                migrate(connection, found, self.display_url)
            METADATA.create_all(connection)
            values = {"only": 1, "id": secrets.token_hex(16), "format": FORMAT, "oldest_reader": OLDEST_READER}
            connection.execute(self.insert(IDENTITY).values(values).on_conflict_do_nothing())
            return str(connection.execute(sa.select(IDENTITY.c.id)).scalar_one())

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()
        if self._file is not None:
            self._file.close()

    def check(self) -> None:
        """Check, without cached data, that the database answers, is the one that was opened, and is not damaged.

        Raises:
            QueueUnavailable: it fails the check. A damaged database gets no jobs until a later check succeeds.
        """
        if self._file is None:
            with self._read() as connection:
                row = connection.execute(sa.select(IDENTITY.c.id, IDENTITY.c.oldest_reader)).first()
            found = None if row is None else row.id
            if row is not None and row.oldest_reader > FORMAT:
                raise QueueUnavailable(
                    Message(
                        "database_newer",
                        "a newer version of Kinema has changed the queue's database; upgrade this server",
                    )
                )
        else:
            self._check_in_place()
            with translate_errors():
                try:
                    with self._file.new_connection() as connection:
                        found = (connection.execute("SELECT id FROM kinema_database").fetchone() or (None,))[0]
                    now = time.monotonic()
                    if self._damage is not None or now - self._last_full_check > FULL_CHECK_SECONDS:
                        workflow_damage = None if self.workflow_file is None else self.workflow_file.find_damage()
                        self._damage, self._last_full_check = self._file.find_damage() or workflow_damage, now
                except sqlite3.DatabaseError as error:
                    self._damage = driver_message(error)
            self._check_undamaged()
        if found != self.id:
            raise database_replaced()

    def _check_in_place(self) -> None:
        if self._file is not None and not self._file.is_in_place():
            raise database_replaced()

    def _check_undamaged(self) -> None:
        if self._damage is not None:
            raise QueueUnavailable(
                Message(
                    "database_damaged",
                    "the queue's database is damaged ({reason}) and can't store jobs; stop the server and restore the "
                    "database from a backup",
                    reason=self._damage,
                )
            )

    @property
    def insert(self) -> Callable[[sa.Table], Any]:
        """The INSERT statement of the database, which has `on_conflict_do_nothing`."""
        return sqlite.insert if self._sqlite else postgresql.insert

    @contextmanager
    def _write(self) -> Iterator[sa.Connection]:
        self._check_in_place()
        with self._write_lock, translate_errors(), self._engine.begin() as connection:
            if self._sqlite:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            yield connection

    @contextmanager
    def _write_as_scheduler(self) -> Iterator[sa.Connection]:
        """Like `_write`, but nothing is written once another process may run the jobs."""
        with self._write() as connection:
            if self._lease is not None:
                self._lease.check(connection)
            yield connection

    @contextmanager
    def _read(self) -> Iterator[sa.Connection]:
        self._check_in_place()
        with translate_errors(), self._engine.connect() as connection:
            yield connection

    def read(self) -> AbstractContextManager[sa.Connection]:
        """Return a context with a connection for queries of other tables of this database."""
        return self._read()

    def write(self) -> AbstractContextManager[sa.Connection]:
        """Return a context with a transaction that changes other tables of this database."""
        return self._write()

    @contextmanager
    def sole_scheduler(self, folder: str = "", *, is_sole_in_folder: bool = False) -> Iterator[bool]:
        """Try to become the scheduler of this database until the context ends; yield whether it succeeded.

        On PostgreSQL it holds a lease, which `keep_scheduling` renews. For SQLite it locks a file.

        Args:
            folder: The id of the data folder.
            is_sole_in_folder: Whether this process holds the lock of the data folder.
        """
        if self._file is not None:
            with self._file.sole_scheduler() as acquired:
                yield acquired
            return
        lease = SchedulerLease(self._write, folder, is_sole_in_folder=is_sole_in_folder)
        if not lease.acquire():
            yield False
            return
        self._lease = lease
        try:
            yield True
        finally:
            lease.release()

    def keep_scheduling(self, workers: str) -> bool:
        """Renew the lease of `sole_scheduler`; return whether it still holds. A lost lease stays lost.

        Args:
            workers: What each worker does, as JSON, for the other processes.
        """
        return self._lease is None or self._lease.renew(workers)

    @property
    def has_lease(self) -> bool:
        """Whether the scheduler holds a lease that expires (PostgreSQL), and not the lock of a file."""
        return not self._sqlite

    def has_scheduler(self) -> bool:
        """Return whether any process, including this one, runs the jobs."""
        if self._file is not None:
            return self._file.has_scheduler()
        with self._read() as connection:
            return current_scheduler(connection) is not None

    def is_scheduled_with(self, files: JobFiles) -> bool:
        """Return whether the process that runs the jobs has the same data folder. There must be one."""
        if self._file is not None:
            return files.has_scheduler()
        with self._read() as connection:
            row = current_scheduler(connection)
        return row is None or row["folder"] == files.folder_id()

    def remote_workers(self) -> str:
        """Return what each worker of the process that runs the jobs does, as JSON."""
        with self._read() as connection:
            row = None if self._sqlite else current_scheduler(connection)
        return "[]" if row is None else str(row["workers"])

    def _notify(self, connection: sa.Connection, job_id: str, *, is_progress: bool = False) -> None:
        if self.changes is not None:
            self.changes.notify(connection, job_id, is_progress=is_progress)

    def add(
        self, values: Mapping[str, Any], max_queued: int, limits: OwnerLimits, webhook_url: str | None = None
    ) -> int | None:
        """Insert a queued job and its webhook. Return its position in the queue, or None if `max_queued` are queued.

        Inserts that arrive during another commit share the next one, since each commit waits for the disk.

        Raises:
            KeyTaken: another job has the idempotency key.
            LimitReached: the jobs of its owner reach one of the limits.
        """
        own = _PendingInsert(values, max_queued, limits, webhook_url)
        self._pending_inserts.append(own)
        with self._insert_lock:
            if not own.done:
                batch = [self._pending_inserts.popleft() for _ in range(len(self._pending_inserts))]
                try:
                    self._check_undamaged()
                    with self._write() as connection:
                        self._insert_batch(batch, connection)
                    self._verify_stored(batch)
                except BaseException as error:
                    for insert in batch:
                        insert.error = error
                    raise
                finally:
                    for insert in batch:
                        insert.done = True
        if own.error is not None:
            raise own.error
        return own.position

    def _verify_stored(self, batch: list[_PendingInsert]) -> None:
        """Check, through a new connection to SQLite's file, that the next start would find these jobs.

        SQLite reports success for writes to a file that was removed or overwritten, although they are lost.
        """
        if self._file is None:
            return  # PostgreSQL would give the same answer again
        ids = [insert.values["id"] for insert in batch if insert.position is not None]
        self._check_in_place()
        with translate_errors():
            try:
                with self._file.new_connection() as connection:
                    found = connection.execute(
                        "SELECT count(*) FROM kinema_jobs WHERE id IN (SELECT value FROM json_each(?))",
                        [json.dumps(ids)],
                    )
                    is_stored = found.fetchone()[0] == len(ids)
            except sqlite3.DatabaseError as error:
                self._damage = driver_message(error)
                self._check_undamaged()
        if not is_stored:
            raise database_replaced()

    def _insert_batch(self, batch: list[_PendingInsert], connection: sa.Connection) -> None:
        if not self._sqlite:
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_SUBMIT_LOCK)))
        queued = connection.execute(COUNT_QUEUED).scalar_one()
        for insert in batch:
            if queued >= insert.max_queued:
                continue
            try:
                insert.limits.check(connection, insert.values)
                with connection.begin_nested():  # an invalid job does not fail the others of the batch
                    insert.position = self._insert_job(insert.values, connection)
                    if insert.webhook_url is not None:
                        webhook = webhook_values(insert.values["id"], insert.webhook_url)
                        connection.execute(WEBHOOKS.insert().values(webhook))
            except (KeyTaken, LimitReached) as error:
                insert.error = error
            except (sa.exc.DataError, UnicodeError, ValueError) as error:
                message = Message(
                    "not_kept", "the database can't store this request: {reason}", reason=driver_message(error)
                )
                insert.error = InvalidRequest(message)
            else:
                queued += 1

    def _insert_job(self, values: Mapping[str, Any], connection: sa.Connection) -> int:
        """Insert a queued job behind those of its owner; return its position.

        Each waiting job of one owner has the turn after the one before. A new owner starts with the first turn that
        waits, so that owners alternate (self-clocked fair queueing: Golestani 1994, with jobs of equal cost).
        """
        queued = sa.and_(IS_QUEUED, JOBS.c.priority == values["priority"])
        own_last = sa.select(sa.func.max(JOBS.c.turn)).where(queued, JOBS.c.owner == values["owner"])
        first = sa.select(sa.func.min(JOBS.c.turn)).where(queued)
        last_turn = connection.execute(own_last).scalar()
        turn = last_turn + 1 if last_turn is not None else connection.execute(first).scalar() or 0
        statement = self.insert(JOBS).values(status="queued", turn=turn, **values).on_conflict_do_nothing()
        row = connection.execute(statement.returning(JOBS)).mappings().first()
        if row is None:
            raise KeyTaken
        self._notify(connection, values["id"])
        return position_of(connection, row)

    def waiting(self) -> int:
        """Return the number of queued jobs."""
        with self._read() as connection:
            return connection.execute(COUNT_QUEUED).scalar_one()

    def by_key(self, key: str) -> tuple[Job, str] | None:
        """Return the job with an idempotency key and the fingerprint of its request, or None."""
        with self._read() as connection:
            rows = connection.execute(sa.select(JOBS).where(JOBS.c.idempotency_key == key)).mappings().all()
            jobs = self._jobs(rows, connection)
        return (jobs[0], rows[0]["fingerprint"]) if jobs else None

    def get(self, job_id: str) -> Job:
        """Return a job.

        Raises:
            JobNotFound: no job has this id.
        """
        found = self.get_many([job_id])
        if not found:
            raise JobNotFound(f"there is no job {job_id!r}; it was deleted, has expired, or never existed")
        return found[0]

    def get_many(self, ids: Collection[str]) -> list[Job]:
        """Return the jobs with these ids, without those that do not exist."""
        with self._read() as connection:
            rows = connection.execute(sa.select(JOBS).where(JOBS.c.id.in_(ids))).mappings().all()
            return self._jobs(rows, connection)

    def _jobs(self, rows: Sequence[sa.RowMapping], connection: sa.Connection) -> list[Job]:
        """Return the jobs of rows of JOBS, the queued ones with their positions."""
        found = positions_of(connection, rows)
        return [job_from_row(row, found.get(row["seq"])) for row in rows]

    def page(self, after: str | None, limit: int, *, newest_first: bool) -> JobPage:
        """Return a page of jobs in order of submission, from the start or after the job with the id `after`."""
        query = sa.select(JOBS).order_by(JOBS.c.seq.desc() if newest_first else JOBS.c.seq).limit(limit + 1)
        with self._read() as connection:
            if after is not None:
                seq = connection.execute(sa.select(JOBS.c.seq).where(JOBS.c.id == after)).scalar()
                if seq is None:
                    raise JobNotFound(f"there is no job {after!r} (parameter after)")
                query = query.where(JOBS.c.seq < seq if newest_first else JOBS.c.seq > seq)
            rows = connection.execute(query).mappings().all()
            jobs = self._jobs(rows[:limit], connection)
        return JobPage(tuple(jobs), has_more=len(rows) > limit)

    def claim(self, models: Collection[str | None]) -> tuple[str, str] | None:
        """Set the next queued job to in_progress. Return its id and model, or None if no job is queued.

        The job that waits longest, with its priority, decides about the priority; within it the owners take turns. A
        job of a loaded model may overtake the first job if it has the same priority, at most MAX_PASSED times.

        Args:
            models: The loaded model of each free worker; None for a worker without a model.
        """
        columns = (JOBS.c.id, JOBS.c.model, JOBS.c.priority, JOBS.c.passed)
        with self._write_as_scheduler() as connection:
            head = sa.select(JOBS.c.priority).where(IS_QUEUED).order_by(*QUEUE_ORDER).limit(1)
            priority = connection.execute(head).scalar()
            if priority is None:
                return None
            by_turn = sa.select(*columns).where(IS_QUEUED, JOBS.c.priority == priority).order_by(*TURN_ORDER).limit(1)
            first = connection.execute(by_turn).first()
            if first is None:  # cancelled in the meantime
                return None
            chosen = first
            if first.model not in models and None not in models and first.passed < MAX_PASSED:
                loaded = by_turn.where(JOBS.c.model.in_([model for model in models if model]))
                chosen = connection.execute(loaded).first() or first
            if chosen is not first:
                overtaken = JOBS.update().where(JOBS.c.id == first.id).values(passed=first.passed + 1)
                connection.execute(overtaken)
            started = {"status": "in_progress", "started_at": time.time()}
            claimed = connection.execute(JOBS.update().where(JOBS.c.id == chosen.id, IS_QUEUED).values(started))
            if claimed.rowcount != 1:
                return None
            self._notify(connection, chosen.id)
        return chosen.id, chosen.model

    def requeue(self, job_id: str) -> bool:
        """Queue a running job again at its former position; return whether it was running."""
        reset = {"started_at": None, "stage": None, "step": 0, "total": 0, "progress": 0, "eta": None}
        return self._update(job_id, IS_RUNNING, as_scheduler=True, status="queued", **reset)

    def running(self) -> list[Job]:
        """Return all jobs in progress."""
        with self._read() as connection:
            rows = connection.execute(sa.select(JOBS).where(IS_RUNNING)).mappings().all()
        return [job_from_row(row) for row in rows]

    def record(self, job_id: str, **values: Any) -> bool:
        """Store the progress of a running job; return whether it is still running."""
        if "stage_durations" in values:
            values["stage_durations"] = json.dumps(values["stage_durations"])
        return self._update(job_id, IS_RUNNING, as_scheduler=True, **values)

    def complete(self, job_id: str, keep_seconds: float) -> bool:
        """Set a running job to completed; return whether it was running."""
        now = time.time()
        expires = sa.case((JOBS.c.pinned, None), else_=now + keep_seconds)
        values = {"status": "completed", "progress": 100, "eta": None, "completed_at": now, "expires_at": expires}
        return self._update(job_id, IS_RUNNING, as_scheduler=True, **values)

    def fail(self, job_id: str, failure: Failure, keep_seconds: float, *, as_scheduler: bool = False) -> bool:
        """Set a queued or running job to failed, also for a cancel; return whether it was queued or running."""
        now = time.time()
        expires = sa.case((JOBS.c.pinned, None), else_=now + keep_seconds)
        error = {"error_code": failure.code, "error_message": failure.message}
        values = {"status": "failed", "eta": None, "completed_at": now, "expires_at": expires}
        return self._update(job_id, sa.or_(IS_QUEUED, IS_RUNNING), as_scheduler=as_scheduler, **values, **error)

    def refuse(self, job_id: str, failure: Failure, keep_seconds: float) -> bool:
        """Set a running job to failed, forget its images and add it to `deletions`; return whether it was running."""
        now = time.time()
        values = {
            "status": "failed",
            "eta": None,
            "completed_at": now,
            "expires_at": sa.case((JOBS.c.pinned, None), else_=now + keep_seconds),
            "error_code": failure.code,
            "error_message": failure.message,
            "image": None,
            "last_image": None,
        }
        with self._write_as_scheduler() as connection:
            images = sa.select(JOBS.c.image, JOBS.c.last_image).where(JOBS.c.id == job_id, IS_RUNNING)
            row = connection.execute(images).first()
            update = JOBS.update().where(JOBS.c.id == job_id, IS_RUNNING).values(values)
            if row is None or connection.execute(update).rowcount != 1:
                return False
            deletion = {"job": job_id, "image": row.image, "last_image": row.last_image}
            connection.execute(self.insert(DELETIONS).values(deletion).on_conflict_do_nothing())
            self._notify(connection, job_id)
        return True

    def pin(self, job_id: str, keep_seconds: float, *, pinned: bool) -> bool:
        """Pin a job, or unpin it so that it expires `keep_seconds` from now; return whether it exists."""
        is_finished = JOBS.c.completed_at.is_not(None)
        expires = sa.null() if pinned else sa.case((is_finished, time.time() + keep_seconds), else_=None)
        return self._update(job_id, sa.true(), pinned=pinned, expires_at=expires)

    def rename(self, job_id: str, title: str) -> bool:
        """Change a job's title; return whether it exists."""
        return self._update(job_id, sa.true(), title=title)

    def count_attempt(self, job_id: str) -> int:
        """Add one to the worker processes that died or hung while running a job; return the new count."""
        with self._write_as_scheduler() as connection:
            update = JOBS.update().where(JOBS.c.id == job_id).values(attempts=JOBS.c.attempts + 1)
            attempts = connection.execute(update.returning(JOBS.c.attempts)).scalar()
        return int(attempts or 0)

    def remove(self, job_id: str, *, only_expired: bool = False) -> RemovedJob | None:
        """Delete a job's row and add it to `deletions`; return None if there was none. Works on a full disk.

        Args:
            job_id: The job.
            only_expired: Only delete it if it has expired, since it may have been pinned in the meantime.
        """
        guard = is_expired() if only_expired else sa.true()
        try:
            return self._remove(job_id, guard)
        except InsufficientDisk:
            if self._file is None:
                raise
            self._file.release_reserve()
            return self._remove(job_id, guard)

    def _remove(self, job_id: str, guard: sa.ColumnElement[bool]) -> RemovedJob | None:
        delete = (
            JOBS.delete().where(JOBS.c.id == job_id, guard).returning(JOBS.c.status, JOBS.c.image, JOBS.c.last_image)
        )
        with self._write() as connection:
            row = connection.execute(delete).first()
            if row is None:
                return None
            deletion = {"job": job_id, "image": row.image, "last_image": row.last_image}
            connection.execute(self.insert(DELETIONS).values(deletion).on_conflict_do_nothing())
            self._notify(connection, job_id)
        return RemovedJob(row.status, (row.image, row.last_image))

    def deletions(self) -> list[tuple[str, tuple[str | None, str | None]]]:
        """Return the id and images of each deleted job whose files may still exist."""
        with self._read() as connection:
            return [(row.job, (row.image, row.last_image)) for row in connection.execute(sa.select(DELETIONS))]

    def clear_deletions(self, jobs: Collection[str]) -> None:
        """Remove jobs from `deletions`: their files are deleted."""
        with self._write() as connection:
            connection.execute(DELETIONS.delete().where(DELETIONS.c.job.in_(jobs)))

    def refill_reserve(self) -> None:
        """Reserve disk space for deletions on a full disk (SQLite)."""
        if self._file is not None:
            self._file.refill_reserve()

    def expired(self) -> list[str]:
        """Return the ids of all expired jobs."""
        with self._read() as connection:
            return list(connection.execute(sa.select(JOBS.c.id).where(is_expired())).scalars())

    def is_image_used(self, image: str) -> bool:
        """Return whether any job has this image, at its beginning or end."""
        return self.job_with_image(image) is not None

    def job_with_image(self, image: str) -> tuple[str, bool] | None:
        """Return the id of any job that has this image, and whether it is its last image; None if there is no job."""
        with self._read() as connection:
            for is_last, column in enumerate((JOBS.c.image, JOBS.c.last_image)):
                query = sa.select(JOBS.c.id).where(column == image).limit(1)
                if (job_id := connection.execute(query).scalar()) is not None:
                    return job_id, bool(is_last)
        return None

    def store_url(self) -> str | None:
        """Return the URL of the store that contains the jobs' files, or None if they are in data folders."""
        with self._read() as connection:
            return connection.execute(sa.select(STORE.c.url)).scalar()

    def set_store_url(self, url: str) -> None:
        """Note which store contains the jobs' files."""
        insert = self.insert(STORE).values(only=1, url=url)
        with self._write() as connection:
            connection.execute(insert.on_conflict_do_update(index_elements=["only"], set_={"url": url}))

    def ids_and_images(self) -> tuple[set[str], set[str]]:
        """Return the ids of all jobs and the hashes of their images."""
        with self._read() as connection:
            rows = connection.execute(sa.select(JOBS.c.id, JOBS.c.image, JOBS.c.last_image)).all()
        return {row.id for row in rows}, _images_of(rows)

    def expected_files(self) -> set[str]:
        """Return what the data folder should contain: ids of all jobs with a video, and images of all jobs."""
        with self._read() as connection:
            rows = connection.execute(sa.select(JOBS.c.id, JOBS.c.image, JOBS.c.last_image, JOBS.c.status)).all()
        completed = {row.id for row in rows if row.status == "completed"}
        return completed | _images_of(rows)

    def latest_completed(self, count: int) -> list[Job]:
        """Return the most recently completed jobs, newest first."""
        query = sa.select(JOBS).where(JOBS.c.status == "completed")
        with self._read() as connection:
            rows = connection.execute(query.order_by(JOBS.c.completed_at.desc()).limit(count)).mappings().all()
        return [job_from_row(row) for row in rows]

    def _update(self, job_id: str, guard: sa.ColumnElement[bool], *, as_scheduler: bool = False, **values: Any) -> bool:
        with self._write_as_scheduler() if as_scheduler else self._write() as connection:
            is_changed = (
                connection.execute(JOBS.update().where(JOBS.c.id == job_id, guard).values(values)).rowcount == 1
            )
            if is_changed:
                self._notify(connection, job_id, is_progress="step" in values and "status" not in values)
        return is_changed


def _images_of(rows: Sequence[Any]) -> set[str]:
    return {image for row in rows for image in (row.image, row.last_image) if image is not None}


class KeyTaken(Exception):
    """Another job has this idempotency key."""


@dataclass(frozen=True, slots=True)
class RemovedJob:
    """State of a job at its removal."""

    status: Status
    images: tuple[str | None, str | None]


@dataclass(slots=True, eq=False)
class _PendingInsert:
    """A job that waits for its insert, and the result."""

    values: Mapping[str, Any]
    max_queued: int
    limits: OwnerLimits
    webhook_url: str | None = None
    position: int | None = None
    error: BaseException | None = None
    done: bool = False
