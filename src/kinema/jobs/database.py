"""Connections to the queue's database, and the translation of its errors."""

from __future__ import annotations

import logging
import sqlite3
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from kinema.errors import InsufficientDisk, QueueUnavailable
from kinema.messages import Message

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

P = ParamSpec("P")
T = TypeVar("T")
log = logging.getLogger(__name__)

# PostgreSQL ends the transaction of a process that is frozen or cut off, which would keep its locks.
IDLE_MILLISECONDS = 3000
_ENDED_IDLE = "25P03"
_NO_ANSWER = Message("no_database", "the queue's database does not answer; try again in a moment")


def create_engine(url: sa.URL) -> sa.Engine:
    """Return the engine of a SQLite or PostgreSQL URL.

    Raises:
        ValueError: the URL is of another database.
    """
    if url.get_backend_name() == "sqlite":
        engine = sa.create_engine(url, connect_args={"timeout": 30, "isolation_level": "IMMEDIATE"})

        @sa.event.listens_for(engine, "connect")
        def _(connection: Any, _record: Any) -> None:
            connection.execute("PRAGMA journal_mode=WAL")  # readers do not wait for writers
            connection.execute("PRAGMA synchronous=FULL")  # committed jobs survive a power failure
            connection.execute("PRAGMA temp_store=MEMORY")  # deletions need no temporary files on a full disk

        return engine
    if url.get_backend_name() not in ("postgresql", "postgres"):
        raise ValueError(f"database {url.drivername!r} is not supported; use sqlite or postgresql")
    # Detect a lost server within seconds; TCP's default is many minutes.
    timeouts = {"connect_timeout": 5, "tcp_user_timeout": 10_000, "keepalives_idle": 10, "keepalives_interval": 5}
    engine = sa.create_engine(
        url.set(drivername="postgresql+psycopg"), pool_pre_ping=True, connect_args=timeouts | dict(url.query)
    )

    @sa.event.listens_for(engine, "connect")
    def _(connection: Any, _record: Any) -> None:
        connection.execute(f"SET idle_in_transaction_session_timeout = {IDLE_MILLISECONDS}")
        connection.commit()

    return engine


class TransactionLost(QueueUnavailable):
    """The connection was lost before the commit of a transaction, so that nothing of it is stored."""


@contextmanager
def before_commit() -> Iterator[None]:
    """Raise TransactionLost in place of a lost connection."""
    try:
        yield
    except DBAPIError as error:
        if not error.connection_invalidated:
            raise
        log.warning("a transaction was lost: %s", driver_message(error))
        raise TransactionLost(_NO_ANSWER) from None


def begun_again(transaction: Callable[P, T]) -> Callable[P, T]:
    """Run a function, which is one transaction, once more if it is lost.

    PostgreSQL may have ended it because this process was idle for IDLE_MILLISECONDS, for example on a busy machine.
    """

    @wraps(transaction)
    def run(*arguments: P.args, **keywords: P.kwargs) -> T:
        try:
            return transaction(*arguments, **keywords)
        except TransactionLost:
            return transaction(*arguments, **keywords)

    return run


@contextmanager
def translate_errors() -> Iterator[None]:
    """Raise InsufficientDisk, TransactionLost or QueueUnavailable in place of errors of the database."""
    try:
        yield
    except (SQLAlchemyError, sqlite3.Error) as error:
        if is_disk_full(error):
            raise InsufficientDisk(
                Message("database_full", "the disk of the queue's database is full; delete videos or free disk space")
            ) from None
        log.warning("the queue's database does not answer: %s", driver_message(error))  # may contain the host's address
        is_idle = getattr(getattr(error, "orig", None), "sqlstate", None) == _ENDED_IDLE  # also if it is a commit's
        raise (TransactionLost if is_idle else QueueUnavailable)(_NO_ANSWER) from None


# On a full disk SQLite raises one of these; the second concerns the -shm file.
_DISK_FULL_CODES = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE)


def is_disk_full(error: Exception) -> bool:
    """Return whether SQLite found no disk space."""
    return getattr(getattr(error, "orig", error), "sqlite_errorcode", None) in _DISK_FULL_CODES


def database_replaced() -> QueueUnavailable:
    """Return the error for a database file that is not the one that was opened."""
    return QueueUnavailable(
        Message(
            "database_gone",
            "the queue's database was removed or replaced while the server was running; put it back, or stop the "
            "server and restore it from a backup",
        )
    )


def driver_message(error: Exception) -> str:
    """Return the first line of the driver's error message, without SQLAlchemy's statement and parameters."""
    return str(error.orig if isinstance(error, DBAPIError) else error).strip().partition("\n")[0]
