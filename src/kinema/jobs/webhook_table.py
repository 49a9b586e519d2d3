"""The table of webhooks: messages that are sent when a job or batch has ended, until they are delivered."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import sqlalchemy as sa

from kinema.jobs.batch_schema import BATCHES, UNFINISHED
from kinema.jobs.job_schema import JOBS, WEBHOOKS

if TYPE_CHECKING:
    from kinema.jobs.queue_database import QueueDatabase


@dataclass(frozen=True, slots=True)
class DueWebhook:
    """A webhook to send now: its id, the id of its job or batch, and the number of failed attempts so far."""

    id: str
    owner: str
    url: str
    host: str
    attempts: int


class WebhookTable:
    """The webhooks in the queue's database. A webhook is added with its job or batch, in one transaction.

    Raises:
        QueueUnavailable, InsufficientDisk: by every method, as those of `QueueDatabase`.
    """

    def __init__(self, database: QueueDatabase) -> None:
        self._database = database

    def due(self, per_host: int, limit: int) -> list[DueWebhook]:
        """Return the webhooks to send now, longest due first, and no more than `per_host` for each host."""
        place = sa.func.row_number().over(partition_by=WEBHOOKS.c.host, order_by=(WEBHOOKS.c.due_at, WEBHOOKS.c.id))
        is_ended = sa.or_(JOBS.c.status.in_(["completed", "failed"]), BATCHES.c.status.not_in(UNFINISHED))
        due = (
            sa.select(WEBHOOKS, place.label("place"))
            .outerjoin(JOBS, JOBS.c.id == WEBHOOKS.c.owner)
            .outerjoin(BATCHES, BATCHES.c.id == WEBHOOKS.c.owner)
            .where(WEBHOOKS.c.due_at <= time.time(), is_ended)
            .subquery()
        )
        query = sa.select(due).where(due.c.place <= per_host).order_by(due.c.due_at, due.c.id).limit(limit)
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        return [DueWebhook(row.id, row.owner, row.url, row.host, row.attempts) for row in rows]

    def count(self) -> int:
        """Return the number of webhooks that are not delivered, including those of unfinished jobs and batches."""
        with self._database.read() as connection:
            return connection.execute(sa.select(sa.func.count()).select_from(WEBHOOKS)).scalar_one()

    def postpone(self, webhook_id: str, seconds: float) -> None:
        """Count a failed attempt and send the webhook again after this time."""
        values = {"attempts": WEBHOOKS.c.attempts + 1, "due_at": time.time() + seconds}
        with self._database.write() as connection:
            connection.execute(WEBHOOKS.update().where(WEBHOOKS.c.id == webhook_id).values(values))

    def remove(self, webhook_id: str) -> None:
        """Delete a webhook: it is delivered or given up."""
        with self._database.write() as connection:
            connection.execute(WEBHOOKS.delete().where(WEBHOOKS.c.id == webhook_id))

    def remove_orphans(self) -> None:
        """Delete the webhooks of deleted jobs and batches."""
        exists = sa.or_(*(sa.exists().where(table.c.id == WEBHOOKS.c.owner) for table in (JOBS, BATCHES)))
        with self._database.write() as connection:
            connection.execute(WEBHOOKS.delete().where(sa.not_(exists)))
