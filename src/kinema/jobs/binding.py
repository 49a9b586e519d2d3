"""A check at start: the data folder and the database have the same id."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from kinema.errors import InvalidRequest

if TYPE_CHECKING:
    from kinema.jobs.job_files import JobFiles
    from kinema.jobs.job_table import JobTable

log = logging.getLogger(__name__)


def bind(files: JobFiles, table: JobTable) -> None:
    """Store the database's id in a new data folder; in a used one, check that it is the same.

    Several folders may have the id of one database. A folder without files joins any database. A folder without an id
    was written by a version without ids; it joins a database that knows files of it.

    Raises:
        InvalidRequest: the folder has the id or the files of another database.
    """
    with files.deletion_lock():
        folder_id = files.database_id()
        if folder_id == table.id:
            return
        stored, expected = files.stored_ids(), table.expected_files()
        can_join = (stored & expected or not stored) if folder_id is None else not (stored or expected)
        if can_join:
            files.set_database_id(table.id)
            if expected and not stored:
                log.warning(
                    "the data folder %s is new and contains none of the %d videos and images of its database %s",
                    files.root,
                    len(expected),
                    table.display_url,
                )
            return
    raise InvalidRequest(
        f"the data folder {files.root} and the database {table.display_url} do not belong together. The folder "
        f"contains {len(stored)} videos and images of "
        f"{f'the database with the id {folder_id}' if folder_id else 'an unknown database'}; this database has the id "
        f"{table.id} and needs {len(expected)} others. Set KINEMA_DATABASE_URL to the folder's database, or "
        "KINEMA_DATA_DIR to the database's folder. Only if the folder's database is lost for good, write "
        f"{table.id} into {files.id_file}; the server then keeps the files that this database does not know, without "
        "listing them",
        "database_url",
    )
