"""Response schemas of the HTTP API, and the HTTP status of each error."""

from __future__ import annotations

import logging
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from kinema.errors import (
    BatchNotFound,
    FileInUse,
    FileNotFound,
    HubUnreachable,
    IdempotencyKeyReused,
    InsufficientDisk,
    InsufficientMemory,
    InvalidImage,
    InvalidRequest,
    JobNotFound,
    JobUnfinished,
    KinemaError,
    ModelError,
    QueueFull,
    QueueUnavailable,
    QuotaExceeded,
    RequestTooLarge,
    ServerBusy,
)
from kinema.serving.client_messages import error_message, failure_message

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from kinema.jobs import Failure, Job
    from kinema.jobs.worker_state import PoolState, WorkerState

log = logging.getLogger(__name__)

# The first class that matches determines the status.
_STATUS: tuple[tuple[type[KinemaError], int], ...] = (
    (RequestTooLarge, 413),
    (InvalidRequest, 400),
    (InvalidImage, 400),
    (JobNotFound, 404),
    (BatchNotFound, 404),
    (FileNotFound, 404),
    (JobUnfinished, 409),
    (FileInUse, 409),
    (IdempotencyKeyReused, 409),
    (QueueFull, 429),
    (QuotaExceeded, 429),
    (QueueUnavailable, 503),
    (ServerBusy, 503),
    (HubUnreachable, 503),
    (ModelError, 500),  # waiting does not repair a model
    (InsufficientDisk, 507),
    (InsufficientMemory, 507),
    (KinemaError, 500),
)
_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
RETRY_SECONDS = 5


class ErrorDetail(BaseModel):
    """The details of an error."""

    code: str = Field(description="Identifier of the error, in snake case.")
    message: str
    param: str | None = Field(default=None, description="The invalid field, if there is one.")
    type: str


class ErrorResponse(BaseModel):
    """The body of every error response."""

    error: ErrorDetail


class VideoErrorDetail(BaseModel):
    """The reason why a job failed. A cancelled job has the code `cancelled`."""

    code: str
    message: str


class VideoObject(BaseModel):
    """A video and its job."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "id": "video_0123456789abcdef0123456789abcdef",
                "object": "video",
                "model": "pocket",
                "status": "in_progress",
                "progress": 42,
                "created_at": 1790000000,
                "prompt": "a rocket on its pad",
                "seconds": "2",
                "size": "288x160",
                "seed": 42,
                "stage": "denoise",
                "step": 2,
                "total": 4,
                "eta": 4.1,
                "parameters": {"num_frames": 14, "fps": 7},
                "stage_durations": {"encode": 0.2},
            }
        }
    )

    id: str
    object: str = "video"
    model: str
    status: str = Field(json_schema_extra={"enum": ["queued", "in_progress", "completed", "failed"]})
    progress: int = Field(ge=0, le=100, description="Percent; 100 if completed.")
    created_at: int = Field(description="Unix time in seconds, like all times.")
    started_at: int | None = None
    completed_at: int | None = Field(default=None, description="When the job finished or failed.")
    expires_at: int | None = Field(
        default=None, description="When the video will be deleted; null if pinned or not finished."
    )
    prompt: str | None = Field(default=None, description="The prompt; for a video from an image, its title.")
    seconds: str
    size: str = Field(description="Width x height.")
    seed: int
    error: VideoErrorDetail | None = None
    queue_position: int | None = Field(default=None, description="1 is next; null unless queued.")
    stage: str | None = None
    step: int = 0
    total: int = 0
    eta: float | None = Field(default=None, description="Estimated remaining seconds, if known.")
    pinned: bool = False
    last_image_sha256: str | None = Field(
        default=None, description="SHA-256 of the file of the image at which the video ends, if there is one."
    )
    extend: str | None = Field(default=None, description="Id of the video that this one extends, if it does.")
    parameters: dict[str, Any] = Field(description="All parameters of the request.")
    stage_durations: dict[str, float] = Field(description="Seconds per stage.")
    warnings: list[str] | None = Field(
        default=None, description="Parameters that may give a poor video. Only in the response that creates the video."
    )


class VideoList(BaseModel):
    """A page of the list of videos."""

    object: str = "list"
    data: list[VideoObject]
    has_more: bool
    first_id: str | None
    last_id: str | None


class WorkerObject(BaseModel):
    """A worker: a process that runs jobs on one device or group of GPUs."""

    object: str = "worker"
    place: str | None = Field(
        description="Device of the worker, such as `cuda:0`, or host name of its node; null while that is not known."
    )
    node_id: str | None = Field(description="Ray's id of the node, on a cluster.")
    gpus: int | None = Field(
        description="Number of GPUs that make each video together; 0 on a CPU, null while that is not known."
    )
    status: Literal["starting", "idle", "busy"]
    model: str | None = Field(description="The loaded model.")
    jobs: list[str] = Field(description="Ids of the job that it runs, and of the next one if it has got that already.")
    problem: str | None = Field(description="Why it is not ready.")

    @classmethod
    def of(cls, state: WorkerState) -> Self:
        """Return the object for a worker's state."""
        return cls(
            place=state.place,
            node_id=state.node_id,
            gpus=state.gpus,
            status=state.status,
            model=state.model,
            jobs=list(state.jobs),
            problem=state.problem,
        )


class WorkerList(BaseModel):
    """All workers of the server."""

    object: str = "list"
    data: list[WorkerObject]
    problems: list[str] = Field(
        description="Why no worker can be started or no job runs, such as a cluster that does not respond."
    )

    @classmethod
    def of(cls, state: PoolState) -> Self:
        """Return the list for the state of all workers."""
        return cls(data=[WorkerObject.of(each) for each in state.workers], problems=list(state.problems))


class DeletedVideo(BaseModel):
    """A deleted video."""

    id: str
    deleted: bool = True
    object: str = "video.deleted"


class ModelObject(BaseModel):
    """An available model."""

    id: str
    object: str = "model"
    created: int = 0
    owned_by: str
    kind: str | None = Field(
        description="`video`, or `image_model`: generates images from prompts. null if unknown: a hub id of "
        "KINEMA_MODELS."
    )
    default: bool
    licence: str | None = None
    defaults: dict[str, Any] = Field(description="Default parameters that differ from the general defaults.")


class ModelList(BaseModel):
    """The available models."""

    object: str = "list"
    data: list[ModelObject]


def video_of(job: Job, warnings: Iterable[str] = ()) -> dict[str, Any]:
    """Return the video object of a job."""
    request = job.request
    messages = list(warnings)
    return {
        "id": job.id,
        "object": "video",
        "model": request.model,
        "status": job.status,
        "progress": job.progress,
        "created_at": int(job.created_at),
        "started_at": _to_seconds(job.started_at),
        "completed_at": _to_seconds(job.completed_at),
        "expires_at": _to_seconds(job.expires_at),
        "prompt": job.title,
        "seconds": f"{request.duration:.4g}",
        "size": "{}x{}".format(*request.output_size),
        "seed": request.seed,
        "error": None if job.error is None else {"code": job.error.code, "message": failure_message(job.error)},
        "queue_position": job.queue_position,
        "stage": job.stage,
        "step": job.step,
        "total": job.total,
        "eta": None if job.eta is None else round(job.eta, 1),
        "pinned": job.pinned,
        "last_image_sha256": None if job.extend else job.last_image,
        "extend": job.extend,
        "parameters": dict(request),
        "stage_durations": {stage: round(seconds, 3) for stage, seconds in job.stage_durations.items()},
        **({"warnings": messages} if messages else {}),
    }


def error_response(error: KinemaError) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Return the status, body and headers of the response for an error."""
    status = status_of(type(error))
    headers = {}
    if isinstance(error, QueueFull | QuotaExceeded):
        headers["Retry-After"] = str(max(1, round(error.retry_after)))
    elif status == 503:
        headers["Retry-After"] = str(RETRY_SECONDS)
    param = error.param if isinstance(error, InvalidRequest | InvalidImage) else None
    message = error_message(error)
    if message != str(error):
        log.warning("%s: %s", error.code, error)
    return status, error_body(status, error.code, message, param), headers


def failure_response(failure: Failure | None) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Return the same for a failed job whose client waits for the video."""
    code, message = ("failed", "the video failed") if failure is None else (failure.code, failure_message(failure))
    status = 409 if code == "cancelled" else _status_by_code().get(code, 500)
    return status, error_body(status, code, message), {"Retry-After": str(RETRY_SECONDS)} if status == 503 else {}


def status_of(error: type[KinemaError]) -> int:
    """Return the HTTP status of an error class."""
    return next(number for kind, number in _STATUS if issubclass(error, kind))


@cache
def _status_by_code() -> Mapping[str, int]:
    """Return the HTTP status of each error code."""
    kinds: list[type[KinemaError]] = [KinemaError]
    for kind in kinds:
        kinds.extend(kind.__subclasses__())
    return {kind.code: status_of(kind) for kind in kinds}


def error_body(status: int, code: str, message: str, param: str | None = None) -> dict[str, Any]:
    """Return the body of an error response."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    detail = {"code": code, "message": message, "param": param, "type": kind}
    return {"error": {name: text and _encodable(text) for name, text in detail.items()}}


def _encodable(text: str) -> str:
    """Escape lone surrogates, which a JSON body may contain and UTF-8 can't encode."""
    return text.encode("utf-8", "backslashreplace").decode()


ERROR_RESPONSES: Mapping[int, str] = {
    400: "A field is invalid; `param` names it.",
    401: "A valid API key is required.",
    403: "The client's address, the Host header or the Origin is not allowed.",
    404: "The video, file or batch does not exist.",
    409: "The video is not finished, the file is in use, or the Idempotency-Key was used for a different request.",
    413: "The body is too large.",
    415: "The Content-Type is not supported; send a form or JSON.",
    429: "The queue is full, or the caller's quota is used up; retry after `Retry-After` seconds.",
    500: "Internal error, or the model failed.",
    503: "The server is starting, shutting down or busy, or its database is not available.",
    507: "The disk is full.",
}


def _to_seconds(timestamp: float | None) -> int | None:
    return None if timestamp is None else int(timestamp)
