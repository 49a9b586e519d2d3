"""The lease that lets one process at a time run the jobs of a PostgreSQL database."""

from __future__ import annotations

import logging
import secrets
import time
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from kinema.errors import QueueUnavailable
from kinema.jobs.job_schema import SCHEDULER
from kinema.messages import Message

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    Transaction = Callable[[], AbstractContextManager[sa.Connection]]

log = logging.getLogger(__name__)

# Another process takes over so long after the last renewal.
LEASE_SECONDS = 6.0
_NOW = sa.cast(sa.extract("epoch", sa.func.clock_timestamp()), sa.Double)


class SchedulerLease:
    """A row of the database that names its scheduler until a time by the database's clock.

    A process that was frozen or cut off may believe that it still has the lease. It can't write, however: each
    transaction of a scheduler locks the row first (`check`) and fails if it names another holder.

    Args:
        transaction: Begins a transaction.
        folder: The id of the process's data folder.
        is_sole_in_folder: Whether the process holds the lock of the data folder. Then a holder with the same folder
            that held that lock has ended, and its lease needs no time to expire.
    """

    def __init__(self, transaction: Transaction, folder: str, *, is_sole_in_folder: bool) -> None:
        self._transaction = transaction
        self._holder = secrets.token_hex(8)
        self._folder = folder
        self._is_sole_in_folder = is_sole_in_folder
        self._is_lost = True
        self._valid_until = 0.0  # by this process's monotonic clock

    def acquire(self) -> bool:
        """Take the lease if no other process has it; return whether it succeeded."""
        row = {
            "only": 1,
            "holder": self._holder,
            "folder": self._folder,
            "holds_folder": self._is_sole_in_folder,
            "expires_at": _NOW + LEASE_SECONDS,
            "workers": "[]",
        }
        has_ended = SCHEDULER.c.expires_at < _NOW
        if self._is_sole_in_folder:
            has_ended |= SCHEDULER.c.holds_folder & (SCHEDULER.c.folder == self._folder)
        insert = postgresql.insert(SCHEDULER).values(row)
        upsert = insert.on_conflict_do_update(index_elements=["only"], set_=row, where=has_ended)
        asked_at = time.monotonic()
        with self._transaction() as connection:
            acquired = connection.execute(upsert.returning(SCHEDULER.c.holder)).first() is not None
        if acquired:
            self._is_lost, self._valid_until = False, asked_at + LEASE_SECONDS
        return acquired

    def renew(self, workers: str) -> bool:
        """Extend the lease; return whether this process still has it. A lost lease stays lost.

        Args:
            workers: What each worker does, as JSON, for the other processes.
        """
        asked_at = time.monotonic()
        renewal = SCHEDULER.update().where(SCHEDULER.c.holder == self._holder)
        try:
            with self._transaction() as connection:
                values = {"expires_at": _NOW + LEASE_SECONDS, "workers": workers}
                renewed = connection.execute(renewal.values(values)).rowcount == 1
        except QueueUnavailable:  # logged; the database may answer again before the lease expires
            renewed = time.monotonic() < self._valid_until
        else:
            self._valid_until = asked_at + LEASE_SECONDS
        self._is_lost = self._is_lost or not renewed
        return not self._is_lost

    def check(self, connection: sa.Connection) -> None:
        """Keep the lease until the end of the connection's transaction.

        Raises:
            QueueUnavailable: this process does not have the lease any more.
        """
        held = sa.select(SCHEDULER.c.holder).where(SCHEDULER.c.holder == self._holder).with_for_update(read=True)
        if self._is_lost or connection.execute(held).first() is None:
            self._is_lost = True
            raise QueueUnavailable(
                Message(
                    "scheduler_lease_lost",
                    "another process runs the queue's jobs now, or the connection to the queue's database was lost; "
                    "jobs wait until it is restored",
                )
            )

    def release(self) -> None:
        """End the lease, so that another process can take over at once. Without a connection it expires."""
        self._is_lost = True
        try:
            with self._transaction() as connection:
                connection.execute(SCHEDULER.delete().where(SCHEDULER.c.holder == self._holder))
        except QueueUnavailable as error:
            log.warning("the scheduler's lease expires in %.0f seconds: %s", LEASE_SECONDS, error)


def current_scheduler(connection: sa.Connection) -> sa.RowMapping | None:
    """Return the row of the process that runs the jobs, or None if no lease is valid."""
    valid: sa.Select[Any] = sa.select(SCHEDULER).where(SCHEDULER.c.expires_at > _NOW)
    return connection.execute(valid).mappings().first()
