"""The tables of batches, in the queue's database. Each state change is one guarded transaction."""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from kinema.errors import BatchNotFound, FileNotFound, QueueFull
from kinema.jobs.batch_schema import (
    BATCHES,
    FILES,
    IS_UNFINISHED,
    LINES,
    Batch,
    batch_from_row,
    key_prefix,
    line_from_row,
)
from kinema.jobs.database import begun_again
from kinema.jobs.file_table import file_values
from kinema.jobs.idempotency import check_same_request
from kinema.jobs.job_schema import JOBS, WEBHOOKS, webhook_values
from kinema.jobs.paged_rows import PagedRows

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from kinema.jobs.batch_schema import BatchEnd, BatchLine, BatchStatus, LineError
    from kinema.jobs.queue_database import QueueDatabase

COMPLETION_SECONDS = 86_400.0
MAX_OWN_UNFINISHED = 100
MAX_UNFINISHED = 2000
RETRY_SECONDS = 60.0
PAGE = 500
_HAS_RESULT = LINES.c.state.in_(["completed", "failed", "dropped"])


class BatchTable:
    """Batches and their lines in the queue's database.

    Raises:
        QueueUnavailable, InsufficientDisk: by every method, as those of `QueueDatabase`.
    """

    def __init__(self, database: QueueDatabase, keep_seconds: float) -> None:
        self._database = database
        self._keep_seconds = keep_seconds
        self._rows = PagedRows(database, BATCHES, batch_from_row, "batch", BatchNotFound)

    def add(
        self,
        input_file: str,
        *,
        labels: Mapping[str, str] | None = None,
        owner: str = "",
        webhook_url: str | None = None,
        idempotency_key: str | None = None,
        fingerprint: str = "",
    ) -> Batch:
        """Add a batch, whose input file is not validated yet, and its webhook.

        A later call with the same owner and key returns the same batch; `fingerprint` identifies the request.

        Raises:
            IdempotencyKeyReused: the owner used the key with another request.
            FileNotFound: the file does not exist.
            QueueFull: MAX_OWN_UNFINISHED batches of the owner or MAX_UNFINISHED in all are unfinished.
        """
        batch_id, now = f"batch_{secrets.token_hex(16)}", time.time()
        values: dict[str, Any] = {"id": batch_id, "status": "validating", "input_file": input_file, "owner": owner}
        values |= {"labels": json.dumps(labels or {}), "created_at": now, "expires_at": now + COMPLETION_SECONDS}
        if idempotency_key is not None:
            values |= {"idempotency_key": idempotency_key, "fingerprint": fingerprint}
        with self._database.write() as connection:
            file = sa.select(FILES.c.id).where(FILES.c.id == input_file).with_for_update()
            if connection.execute(file).first() is None:
                raise FileNotFound(f"there is no file {input_file!r}; upload it to /v1/files first")
            _check_unfinished(connection, owner)
            insert = self._database.insert(BATCHES).values(values).on_conflict_do_nothing().returning(BATCHES.c.id)
            is_new = connection.execute(insert).first() is not None
            if is_new and webhook_url is not None:
                connection.execute(WEBHOOKS.insert().values(webhook_values(batch_id, webhook_url)))
        known = None if is_new else self.by_key(owner, idempotency_key, fingerprint)
        return known or self.get(batch_id)

    def by_key(self, owner: str, key: str | None, fingerprint: str) -> Batch | None:
        """Return the batch that the owner created with a key, or None.

        Raises:
            IdempotencyKeyReused: its request has another fingerprint.
        """
        if key is None:
            return None
        query = sa.select(BATCHES).where(BATCHES.c.owner == owner, BATCHES.c.idempotency_key == key)
        with self._database.read() as connection:
            row = connection.execute(query).mappings().first()
        if row is None:
            return None
        check_same_request(key, fingerprint, row["fingerprint"])
        return batch_from_row(row)

    def get(self, batch_id: str) -> Batch:
        """Return a batch.

        Raises:
            BatchNotFound: no batch has this id.
        """
        return self._rows.get(batch_id)

    def list_batches(self, after: str | None, limit: int) -> tuple[list[Batch], bool]:
        """Return a page of batches, newest first, and whether there are more.

        Raises:
            BatchNotFound: no batch has the id `after`.
        """
        return self._rows.page(after, limit, newest_first=True)

    def unfinished(self) -> list[Batch]:
        """Return all unfinished batches, oldest first."""
        with self._database.read() as connection:
            rows = connection.execute(sa.select(BATCHES).where(IS_UNFINISHED).order_by(BATCHES.c.seq)).mappings().all()
        return [batch_from_row(row) for row in rows]

    def stop(self, batch_id: str, ends_as: BatchEnd) -> bool:
        """Give up a batch's unfinished lines; return whether it was validating or in progress."""
        guard = BATCHES.c.status.in_(["validating", "in_progress"])
        status: BatchStatus = "cancelling" if ends_as == "cancelled" else "in_progress"
        return self._change(batch_id, guard, status, ends_as=ends_as)

    def fail(self, batch_id: str, errors: Sequence[LineError]) -> bool:
        """Set a batch to failed, since its input file is invalid; return whether it was validating."""
        found = json.dumps([asdict(error) for error in errors])
        is_validating = BATCHES.c.status == "validating"
        deleted_at = time.time() + self._keep_seconds
        return self._change(batch_id, is_validating, "failed", errors=found, deleted_at=deleted_at, drop_lines=True)

    def start(self, batch_id: str, total: int) -> bool:
        """Set a batch whose lines are all added to in_progress; return whether it was validating."""
        return self._change(batch_id, BATCHES.c.status == "validating", "in_progress", total=total)

    def begin_end(self, batch_id: str) -> bool:
        """Set a batch whose lines all have a result to finalizing; return whether it was not yet."""
        return self._change(batch_id, BATCHES.c.status.in_(["in_progress", "cancelling"]), "finalizing")

    def end(self, batch: Batch, output: tuple[str, int] | None, errors: tuple[str, int] | None) -> bool:
        """Set a batch to its final status and add its files, each an id and a size; return whether it was finalizing.

        Its lines are deleted.
        """
        names = {"output_file": (output, f"{batch.id}_output.jsonl"), "error_file": (errors, f"{batch.id}_error.jsonl")}
        files = {column: file[0] for column, (file, _) in names.items() if file is not None}
        deleted_at = time.time() + self._keep_seconds
        with self._database.write() as connection:
            is_finalizing = BATCHES.c.status == "finalizing"
            if not self._set(connection, batch.id, is_finalizing, batch.ends_as, deleted_at=deleted_at, **files):
                return False
            for file, name in names.values():
                if file is not None:
                    values = file_values(file[0], name, "batch_output", file[1], self._keep_seconds)
                    connection.execute(FILES.insert().values(values))
            connection.execute(LINES.delete().where(LINES.c.batch == batch.id))
        return True

    def remove_expired(self) -> None:
        """Delete the batches that ended `keep_seconds` ago. Their files expire by themselves."""
        with self._database.write() as connection:
            connection.execute(BATCHES.delete().where(BATCHES.c.deleted_at < time.time()))

    @begun_again
    def _change(
        self,
        batch_id: str,
        guard: sa.ColumnElement[bool],
        status: BatchStatus,
        *,
        drop_lines: bool = False,
        **values: Any,
    ) -> bool:
        with self._database.write() as connection:
            is_changed = self._set(connection, batch_id, guard, status, **values)
            if is_changed and drop_lines:
                connection.execute(LINES.delete().where(LINES.c.batch == batch_id))
        return is_changed

    def _set(
        self,
        connection: sa.Connection,
        batch_id: str,
        guard: sa.ColumnElement[bool],
        status: BatchStatus,
        **values: Any,
    ) -> bool:
        """Set a batch's status and note when it began first; return whether the guard was true."""
        row = connection.execute(
            sa.select(BATCHES.c.times).where(BATCHES.c.id == batch_id, guard).with_for_update()
        ).first()
        if row is None:
            return False
        times = json.dumps({status: time.time(), **json.loads(row.times)})
        connection.execute(
            BATCHES.update().where(BATCHES.c.id == batch_id).values(status=status, times=times, **values)
        )
        return True

    # Lines

    def clear_lines(self, batch_id: str) -> None:
        """Delete the lines that an interrupted validation added."""
        with self._database.write() as connection:
            connection.execute(LINES.delete().where(LINES.c.batch == batch_id))

    def add_lines(self, batch_id: str, lines: Iterable[BatchLine]) -> bool:
        """Add lines to a batch; return whether it is still validating."""
        values = [
            {"batch": batch_id, "number": line.number, "custom_id": line.custom_id, "position": line.position}
            for line in lines
        ]
        is_validating = sa.select(BATCHES.c.id).where(BATCHES.c.id == batch_id, BATCHES.c.status == "validating")
        with self._database.write() as connection:
            if connection.execute(is_validating.with_for_update()).first() is None:
                return False
            if values:
                connection.execute(LINES.insert(), values)
        return True

    def pending(self, batch_id: str, limit: int, after: int = 0) -> list[BatchLine]:
        """Return the first lines without a job, or the first of those after a line."""
        guards = (LINES.c.batch == batch_id, LINES.c.state == "pending", LINES.c.number > after)
        return self._lines(*guards, limit=limit)

    def submitted(self, batch_id: str) -> list[BatchLine]:
        """Return the lines whose jobs are not known to be finished."""
        return self._lines(LINES.c.batch == batch_id, LINES.c.state == "submitted")

    def unfinished_jobs(self, batch_id: str) -> list[str]:
        """Return the ids of the unfinished jobs of a batch, also of lines whose job is not stored yet."""
        is_own = JOBS.c.idempotency_key.startswith(key_prefix(batch_id), autoescape=True)
        query = sa.select(JOBS.c.id).where(JOBS.c.status.in_(["queued", "in_progress"]), is_own)
        with self._database.read() as connection:
            return list(connection.execute(query).scalars())

    def ended(self, batch_id: str) -> list[BatchLine]:
        """Return the submitted lines whose jobs are finished or deleted."""
        is_ended = sa.or_(JOBS.c.id.is_(None), JOBS.c.status.in_(["completed", "failed"]))
        query = sa.select(LINES).outerjoin(JOBS, JOBS.c.id == LINES.c.job)
        query = query.where(LINES.c.batch == batch_id, LINES.c.state == "submitted", is_ended)
        with self._database.read() as connection:
            return [line_from_row(row) for row in connection.execute(query.limit(PAGE)).mappings()]

    def results(self, batch_id: str) -> Iterator[BatchLine]:
        """Yield all lines with a result in order, read in pages."""
        last = 0
        while page := self._lines(LINES.c.batch == batch_id, LINES.c.number > last, _HAS_RESULT, limit=PAGE):
            yield from page
            last = page[-1].number

    def _lines(self, *guards: sa.ColumnElement[bool], limit: int | None = None) -> list[BatchLine]:
        query = sa.select(LINES).where(*guards).order_by(LINES.c.number).limit(limit)
        with self._database.read() as connection:
            return [line_from_row(row) for row in connection.execute(query).mappings()]

    def count_submitted(self) -> int:
        """Return the number of lines of all batches that have an unfinished job."""
        query = sa.select(sa.func.count()).select_from(LINES).where(LINES.c.state == "submitted")
        with self._database.read() as connection:
            return connection.execute(query).scalar_one()

    def set_job(self, batch_id: str, number: int, job_id: str) -> None:
        """Store the job of a pending line."""
        is_pending = sa.and_(LINES.c.batch == batch_id, LINES.c.number == number, LINES.c.state == "pending")
        with self._database.write() as connection:
            connection.execute(LINES.update().where(is_pending).values(state="submitted", job=job_id))

    def finish_lines(self, batch_id: str, results: Iterable[tuple[int, bool, str]]) -> None:
        """Store the results of lines, each a number, whether the line is completed, and the line of the file."""
        counts = {"completed": 0, "failed": 0}
        with self._database.write() as connection:
            for number, is_completed, result in results:
                state = "completed" if is_completed else "failed"
                guard = sa.and_(LINES.c.batch == batch_id, LINES.c.number == number, sa.not_(_HAS_RESULT))
                update = LINES.update().where(guard).values(state=state, result=result)
                counts[state] += connection.execute(update).rowcount
            self._count(connection, batch_id, **counts)

    def drop_pending(self, batch_id: str) -> None:
        """Give up all lines without a job."""
        guard = sa.and_(LINES.c.batch == batch_id, LINES.c.state == "pending")
        with self._database.write() as connection:
            dropped = connection.execute(LINES.update().where(guard).values(state="dropped")).rowcount
            self._count(connection, batch_id, completed=0, failed=dropped)

    def _count(self, connection: sa.Connection, batch_id: str, *, completed: int, failed: int) -> None:
        counts = {"completed": BATCHES.c.completed + completed, "failed": BATCHES.c.failed + failed}
        connection.execute(BATCHES.update().where(BATCHES.c.id == batch_id).values(counts))


def _check_unfinished(connection: sa.Connection, owner: str) -> None:
    """Check that the owner may have one more batch.

    Raises:
        QueueFull: it may not.
    """
    query = sa.select(BATCHES.c.owner, sa.func.count()).where(IS_UNFINISHED).group_by(BATCHES.c.owner)
    counts = {row[0]: row[1] for row in connection.execute(query)}
    if counts.get(owner, 0) >= MAX_OWN_UNFINISHED:
        text = f"{MAX_OWN_UNFINISHED} of your batches are not finished, the maximum; try again when one has ended"
        raise QueueFull(text, RETRY_SECONDS)
    if sum(counts.values()) >= MAX_UNFINISHED:
        text = f"{MAX_UNFINISHED} batches are not finished, the maximum; try again when one has ended"
        raise QueueFull(text, RETRY_SECONDS)
