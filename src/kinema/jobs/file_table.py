"""The table of the files of batches: uploaded requests, and results."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from kinema.errors import FileInUse, FileNotFound
from kinema.jobs.batch_schema import BATCHES, FILES, IS_UNFINISHED, file_from_row
from kinema.jobs.paged_rows import PagedRows

if TYPE_CHECKING:
    from collections.abc import Callable

    from kinema.jobs.batch_schema import BatchFile, FilePurpose
    from kinema.jobs.queue_database import QueueDatabase


def new_file_id() -> str:
    """Return a random id."""
    return f"file-{secrets.token_hex(16)}"


def file_values(file_id: str, name: str, purpose: FilePurpose, size: int, keep_seconds: float) -> dict[str, Any]:
    """Return the row of a new file."""
    now = time.time()
    times = {"created_at": now, "expires_at": now + keep_seconds}
    return {"id": file_id, "name": name, "purpose": purpose, "size": size, **times}


class FileTable:
    """The rows of files in the queue's database; `BatchFiles` has their content.

    Raises:
        QueueUnavailable, InsufficientDisk: by every method, as those of `QueueDatabase`.
    """

    def __init__(self, database: QueueDatabase, keep_seconds: float) -> None:
        self._database = database
        self._keep_seconds = keep_seconds
        self._rows = PagedRows(database, FILES, file_from_row, "file", FileNotFound)

    def add(self, file_id: str, name: str, purpose: FilePurpose, size: int) -> BatchFile:
        """Add a file whose content is stored."""
        values = file_values(file_id, name, purpose, size, self._keep_seconds)
        with self._database.write() as connection:
            connection.execute(FILES.insert().values(values))
        return self.get(file_id)

    def get(self, file_id: str) -> BatchFile:
        """Return a file.

        Raises:
            FileNotFound: no file has this id.
        """
        return self._rows.get(file_id)

    def list_page(
        self, after: str | None, limit: int, *, newest_first: bool, purpose: str | None
    ) -> tuple[list[BatchFile], bool]:
        """Return a page of files in order of creation, and whether there are more.

        Raises:
            FileNotFound: no file has the id `after`.
        """
        guards = () if purpose is None else (FILES.c.purpose == purpose,)
        return self._rows.page(after, limit, *guards, newest_first=newest_first)

    def remove(self, file_id: str, delete: Callable[[str], None]) -> None:
        """Delete a file's content with `delete`, then its row. If the content can't be deleted, the row is kept.

        No transaction is open while the content is deleted: a store may take seconds to answer.

        Raises:
            FileNotFound: no file has this id.
            FileInUse: an unfinished batch reads it.
        """
        used = sa.exists().where(BATCHES.c.input_file == FILES.c.id, IS_UNFINISHED)
        with self._database.read() as connection:
            row = connection.execute(sa.select(used.label("used")).where(FILES.c.id == file_id)).first()
        if row is None:
            self.get(file_id)
        elif row.used:
            raise FileInUse(f"the file {file_id!r} is the input of an unfinished batch; cancel the batch first")
        delete(file_id)
        with self._database.write() as connection:
            connection.execute(FILES.delete().where(FILES.c.id == file_id))

    def expired(self) -> list[str]:
        """Return the ids of the expired files that no unfinished batch reads."""
        used = sa.select(BATCHES.c.input_file).where(IS_UNFINISHED)
        query = sa.select(FILES.c.id).where(FILES.c.expires_at < time.time(), FILES.c.id.not_in(used))
        with self._database.read() as connection:
            return list(connection.execute(query).scalars())

    def ids(self) -> set[str]:
        """Return the ids of all files."""
        with self._database.read() as connection:
            return set(connection.execute(sa.select(FILES.c.id)).scalars())
