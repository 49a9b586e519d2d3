"""Tables and values of batches: files of requests and results, batches, and the lines of unfinished batches."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import sqlalchemy as sa

from kinema.jobs.job_schema import METADATA

if TYPE_CHECKING:
    from collections.abc import Mapping

FilePurpose = Literal["batch", "batch_output"]
BatchStatus = Literal[
    "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
]
# How a batch ends: as it is, or early.
BatchEnd = Literal["completed", "cancelled", "expired"]
UNFINISHED: tuple[BatchStatus, ...] = ("validating", "in_progress", "cancelling", "finalizing")
# The idempotency keys of clients do not begin with this.
KEY_PREFIX = "kinema:"

_SEQ = sa.BigInteger().with_variant(sa.Integer, "sqlite")
FILES = sa.Table(
    "kinema_files",
    METADATA,
    sa.Column("seq", _SEQ, primary_key=True, autoincrement=True),
    sa.Column("id", sa.Text, nullable=False, unique=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("purpose", sa.Text, nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("expires_at", sa.Float, nullable=False),
    sqlite_autoincrement=True,
)
BATCHES = sa.Table(
    "kinema_batches",
    METADATA,
    sa.Column("seq", _SEQ, primary_key=True, autoincrement=True),
    sa.Column("id", sa.Text, nullable=False, unique=True),
    sa.Column("status", sa.Text, nullable=False, index=True),
    sa.Column("ends_as", sa.Text, nullable=False, default="completed"),
    sa.Column("owner", sa.Text, nullable=False),  # the API key or address that created it, by name
    sa.Column("input_file", sa.Text, nullable=False),
    sa.Column("output_file", sa.Text),
    sa.Column("error_file", sa.Text),
    sa.Column("labels", sa.Text, nullable=False, default="{}"),  # `metadata` in the API
    sa.Column("errors", sa.Text, nullable=False, default="[]"),
    sa.Column("times", sa.Text, nullable=False, default="{}"),
    sa.Column("total", sa.Integer, nullable=False, default=0),
    sa.Column("completed", sa.Integer, nullable=False, default=0),
    sa.Column("failed", sa.Integer, nullable=False, default=0),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("expires_at", sa.Float, nullable=False),
    sa.Column("deleted_at", sa.Float),  # when a finished batch is deleted
    sa.Column("idempotency_key", sa.Text),
    sa.Column("fingerprint", sa.Text),  # of the request with this key
    sa.Index("kinema_batches_key", "owner", "idempotency_key", unique=True),
    sqlite_autoincrement=True,
)
# Deleted when their batch has ended. `result` is the line of the output or error file.
LINES = sa.Table(
    "kinema_batch_lines",
    METADATA,
    sa.Column("batch", sa.Text, primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("custom_id", sa.Text, nullable=False),
    sa.Column("position", sa.BigInteger, nullable=False),  # of its first byte in the input file
    sa.Column("state", sa.Text, nullable=False, default="pending"),
    sa.Column("job", sa.Text),
    sa.Column("result", sa.Text),
    sa.Index("kinema_batch_lines_state", "batch", "state", "number"),
)
IS_UNFINISHED = BATCHES.c.status.in_(UNFINISHED)


@dataclass(frozen=True, slots=True)
class BatchFile:
    """A file of requests or results. Times are seconds since 1970 (UTC), the size is in bytes."""

    id: str
    name: str
    purpose: FilePurpose
    size: int
    created_at: float
    expires_at: float


@dataclass(frozen=True, slots=True)
class LineError:
    """Why a line of an input file is invalid; `line` is None for an error of the whole file."""

    code: str
    message: str
    param: str | None
    line: int | None


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch at one moment.

    Attributes:
        ends_as: The status that it gets at its end.
        owner: The API key or address that created it, by name.
        times: When each status but the first began.
        expires_at: When its unfinished lines are given up.
        completed, failed: The number of finished lines, of `total`.
    """

    id: str
    status: BatchStatus
    ends_as: BatchEnd
    owner: str
    input_file: str
    output_file: str | None
    error_file: str | None
    labels: Mapping[str, str]
    errors: tuple[LineError, ...]
    times: Mapping[str, float]
    total: int
    completed: int
    failed: int
    created_at: float
    expires_at: float

    @property
    def finished(self) -> bool:
        """Whether its status is final."""
        return self.status not in UNFINISHED

    def key(self, number: int) -> str:
        """Return the idempotency key of a line's job."""
        return f"{key_prefix(self.id)}{number}"

    @property
    def has_unfinished_lines(self) -> bool:
        """Whether any line has no result yet."""
        return self.completed + self.failed < self.total


@dataclass(frozen=True, slots=True)
class BatchLine:
    """A line of an unfinished batch. `position` is that of its first byte in the input file."""

    number: int
    custom_id: str
    position: int
    job: str | None = None
    state: Literal["pending", "submitted", "completed", "failed", "dropped"] = "pending"
    result: str | None = None


def key_prefix(batch_id: str) -> str:
    """Return how the idempotency keys of a batch's jobs begin."""
    return f"{KEY_PREFIX}{batch_id}-"


def file_from_row(row: sa.RowMapping) -> BatchFile:
    """Return the file of a row of FILES."""
    return BatchFile(row["id"], row["name"], row["purpose"], row["size"], row["created_at"], row["expires_at"])


def batch_from_row(row: sa.RowMapping) -> Batch:
    """Return the batch of a row of BATCHES."""
    values: dict[str, Any] = {name: row[name] for name in Batch.__dataclass_fields__}
    values["errors"] = tuple(LineError(**error) for error in json.loads(row["errors"]))
    return Batch(**{**values, "labels": json.loads(row["labels"]), "times": json.loads(row["times"])})


def line_from_row(row: sa.RowMapping) -> BatchLine:
    """Return the line of a row of LINES."""
    return BatchLine(**{name: row[name] for name in BatchLine.__dataclass_fields__})
