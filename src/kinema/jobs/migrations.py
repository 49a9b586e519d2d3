"""Migrations of the database from one format to the next, in order. Alembic writes their SQL for both databases.

A change that older versions of Kinema do not notice (new tables, columns with a default, indexes) raises FORMAT alone:
servers can then be upgraded one by one. Any other change also raises OLDEST_READER, the oldest FORMAT of a version
that may still use the database: all servers must be stopped for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa

from kinema.errors import InvalidRequest
from kinema.jobs.batch_schema import BATCHES
from kinema.jobs.job_schema import DELETIONS, FORMAT, IDENTITY, JOBS, OLDEST_READER

if TYPE_CHECKING:
    from collections.abc import Callable

    from alembic.operations import Operations


def find_format(connection: sa.Connection) -> int | None:
    """Return the format of a database, or None if it has no jobs of Kinema yet."""
    inspector = sa.inspect(connection)
    if not inspector.has_table(JOBS.name):
        return None
    has_format = inspector.has_table(IDENTITY.name) and "format" in {
        column["name"] for column in inspector.get_columns(IDENTITY.name)
    }
    return connection.execute(sa.select(IDENTITY.c.format)).scalar() if has_format else 1


def migrate(connection: sa.Connection, found: int, display_url: str) -> None:
    """Bring a database of the format `found` to FORMAT, within the connection's transaction.

    A database of a later format stays as it is, if this version may use it.

    Raises:
        InvalidRequest: it is too old to be migrated, or too new to be used; nothing is changed.
    """
    if found > FORMAT and connection.execute(sa.select(IDENTITY.c.oldest_reader)).scalar_one() <= FORMAT:
        return
    if found > FORMAT or any(number not in _MIGRATIONS for number in range(found + 1, FORMAT + 1)):
        raise InvalidRequest(
            f"the database {display_url} has format {found}, but this version of Kinema uses format {FORMAT}. Start "
            "the version that wrote it, or set KINEMA_DATA_DIR to a new folder (and KINEMA_DATABASE_URL to a new "
            "database, if it is set)",
            "database_url",
        )
    if found == FORMAT:
        return
    from alembic.migration import MigrationContext
    from alembic.operations import Operations

    operations = Operations(MigrationContext.configure(connection))
    for number in range(found + 1, FORMAT + 1):
        _MIGRATIONS[number](operations)
    connection.execute(IDENTITY.update().values(format=FORMAT, oldest_reader=OLDEST_READER))


def _add_owners_and_traces(operations: Operations) -> None:
    operations.add_column(IDENTITY.name, sa.Column("oldest_reader", sa.Integer, nullable=False, server_default="1"))
    for column in (
        sa.Column("owner", sa.Text, nullable=False, server_default=""),
        sa.Column("turn", sa.Integer, nullable=False, server_default="0"),
        sa.Column("work", sa.Float, nullable=False, server_default="0"),
        sa.Column("traceparent", sa.Text),
    ):
        operations.add_column(JOBS.name, column)
    operations.drop_index("kinema_jobs_order", JOBS.name)
    operations.create_index("kinema_jobs_order", JOBS.name, ["status", "priority", "turn", "seq"])
    operations.create_index("kinema_jobs_owner", JOBS.name, ["status", "owner", "priority", "turn"])
    rank = sa.text("(created_at - priority * 60.0)")
    operations.create_index("kinema_jobs_rank", JOBS.name, ["status", rank, "seq"])


def _add_last_images(operations: Operations) -> None:
    for table in (JOBS, DELETIONS):
        operations.add_column(table.name, sa.Column("last_image", sa.Text))
    operations.add_column(JOBS.name, sa.Column("extend", sa.Text))
    operations.create_index("ix_kinema_jobs_last_image", JOBS.name, ["last_image"])


def _add_keys_of_batches(operations: Operations) -> None:
    if not sa.inspect(operations.get_bind()).has_table(BATCHES.name):
        return  # a version before batches wrote the database; the table is created as it is now
    for name in ("idempotency_key", "fingerprint"):
        operations.add_column(BATCHES.name, sa.Column(name, sa.Text))
    operations.create_index("kinema_batches_key", BATCHES.name, ["owner", "idempotency_key"], unique=True)


def _add_finishing_work(operations: Operations) -> None:
    operations.add_column(JOBS.name, sa.Column("finishing_work", sa.Text, nullable=False, server_default="{}"))


# By the format that they lead to.
_MIGRATIONS: dict[int, Callable[[Operations], None]] = {
    3: _add_owners_and_traces,
    4: _add_last_images,
    5: _add_keys_of_batches,
    6: _add_finishing_work,
}
