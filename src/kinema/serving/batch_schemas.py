"""Schemas of /v1/files and /v1/batches, and the lines of output and error files."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from kinema.jobs.batch_schema import BatchStatus, FilePurpose
from kinema.serving.schemas import error_body, error_response, failure_response, video_of
from kinema.serving.short_messages import shorten, shorten_name

if TYPE_CHECKING:
    from kinema.errors import KinemaError
    from kinema.jobs import Job
    from kinema.jobs.batch_schema import Batch, BatchFile, BatchLine

MAX_LABELS = 16
MAX_LABEL_NAME = 64
OK = HTTPStatus.OK


class FileObject(BaseModel):
    """A file of requests or results."""

    id: str
    object: str = "file"
    bytes: int
    created_at: int
    expires_at: int = Field(description="When the file will be deleted.")
    filename: str
    purpose: FilePurpose
    status: str = "processed"


class FileList(BaseModel):
    """A page of the list of files."""

    object: str = "list"
    data: list[FileObject]
    has_more: bool
    first_id: str | None
    last_id: str | None


class DeletedFile(BaseModel):
    """A deleted file."""

    id: str
    deleted: bool = True
    object: str = "file"


class BatchRequest(BaseModel):
    """The body of `POST /v1/batches`."""

    model_config = ConfigDict(extra="forbid")

    input_file_id: str = Field(description="Id of a file that was uploaded with the purpose `batch`.")
    endpoint: Literal["/v1/videos"] = Field(description="The route of all requests.")
    completion_window: Literal["24h"] = Field(
        description="Requests that are not finished after this time are cancelled."
    )
    metadata: (
        Annotated[
            dict[Annotated[str, Field(min_length=1, max_length=MAX_LABEL_NAME)], Annotated[str, Field(max_length=512)]],
            Field(max_length=MAX_LABELS),
        ]
        | None
    ) = Field(default=None, description="Up to 16 texts with names of your own.")
    webhook_url: str | None = Field(
        default=None,
        max_length=2000,
        description="URL of a host in KINEMA_WEBHOOK_HOSTS, to which the server sends a message when the batch has "
        "ended.",
    )


class BatchCounts(BaseModel):
    """The number of requests of a batch."""

    total: int
    completed: int
    failed: int


class BatchErrorObject(BaseModel):
    """Why an input file is invalid."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None


class BatchErrorList(BaseModel):
    """The first errors of an input file."""

    object: str = "list"
    data: list[BatchErrorObject]


class BatchObject(BaseModel):
    """A batch."""

    id: str
    object: str = "batch"
    endpoint: str = "/v1/videos"
    completion_window: str = "24h"
    status: BatchStatus
    input_file_id: str
    output_file_id: str | None = Field(description="The results of completed requests, once the batch has ended.")
    error_file_id: str | None = Field(description="The errors of all other requests, once the batch has ended.")
    errors: BatchErrorList | None = Field(description="Why the status is `failed`: the input file is invalid.")
    request_counts: BatchCounts
    metadata: dict[str, str] | None
    created_at: int
    in_progress_at: int | None = None
    expires_at: int = Field(description="When unfinished requests are cancelled.")
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None


class BatchList(BaseModel):
    """A page of the list of batches."""

    object: str = "list"
    data: list[BatchObject]
    has_more: bool
    first_id: str | None
    last_id: str | None


def file_of(file: BatchFile) -> dict[str, Any]:
    """Return the file object of a file."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.size,
        "created_at": int(file.created_at),
        "expires_at": int(file.expires_at),
        "filename": file.name,
        "purpose": file.purpose,
        "status": "processed",
    }


def batch_of(batch: Batch) -> dict[str, Any]:
    """Return the batch object of a batch."""
    errors = [
        {"code": error.code, "message": error.message, "param": error.param, "line": error.line}
        for error in batch.errors
    ]
    names = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")
    times = {f"{name}_at": int(batch.times[name]) if name in batch.times else None for name in names}
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": "/v1/videos",
        "completion_window": "24h",
        "status": batch.status,
        "input_file_id": batch.input_file,
        "output_file_id": batch.output_file,
        "error_file_id": batch.error_file,
        "errors": {"object": "list", "data": errors} if errors else None,
        "request_counts": {"total": batch.total, "completed": batch.completed, "failed": batch.failed},
        "metadata": dict(batch.labels) or None,
        "created_at": int(batch.created_at),
        "expires_at": int(batch.expires_at),
        **times,
    }


def page_of(data: list[dict[str, Any]], *, has_more: bool) -> dict[str, Any]:
    """Return a page of a list of objects."""
    ends = {"first_id": data[0]["id"] if data else None, "last_id": data[-1]["id"] if data else None}
    return {"object": "list", "data": data, "has_more": has_more, **ends}


def job_result(batch: Batch, line: BatchLine, job: Job | None) -> str:
    """Return the line of a finished job; None: it was deleted."""
    if job is None:
        message = "the video was deleted before its result was written"
        return _line(batch, line, 404, error_body(404, "job_not_found", message))
    if job.status == "completed":
        return _line(batch, line, OK, video_of(job))
    status, body, _ = failure_response(job.error)
    return _line(batch, line, status, body)


def rejected_result(batch: Batch, line: BatchLine, error: KinemaError) -> str:
    """Return the line of a request that can't be submitted."""
    status, body, _ = error_response(error)
    return _line(batch, line, status, body)


def dropped_result(batch: Batch, line: BatchLine) -> str:
    """Return the line of a request that was not run to its end, because the batch was cancelled or expired."""
    reasons = {
        "cancelled": ("batch_cancelled", "the batch was cancelled before this request was finished"),
        "expired": ("batch_expired", "the batch expired before this request was finished; send it in a new batch"),
    }
    code, message = reasons.get(batch.ends_as, reasons["cancelled"])
    return _dump(batch, line, None, {"code": code, "message": message})


def _line(batch: Batch, line: BatchLine, status: int, body: dict[str, Any]) -> str:
    if detail := body.get("error") if status != OK else None:
        short = {"message": shorten(detail["message"]), "param": shorten_name(detail["param"])}
        body = {"error": {**detail, **short}}
    response = {"status_code": status, "request_id": f"{batch.id}-{line.number}", "body": body}
    return _dump(batch, line, response, None)


def _dump(batch: Batch, line: BatchLine, response: dict[str, Any] | None, error: dict[str, str] | None) -> str:
    values = {"id": f"{batch.id}-{line.number}", "custom_id": line.custom_id, "response": response, "error": error}
    return json.dumps(values)
