"""Checks at start: the data folder, the store and the database have the same id."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from kinema.errors import InvalidRequest

if TYPE_CHECKING:
    from kinema.jobs.job_files import JobFiles
    from kinema.jobs.job_table import JobTable
    from kinema.jobs.queue_database import QueueDatabase
    from kinema.jobs.shared_files import SharedFiles

log = logging.getLogger(__name__)


def bind(files: JobFiles, table: JobTable) -> None:
    """Store the database's id in a new data folder; in a used one, check that it is the same.

    Several folders may have the id of one database. A folder without files joins any database. A folder without an id
    was written by a version without ids; it joins a database that knows files of it.

    Raises:
        InvalidRequest: the folder has the id or the files of another database.
    """
    database = table.database
    with files.deletion_lock():
        folder_id = files.database_id()
        if folder_id == database.id:
            return
        stored = files.stored_ids()
        expected = set() if files.is_shared else table.expected_files()  # a folder beside a store is a cache
        can_join = (stored & expected or not stored) if folder_id is None else not (stored or expected)
        if can_join:
            files.set_database_id(database.id)
            if expected and not stored:
                log.warning(
                    "the data folder %s is new and contains none of the %d videos and images of its database %s",
                    files.root,
                    len(expected),
                    database.display_url,
                )
            return
    raise InvalidRequest(
        f"the data folder {files.root} and the database {database.display_url} do not belong together. The folder "
        f"contains {len(stored)} videos and images of "
        f"{f'the database with the id {folder_id}' if folder_id else 'an unknown database'}; this database has the id "
        f"{database.id} and needs {len(expected)} others. Set KINEMA_DATABASE_URL to the folder's database, or "
        "KINEMA_DATA_DIR to the database's folder. Only if the folder's database is lost for good, write "
        f"{database.id} into {files.id_file}; the server then keeps the files that this database does not know, "
        "without listing them",
        "database_url",
    )


def bind_store(files: SharedFiles, url: str, table: JobTable) -> None:
    """Store the database's id in a new store, and the store's URL in the database; else check that they agree.

    A copy of the store in another place has the id too, so the database accepts its URL.

    Raises:
        InvalidRequest: the store belongs to another database, or the database's files are somewhere else.
    """
    database = table.database
    known_url, store_id = database.store_url(), files.store_id()
    if store_id is None:
        stored, expected = files.ids_in_store(), table.expected_files()
        if stored or expected or known_url not in (None, url):
            raise InvalidRequest(_not_new(url, known_url, database, len(stored), len(expected)), "store")
        files.set_store_id(database.id)
        store_id = files.store_id()
    if store_id != database.id:
        raise InvalidRequest(
            f"the store {url} belongs to the database with the id {store_id}, but the database {database.display_url} "
            f"has the id {database.id}. Set KINEMA_DATABASE_URL to the store's database, or KINEMA_STORE to a new "
            "prefix",
            "store",
        )
    files.expect_store_id(database.id)
    if known_url != url:
        if known_url is not None and database.has_scheduler():
            raise InvalidRequest(
                f"KINEMA_STORE is {url}, but a running server of the database {database.display_url} uses the store "
                f"{known_url}; use the same store, or stop all servers before you move it",
                "store",
            )
        database.set_store_url(url)


def check_no_store(database: QueueDatabase) -> None:
    """Check that the files of a database are not in a store, for a server without one.

    Raises:
        InvalidRequest: they are.
    """
    if url := database.store_url():
        raise InvalidRequest(
            f"the images and videos of the database {database.display_url} are in the store {url}, and KINEMA_STORE is "
            f"not set; set it to {url}",
            "store",
        )


def _not_new(url: str, known_url: str | None, database: QueueDatabase, stored: int, expected: int) -> str:
    return (
        f"the store {url} and the database {database.display_url} do not belong together: the store has the files of "
        f"{stored} jobs and no id, and {expected} videos and images of the database are in "
        f"{known_url or 'data folders'}. Use a new database with a new prefix of the store, or set KINEMA_STORE to the "
        "database's store. To move a store, stop all servers and copy all its files, also database-id"
    )
