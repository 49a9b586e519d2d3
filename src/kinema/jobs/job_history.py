"""The speed of the jobs that the server on this machine has completed, without starting a queue."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from kinema.jobs.eta import StageSpeeds
from kinema.jobs.job_schema import JOBS, job_from_row

if TYPE_CHECKING:
    from pathlib import Path

JOBS_READ = 20


def measured_speeds(database: Path) -> StageSpeeds:
    """Return the stage speeds of the latest completed jobs in a SQLite database, without changing it.

    They are empty if the file is missing, unreadable or of another version.
    """
    if not database.is_file():
        return StageSpeeds()
    query = sa.select(JOBS, sa.null().label("position")).where(JOBS.c.status == "completed")
    uri = f"file:{quote(str(database.absolute()))}"
    engine = sa.create_engine(sa.URL.create("sqlite", database=uri, query={"uri": "true", "mode": "ro"}))
    try:
        with engine.connect() as connection:
            rows = connection.execute(query.order_by(JOBS.c.completed_at.desc()).limit(JOBS_READ)).mappings().all()
        return StageSpeeds([job_from_row(row) for row in rows])
    except (SQLAlchemyError, ValueError, TypeError):
        return StageSpeeds()
    finally:
        engine.dispose()
