"""The queue's database, in SQLite or PostgreSQL: its tables, transactions and checks, and who schedules its jobs."""

from __future__ import annotations

import math
import secrets
import sqlite3
import time
from contextlib import contextmanager, nullcontext
from threading import Lock
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError

from kinema.errors import InvalidRequest, QueueUnavailable
from kinema.jobs.change_feed import ChangeFeed
from kinema.jobs.database import (
    before_commit,
    create_engine,
    database_replaced,
    driver_message,
    is_disk_full,
    translate_errors,
)
from kinema.jobs.job_schema import FORMAT, IDENTITY, METADATA, OLDEST_READER, STORE
from kinema.jobs.migrations import find_format, migrate
from kinema.jobs.scheduler_lease import SchedulerLease, current_scheduler
from kinema.jobs.sqlite_file import SqliteFile
from kinema.messages import Message

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kinema.jobs.job_files import JobFiles

# Options of a PostgreSQL URL that are not shown; SQLAlchemy itself hides only the password before the host.
_PASSWORDS = ("password", "sslpassword")
# Key of PostgreSQL's advisory lock for submissions: "kinema" in hexadecimal.
_SUBMIT_LOCK = 0x6B696E656D61
# Minimum interval of checks that read all pages, since any client may request /readyz.
FULL_CHECK_SECONDS = 30.0


class QueueDatabase:
    """The database of a URL. Missing tables are created.

    Attributes:
        id: The database's random id, from its creation.
        display_url: The URL without the password.
        is_sqlite: Whether it is SQLite, whose file is `file`.
        workflow_file: The SQLite file of DBOS, which is checked together with this database.
        changes: Notifications of other processes' changes; None for SQLite.
        damage: What is wrong with the content, if that was found.

    Raises:
        QueueUnavailable: by every method, if the database does not answer or was removed, replaced or damaged.
        InsufficientDisk: by every method that writes, if the database's disk is full.
    """

    def __init__(self, url: str) -> None:
        try:
            parsed = sa.make_url(url)
            self.display_url = parsed.difference_update_query(_PASSWORDS).render_as_string()
            self.file = SqliteFile(parsed) if parsed.get_backend_name() == "sqlite" else None
            self._engine = create_engine(parsed if self.file is None else self.file.url)
            self.is_sqlite = self.file is not None
            # SQLite allows one writer at a time. With this lock writers wait in order; SQLite would sleep and retry.
            self._write_lock = Lock() if self.is_sqlite else nullcontext()
            self._lease: SchedulerLease | None = None  # the latest one, which may be lost
            self.changes = None if self.is_sqlite else ChangeFeed(self._engine)
            self.damage: str | None = None
            self.workflow_file: SqliteFile | None = None
            self._last_full_check = -math.inf
            try:
                self.id = self._prepare()
            except (SQLAlchemyError, sqlite3.Error) as error:
                if self.file is None or not is_disk_full(error):
                    raise
                self.file.release_reserve()
                self.id = self._prepare()
            if self.file is not None:
                self.file.keep_open()
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
            if self.is_sqlite:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            self.lock_submissions(connection)
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
        if self.file is not None:
            self.file.close()

    def check(self) -> None:
        """Check, without cached data, that the database answers, is the one that was opened, and is not damaged.

        Raises:
            QueueUnavailable: it fails the check. A damaged database gets no jobs until a later check succeeds.
        """
        if self.file is None:
            with self.read() as connection:
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
            self.check_in_place()
            with translate_errors():
                try:
                    with self.file.new_connection() as connection:
                        found = (connection.execute("SELECT id FROM kinema_database").fetchone() or (None,))[0]
                    now = time.monotonic()
                    if self.damage is not None or now - self._last_full_check > FULL_CHECK_SECONDS:
                        workflow_damage = None if self.workflow_file is None else self.workflow_file.find_damage()
                        self.damage, self._last_full_check = self.file.find_damage() or workflow_damage, now
                except sqlite3.DatabaseError as error:
                    self.damage = driver_message(error)
            self.check_undamaged()
        if found != self.id:
            raise database_replaced()

    def check_in_place(self) -> None:
        """Check that SQLite's file was not removed or replaced.

        Raises:
            QueueUnavailable: it was.
        """
        if self.file is not None and not self.file.is_in_place():
            raise database_replaced()

    def check_undamaged(self) -> None:
        """Check that no damage was found.

        Raises:
            QueueUnavailable: some was.
        """
        if self.damage is not None:
            raise QueueUnavailable(
                Message(
                    "database_damaged",
                    "the queue's database is damaged ({reason}) and can't store jobs; stop the server and restore the "
                    "database from a backup",
                    reason=self.damage,
                )
            )

    @property
    def insert(self) -> Callable[[sa.Table], Any]:
        """The INSERT statement of the database, which has `on_conflict_do_nothing`."""
        return sqlite.insert if self.is_sqlite else postgresql.insert

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """Yield a connection with a transaction that changes tables."""
        self.check_in_place()
        with self._write_lock, translate_errors(), self._engine.begin() as connection:
            if self.is_sqlite:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            with before_commit():
                yield connection

    @contextmanager
    def write_as_scheduler(self) -> Iterator[sa.Connection]:
        """Like `write`, but nothing is written once another process may run the jobs."""
        with self.write() as connection:
            if self._lease is not None:
                self._lease.check(connection)
            yield connection

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """Yield a connection for queries."""
        self.check_in_place()
        with translate_errors(), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def sole_scheduler(self, folder: str = "", *, is_sole_in_folder: bool = False) -> Iterator[bool]:
        """Try to become the scheduler of this database until the context ends; yield whether it succeeded.

        On PostgreSQL it holds a lease, which `keep_scheduling` renews. For SQLite it locks a file.

        Args:
            folder: The id of the data folder.
            is_sole_in_folder: Whether this process holds the lock of the data folder.
        """
        if self.file is not None:
            with self.file.sole_scheduler() as acquired:
                yield acquired
            return
        lease = SchedulerLease(self.write, folder, is_sole_in_folder=is_sole_in_folder)
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
        return not self.is_sqlite

    def has_scheduler(self) -> bool:
        """Return whether any process, including this one, runs the jobs."""
        if self.file is not None:
            return self.file.has_scheduler()
        with self.read() as connection:
            return current_scheduler(connection) is not None

    def is_scheduled_with(self, files: JobFiles) -> bool:
        """Return whether the process that runs the jobs has the same data folder. There must be one."""
        if self.file is not None:
            return files.has_scheduler()
        with self.read() as connection:
            row = current_scheduler(connection)
        return row is None or row["folder"] == files.folder_id()

    def remote_workers(self) -> str:
        """Return what each worker of the process that runs the jobs does, as JSON."""
        with self.read() as connection:
            row = None if self.is_sqlite else current_scheduler(connection)
        return "[]" if row is None else str(row["workers"])

    def lock_submissions(self, connection: sa.Connection) -> None:
        """Let no other process submit jobs until the transaction ends; SQLite's transactions are exclusive anyway."""
        if not self.is_sqlite:
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_SUBMIT_LOCK)))

    def notify(self, connection: sa.Connection, job_id: str, *, is_progress: bool = False) -> None:
        """Notify other processes of a job's change, once the transaction is committed (PostgreSQL)."""
        if self.changes is not None:
            self.changes.notify(connection, job_id, is_progress=is_progress)

    def release_reserve(self) -> bool:
        """Release the disk space that is reserved for deletions; return whether there was such a reserve (SQLite)."""
        if self.file is not None:
            self.file.release_reserve()
        return self.file is not None

    def refill_reserve(self) -> None:
        """Reserve disk space for deletions on a full disk (SQLite)."""
        if self.file is not None:
            self.file.refill_reserve()

    def store_url(self) -> str | None:
        """Return the URL of the store that contains the jobs' files, or None if they are in data folders."""
        with self.read() as connection:
            return connection.execute(sa.select(STORE.c.url)).scalar()

    def set_store_url(self, url: str) -> None:
        """Note which store contains the jobs' files."""
        insert = self.insert(STORE).values(only=1, url=url)
        with self.write() as connection:
            connection.execute(insert.on_conflict_do_update(index_elements=["only"], set_={"url": url}))
