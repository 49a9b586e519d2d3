"""The inserts of new jobs: several in one commit, each checked, numbered and verified before it counts as stored."""

from __future__ import annotations

import json
import sqlite3
from collections import deque
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from kinema.errors import InvalidRequest
from kinema.jobs.database import begun_again, database_replaced, driver_message, translate_errors
from kinema.jobs.job_schema import COUNT_QUEUED, IS_QUEUED, JOBS, WEBHOOKS, webhook_values
from kinema.jobs.owner_limits import LimitReached, OwnerLimits
from kinema.jobs.positions import position_of
from kinema.messages import Message

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kinema.jobs.queue_database import QueueDatabase


class KeyTaken(Exception):
    """Another job has this idempotency key."""


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


class JobInserts:
    """Inserts jobs into the database."""

    def __init__(self, database: QueueDatabase) -> None:
        self._database = database
        self._lock = Lock()
        self._pending: deque[_PendingInsert] = deque()

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
        self._pending.append(own)
        with self._lock:
            if not own.done:
                batch = [self._pending.popleft() for _ in range(len(self._pending))]
                try:
                    self._database.check_undamaged()
                    self._store(batch)
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

    @begun_again
    def _store(self, batch: list[_PendingInsert]) -> None:
        for insert in batch:
            insert.position = insert.error = None
        with self._database.write() as connection:
            self._insert_batch(batch, connection)

    def _verify_stored(self, batch: list[_PendingInsert]) -> None:
        """Check, through a new connection to SQLite's file, that the next start would find these jobs.

        SQLite reports success for writes to a file that was removed or overwritten, although they are lost.
        """
        if self._database.file is None:
            return  # PostgreSQL would give the same answer again
        ids = [insert.values["id"] for insert in batch if insert.position is not None]
        self._database.check_in_place()
        with translate_errors():
            try:
                with self._database.file.new_connection() as connection:
                    found = connection.execute(
                        "SELECT count(*) FROM kinema_jobs WHERE id IN (SELECT value FROM json_each(?))",
                        [json.dumps(ids)],
                    )
                    is_stored = found.fetchone()[0] == len(ids)
            except sqlite3.DatabaseError as error:
                self._database.damage = driver_message(error)
                self._database.check_undamaged()
        if not is_stored:
            raise database_replaced()

    def _insert_batch(self, batch: list[_PendingInsert], connection: sa.Connection) -> None:
        self._database.lock_submissions(connection)
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
        statement = self._database.insert(JOBS).values(status="queued", turn=turn, **values).on_conflict_do_nothing()
        row = connection.execute(statement.returning(JOBS)).mappings().first()
        if row is None:
            raise KeyTaken
        self._database.notify(connection, values["id"])
        return position_of(connection, row)
