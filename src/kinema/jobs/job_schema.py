"""Schema of the queue's database, and the expressions that its queries share."""

from __future__ import annotations

import json
import secrets
import time
from urllib.parse import urlsplit

import sqlalchemy as sa

from kinema.jobs.job import Failure, Job
from kinema.values import VideoRequest, Workload

METADATA = sa.MetaData()
JOBS = sa.Table(
    "kinema_jobs",
    METADATA,
    sa.Column("seq", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("id", sa.Text, nullable=False, unique=True),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("owner", sa.Text, nullable=False, server_default=""),  # the API key that submitted it, by name
    # Among jobs with one priority, the lower turn is first. Jobs of one owner have different turns.
    sa.Column("turn", sa.Integer, nullable=False, server_default="0"),
    sa.Column("work", sa.Float, nullable=False, server_default="0"),  # `Workload.total`
    sa.Column("finishing_work", sa.Text, nullable=False, server_default="{}"),  # the part of each stage after decoding
    sa.Column("passed", sa.Integer, nullable=False, default=0),  # how many jobs of a loaded model overtook it
    sa.Column("request", sa.Text, nullable=False),
    sa.Column("title", sa.Text),
    sa.Column("image", sa.Text, index=True),
    sa.Column("last_image", sa.Text, index=True),  # or the file of the video to extend
    sa.Column("extend", sa.Text),  # the id of the job that this one extends
    sa.Column("idempotency_key", sa.Text, unique=True),
    sa.Column("fingerprint", sa.Text),
    sa.Column("stage", sa.Text),
    sa.Column("step", sa.Integer, nullable=False, default=0),
    sa.Column("total", sa.Integer, nullable=False, default=0),
    sa.Column("progress", sa.Integer, nullable=False, default=0),
    sa.Column("eta", sa.Float),
    sa.Column("stage_durations", sa.Text, nullable=False, default="{}"),
    sa.Column("previews", sa.Integer, nullable=False, default=0),
    sa.Column("attempts", sa.Integer, nullable=False, default=0),
    sa.Column("error_code", sa.Text),
    sa.Column("error_message", sa.Text),
    sa.Column("pinned", sa.Boolean, nullable=False, default=False),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("started_at", sa.Float),
    sa.Column("completed_at", sa.Float),
    sa.Column("expires_at", sa.Float),
    sa.Column("traceparent", sa.Text),
    sa.Index("kinema_jobs_order", "status", "priority", "turn", "seq"),
    sa.Index("kinema_jobs_owner", "status", "owner", "priority", "turn"),
    sqlite_autoincrement=True,  # seq of a deleted job is never reused, so that paging stays correct
)
# The id of this database, which the data folder with its files also has.
IDENTITY = sa.Table(
    "kinema_database",
    METADATA,
    sa.Column("only", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("id", sa.Text, nullable=False),
    sa.Column("format", sa.Integer, nullable=False),
    sa.Column("oldest_reader", sa.Integer, nullable=False, server_default="1"),
)
# Where the files of the jobs are if they are not in data folders: the URL of a store.
STORE = sa.Table(
    "kinema_store",
    METADATA,
    sa.Column("only", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("url", sa.Text, nullable=False),
)
# Raise this whenever the tables or the requests in them change, and add a step to `migrations`.
FORMAT = 6
# The oldest FORMAT of a version that may use a database of this FORMAT.
OLDEST_READER = 4
# Deleted jobs whose files may still exist. Written in the transaction of the deletion, so that no crash loses them.
DELETIONS = sa.Table(
    "kinema_deletions",
    METADATA,
    sa.Column("job", sa.Text, primary_key=True),
    sa.Column("image", sa.Text),
    sa.Column("last_image", sa.Text),
)
# The process that runs the jobs (PostgreSQL; see `scheduler_lease`).
SCHEDULER = sa.Table(
    "kinema_scheduler",
    METADATA,
    sa.Column("only", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("holder", sa.Text, nullable=False),
    sa.Column("folder", sa.Text, nullable=False),
    sa.Column("holds_folder", sa.Boolean, nullable=False),
    sa.Column("expires_at", sa.Float, nullable=False),
    sa.Column("workers", sa.Text, nullable=False),
)
# Webhooks that are not delivered yet. `owner` is the id of a job or batch; a webhook is sent once that has ended.
WEBHOOKS = sa.Table(
    "kinema_webhooks",
    METADATA,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("owner", sa.Text, nullable=False, unique=True),
    sa.Column("url", sa.Text, nullable=False),
    sa.Column("host", sa.Text, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False, default=0),
    sa.Column("due_at", sa.Float, nullable=False, default=0, index=True),
)
IS_QUEUED = JOBS.c.status == "queued"
IS_RUNNING = JOBS.c.status == "in_progress"
# One step of priority counts as this many seconds of waiting.
AGING_SECONDS: sa.ColumnClause[float] = sa.literal_column("60.0", sa.Float)  # as in the index
# Smallest first. The rank of all waiting jobs changes alike over time, so it is constant here.
RANK = JOBS.c.created_at - JOBS.c.priority * AGING_SECONDS
QUEUE_ORDER = (RANK, JOBS.c.seq)
# Finds the job with the lowest rank without reading all.
sa.Index("kinema_jobs_rank", JOBS.c.status, RANK, JOBS.c.seq)
# Order of the jobs with one priority.
TURN_ORDER = (JOBS.c.turn, JOBS.c.created_at, JOBS.c.seq)
COUNT_QUEUED = sa.select(sa.func.count()).select_from(JOBS).where(IS_QUEUED)


def webhook_values(owner: str, url: str) -> dict[str, str]:
    """Return the row of a webhook of a job or batch."""
    return {"id": f"msg_{secrets.token_hex(16)}", "owner": owner, "url": url, "host": urlsplit(url).netloc}


def is_expired() -> sa.ColumnElement[bool]:
    """Return the condition that a job has expired."""
    return sa.and_(JOBS.c.expires_at < time.time(), sa.not_(JOBS.c.pinned))


def job_from_row(row: sa.RowMapping, position: int | None = None) -> Job:
    """Return the job of a row of JOBS."""
    return Job(
        id=row["id"],
        status=row["status"],
        # Validated at submission. A later version with narrower ranges can still read it.
        request=VideoRequest.model_construct(**json.loads(row["request"])),
        title=row["title"],
        image=row["image"],
        last_image=row["last_image"],
        extend=row["extend"],
        workload=_workload(row["work"], json.loads(row["finishing_work"])),
        priority=row["priority"],
        created_at=row["created_at"],
        started_at=row["started_at"],
        completed_at=row["completed_at"],
        expires_at=row["expires_at"],
        pinned=row["pinned"],
        queue_position=position,
        stage=row["stage"],
        step=row["step"],
        total=row["total"],
        progress=row["progress"],
        eta=row["eta"],
        error=None if row["error_code"] is None else Failure(row["error_code"], row["error_message"]),
        stage_durations=json.loads(row["stage_durations"]),
        previews=row["previews"],
        attempts=row["attempts"],
        traceparent=row["traceparent"],
    )


def workload_values(workload: Workload) -> dict[str, float | str]:
    """Return the columns of a job's work."""
    return {"work": workload.total, "finishing_work": json.dumps(dict(workload.finishing))}


def _workload(total: float, finishing: dict[str, float]) -> Workload:
    return Workload(total - sum(finishing.values()), finishing)
