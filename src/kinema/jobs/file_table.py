"""The table of the files of batches: uploaded requests, and results."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from kinema.errors import JobNotFound, JobUnfinished
from kinema.jobs.batch_schema import BATCHES, FILES, IS_UNFINISHED, file_from_row

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kinema.jobs.batch_schema import BatchFile, FilePurpose
    from kinema.jobs.job_table import JobTable


def new_file_id() -> str:
    """Return a random id."""
    return f"file-{secrets.token_hex(16)}"


def file_values(file_id: str, name: str, purpose: FilePurpose, size: int, keep_seconds: float) -> dict[str, Any]:
    """Return the row of a new file."""
    now = time.time()
    times = {"created_at": now, "expires_at": now + keep_seconds}
    return {"id": file_id, "name": name, "purpose": purpose, "size": size, **times}


def read_page(
    database: JobTable, table: sa.Table, query: sa.Select[Any], after: str | None, limit: int, *, newest_first: bool
) -> Sequence[sa.RowMapping]:
    """Return up to `limit` + 1 rows of a query of a table, from the start or after the row with the id `after`.

    Raises:
        JobNotFound: no row has the id `after`.
    """
    seq = table.c.seq
    query = query.order_by(seq.desc() if newest_first else seq).limit(limit + 1)
    with database.read() as connection:
        if after is not None:
            last = connection.execute(sa.select(seq).where(table.c.id == after)).scalar()
            if last is None:
                raise JobNotFound(f"{after!r} does not exist (parameter after)")
            query = query.where(seq < last if newest_first else seq > last)
        return connection.execute(query).mappings().all()


class FileTable:
    """The rows of files in the database of a `JobTable`; `BatchFiles` has their content.

    Raises:
        QueueUnavailable, InsufficientDisk: by every method, as those of `JobTable`.
    """

    def __init__(self, table: JobTable, keep_seconds: float) -> None:
        self._table = table
        self._keep_seconds = keep_seconds

    def add(self, file_id: str, name: str, purpose: FilePurpose, size: int) -> BatchFile:
        """Add a file whose content is stored."""
        values = file_values(file_id, name, purpose, size, self._keep_seconds)
        with self._table.write() as connection:
            connection.execute(FILES.insert().values(values))
        return self.get(file_id)

    def get(self, file_id: str) -> BatchFile:
        """Return a file.

        Raises:
            JobNotFound: no file has this id.
        """
        with self._table.read() as connection:
            row = connection.execute(sa.select(FILES).where(FILES.c.id == file_id)).mappings().first()
        if row is None:
            raise JobNotFound(f"there is no file {file_id!r}; it was deleted, has expired, or never existed")
        return file_from_row(row)

    def list_page(
        self, after: str | None, limit: int, *, newest_first: bool, purpose: str | None
    ) -> tuple[list[BatchFile], bool]:
        """Return a page of files in order of creation, and whether there are more."""
        query = sa.select(FILES) if purpose is None else sa.select(FILES).where(FILES.c.purpose == purpose)
        rows = read_page(self._table, FILES, query, after, limit, newest_first=newest_first)
        return [file_from_row(row) for row in rows[:limit]], len(rows) > limit

    def remove(self, file_id: str, delete: Callable[[str], None]) -> None:
        """Delete a file's content with `delete`, then its row. If the content can't be deleted, the row is kept.

        No transaction is open while the content is deleted: a store may take seconds to answer.

        Raises:
            JobNotFound: no file has this id.
            JobUnfinished: an unfinished batch reads it.
        """
        used = sa.exists().where(BATCHES.c.input_file == FILES.c.id, IS_UNFINISHED)
        with self._table.read() as connection:
            row = connection.execute(sa.select(used.label("used")).where(FILES.c.id == file_id)).first()
        if row is None:
            self.get(file_id)
        elif row.used:
            raise JobUnfinished(f"the file {file_id!r} is the input of an unfinished batch; cancel the batch first")
        delete(file_id)
        with self._table.write() as connection:
            connection.execute(FILES.delete().where(FILES.c.id == file_id))

    def expired(self) -> list[str]:
        """Return the ids of the expired files that no unfinished batch reads."""
        used = sa.select(BATCHES.c.input_file).where(IS_UNFINISHED)
        query = sa.select(FILES.c.id).where(FILES.c.expires_at < time.time(), FILES.c.id.not_in(used))
        with self._table.read() as connection:
            return list(connection.execute(query).scalars())

    def ids(self) -> set[str]:
        """Return the ids of all files."""
        with self._table.read() as connection:
            return set(connection.execute(sa.select(FILES.c.id)).scalars())
