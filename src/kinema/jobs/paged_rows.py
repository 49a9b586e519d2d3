"""Reading of a table whose rows have an id and are listed in pages: one row, or a page in order of creation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

import sqlalchemy as sa

if TYPE_CHECKING:
    from collections.abc import Callable

    from kinema.errors import JobError
    from kinema.jobs.queue_database import QueueDatabase

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class PagedRows(Generic[Value]):
    """The rows of a table with the columns `seq` and `id`, as values.

    Attributes:
        database: Where the table is.
        table: The table.
        from_row: Returns the value of a row.
        kind: What a row is, for messages.
        missing: The error if there is none.
    """

    database: QueueDatabase
    table: sa.Table
    from_row: Callable[[sa.RowMapping], Value]
    kind: str
    missing: type[JobError]

    def get(self, row_id: str) -> Value:
        """Return the value with an id.

        Raises:
            JobError: `missing`, if no row has this id.
        """
        query = sa.select(self.table).where(self.table.c.id == row_id)
        with self.database.read() as connection:
            row = connection.execute(query).mappings().first()
        if row is None:
            raise self.missing(f"there is no {self.kind} {row_id!r}; it was deleted, has expired, or never existed")
        return self.from_row(row)

    def page(
        self, after: str | None, limit: int, *guards: sa.ColumnElement[bool], newest_first: bool
    ) -> tuple[list[Value], bool]:
        """Return up to `limit` values, from the start or after that with the id `after`, and whether there are more.

        Raises:
            JobError: `missing`, if no row has the id `after`.
        """
        seq = self.table.c.seq
        query = sa.select(self.table).where(*guards).order_by(seq.desc() if newest_first else seq).limit(limit + 1)
        with self.database.read() as connection:
            if after is not None:
                last = connection.execute(sa.select(seq).where(self.table.c.id == after)).scalar()
                if last is None:
                    raise self.missing(f"there is no {self.kind} {after!r} (parameter after)")
                query = query.where(seq < last if newest_first else seq > last)
            rows = connection.execute(query).mappings().all()
        return [self.from_row(row) for row in rows[:limit]], len(rows) > limit
