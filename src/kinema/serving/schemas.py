"""HTTP's shapes: what a job looks like there, and which error has which status. Nothing else knows either."""

from __future__ import annotations

import logging
from functools import cache
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from kinema.errors import (
    AllowanceUsedUp,
    InsufficientDisk,
    InsufficientMemory,
    InvalidImage,
    InvalidRequest,
    JobNotFound,
    JobUnfinished,
    KeyReused,
    KinemaError,
    QueueFull,
    QueueUnavailable,
    RequestTooLarge,
    ServerBusy,
    WeightsError,
)
from kinema.serving.client_messages import failure_message, refusal_message

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from kinema.jobs import Failure, Job

log = logging.getLogger(__name__)

# The first that fits counts.
_STATUS: tuple[tuple[type[KinemaError], int], ...] = (
    (RequestTooLarge, 413),
    (InvalidRequest, 400),
    (InvalidImage, 400),
    (JobNotFound, 404),
    (JobUnfinished, 409),
    (KeyReused, 409),
    (QueueFull, 429),
    (AllowanceUsedUp, 429),
    (QueueUnavailable, 503),
    (ServerBusy, 503),
    (WeightsError, 503),
    (InsufficientDisk, 507),
    (InsufficientMemory, 507),
    (KinemaError, 500),
)
_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
RETRY_SECONDS = 5


class ErrorDetail(BaseModel):
    """What went wrong, in one sentence that says what to do."""

    code: str = Field(description="For programs: the error's name in small letters.")
    message: str
    param: str | None = Field(default=None, description="The field that is wrong, where it is one.")
    type: str


class ErrorResponse(BaseModel):
    """The shape of every answer that is an error."""

    error: ErrorDetail


class VideoErrorDetail(BaseModel):
    """Why a video failed. A cancelled one has the code `cancelled`."""

    code: str
    message: str


class VideoObject(BaseModel):
    """A video, asked for or made."""

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
                "settings": {"num_frames": 14, "fps": 7},
                "stage_durations": {"encode": 0.2},
            }
        }
    )

    id: str
    object: str = "video"
    model: str
    status: str = Field(json_schema_extra={"enum": ["queued", "in_progress", "completed", "failed"]})
    progress: int = Field(ge=0, le=100, description="Percent; 100 once it is completed.")
    created_at: int = Field(description="Seconds since 1970, as all times.")
    started_at: int | None = None
    completed_at: int | None = Field(default=None, description="When it ended, also where it failed.")
    expires_at: int | None = Field(default=None, description="When it will be deleted; none while pinned or not ended.")
    prompt: str | None = Field(default=None, description="The sentence it is drawn from, or with a still its title.")
    seconds: str
    size: str = Field(description="Width x height.")
    seed: int
    error: VideoErrorDetail | None = None
    queue_position: int | None = Field(default=None, description="1 is next; none unless queued.")
    stage: str | None = None
    step: int = 0
    total: int = 0
    eta: float | None = Field(default=None, description="Seconds that are left, where that can be known.")
    pinned: bool = False
    settings: dict[str, Any] = Field(description="Every setting it is made with.")
    stage_durations: dict[str, float] = Field(description="Seconds, by stage.")
    warnings: list[str] | None = Field(default=None, description="What may not come out as hoped; told once, at first.")


class VideoList(BaseModel):
    """Part of the list of videos."""

    object: str = "list"
    data: list[VideoObject]
    has_more: bool
    first_id: str | None
    last_id: str | None


class DeletedVideo(BaseModel):
    """A video that is no more."""

    id: str
    deleted: bool = True
    object: str = "video.deleted"


class ModelObject(BaseModel):
    """A model that may be asked for."""

    id: str
    object: str = "model"
    created: int = 0
    owned_by: str
    kind: str = Field(description="`video`, or `image_model`: generates images from prompts.")
    default: bool
    licence: str | None = None
    defaults: dict[str, Any] = Field(description="The settings that differ from the usual ones.")


class ModelList(BaseModel):
    """All models that may be asked for."""

    object: str = "list"
    data: list[ModelObject]


def video_of(job: Job, warnings: Iterable[str] = ()) -> dict[str, Any]:
    """A job as clients see it."""
    request = job.request
    told = list(warnings)
    return {
        "id": job.id,
        "object": "video",
        "model": request.model,
        "status": job.status,
        "progress": job.progress,
        "created_at": int(job.created_at),
        "started_at": _whole(job.started_at),
        "completed_at": _whole(job.completed_at),
        "expires_at": _whole(job.expires_at),
        "prompt": job.title,
        "seconds": f"{request.num_frames / request.frame_rate:.4g}",
        "size": f"{request.width}x{request.height}",
        "seed": request.seed,
        "error": None if job.error is None else {"code": job.error.code, "message": failure_message(job.error)},
        "queue_position": job.queue_position,
        "stage": job.stage,
        "step": job.step,
        "total": job.total,
        "eta": None if job.eta is None else round(job.eta, 1),
        "pinned": job.pinned,
        "settings": dict(request),
        "stage_durations": {stage: round(seconds, 3) for stage, seconds in job.stage_durations.items()},
        **({"warnings": told} if told else {}),
    }


def refusal(error: KinemaError) -> tuple[int, dict[str, Any], dict[str, str]]:
    """The status, body and headers that answer an error."""
    status = _status_of(type(error))
    headers = {}
    if isinstance(error, QueueFull | AllowanceUsedUp):
        headers["Retry-After"] = str(max(1, round(error.retry_after)))
    elif status == 503:
        headers["Retry-After"] = str(RETRY_SECONDS)
    param = error.param if isinstance(error, InvalidRequest | InvalidImage) else None
    message = refusal_message(error)
    if message != str(error):
        log.warning("%s: %s", error.code, error)
    return status, error_body(status, error.code, message, param), headers


def failure(fault: Failure | None) -> tuple[int, dict[str, Any], dict[str, str]]:
    """The same for a job that failed while someone waited for its video."""
    code, message = ("failed", "the video failed") if fault is None else (fault.code, failure_message(fault))
    status = 409 if code == "cancelled" else _failed().get(code, 500)
    return status, error_body(status, code, message), {"Retry-After": str(RETRY_SECONDS)} if status == 503 else {}


def _status_of(error: type[KinemaError]) -> int:
    return next(number for kind, number in _STATUS if issubclass(error, kind))


@cache
def _failed() -> Mapping[str, int]:
    """The status for each code of our errors."""
    kinds: list[type[KinemaError]] = [KinemaError]
    for kind in kinds:
        kinds.extend(kind.__subclasses__())
    return {kind.code: _status_of(kind) for kind in kinds}


def error_body(status: int, code: str, message: str, param: str | None = None) -> dict[str, Any]:
    """An error's body."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    told = {"code": code, "message": message, "param": param, "type": kind}
    return {"error": {name: text and _sendable(text) for name, text in told.items()}}


def _sendable(text: str) -> str:
    """Without halves of characters, which JSON from outside may hold and UTF-8 does not."""
    return text.encode("utf-8", "backslashreplace").decode()


ERROR_RESPONSES: Mapping[int, str] = {
    400: "A field is wrong; `param` names it.",
    401: "A key is asked for, and none that is known was sent.",
    403: "This address, host name, or page of another site is not served.",
    404: "There is no such video.",
    409: "Not in this state: no result yet, or the key came before with something else.",
    413: "The body is larger than is read.",
    415: "The body is neither a form nor JSON.",
    429: "The queue is full, or the key had what it may have; `Retry-After` says when to come again.",
    500: "A defect, or what a model did not manage.",
    503: "The server is starting, ending or busy, or its database is not available.",
    507: "The disk is full.",
}


def _whole(moment: float | None) -> int | None:
    return None if moment is None else int(moment)
