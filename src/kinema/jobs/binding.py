"""Checks at start: a data folder and its database have the same id, and the database the format of this version."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from kinema.errors import InvalidRequest

if TYPE_CHECKING:
    from kinema.jobs.job_files import JobFiles
    from kinema.jobs.job_table import JobTable

log = logging.getLogger(__name__)


def bind(files: JobFiles, store: JobTable) -> None:
    """Give a folder the id of its database at their first use, and check it at each later one.

    Several folders may have one database's id: an empty one joins any database, and one without an id joins a database
    that knows files of it, as those do that were made before there were ids.

    Raises:
        InvalidRequest: the folder holds files of another database, or is bound to another.
    """
    with files.deleting():
        bound = files.database_id()
        if bound == store.id:
            return
        held, needed = files.held(), store.needed()
        if held & needed or not held if bound is None else not (held or needed):
            files.set_database_id(store.id)
            if needed and not held:
                log.warning(
                    "the data folder %s is new, and holds none of the %d videos and images of its database %s",
                    files.root,
                    len(needed),
                    store.address,
                )
            return
    raise InvalidRequest(
        f"the data folder {files.root} and the database {store.address} do not belong together. The folder holds "
        f"{len(held)} videos and images of {f'the database with the id {bound}' if bound else 'an unknown database'}; "
        f"this one has the id {store.id} and needs {len(needed)} others. Set KINEMA_DATABASE_URL to the folder's "
        f"database, or KINEMA_DATA_DIR to the database's folder. Only if that is lost for good, write {store.id} into "
        f"{files.id_file}: the server then keeps the files that this database does not know, without listing them",
        "database_url",
    )


def check_format(found: int, expected: int, address: str) -> None:
    """Refuse a database that another version of Kinema wrote.

    Raises:
        InvalidRequest: naming both formats.
    """
    if found != expected:
        raise InvalidRequest(
            f"the database {address} has format {found}, and this version of Kinema uses format {expected}. Start the "
            "version that wrote it, or set KINEMA_DATA_DIR to a new folder (and KINEMA_DATABASE_URL to a new database, "
            "if it is set)",
            "database_url",
        )
