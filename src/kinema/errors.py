"""All errors that Kinema raises, as one tree. Every message names the problem and, where there is one, the remedy.

    KinemaError
    ├── InvalidRequest               a parameter is out of range, or parameters contradict each other
    │   ├── RequestTooLarge          the request body exceeds the limit
    │   └── ContentRefused           the server's safety check or its list of blocked words refuses the content
    ├── InvalidImage                 the input is not a usable image
    ├── ModelError                   a model is unavailable or invalid
    │   ├── ModelNotFound            no such catalog name, hub repository or folder
    │   ├── ModelGated               the repository requires a login or an accepted licence
    │   ├── HubUnreachable           no network, or the hub does not respond
    │   ├── ModelIncomplete          a file of the model is missing
    │   ├── ModelCorrupt             a file is truncated or has the wrong content
    │   ├── NotAnSvdModel            the model is not Stable Video Diffusion
    │   └── NotAnImagePipeline       the model is not a supported text-to-image pipeline
    ├── InsufficientMemory           the device has too little free memory
    ├── DeviceLost                   a process of a group of GPUs ended or does not respond
    ├── InsufficientDisk             the disk has too little free space
    ├── GenerationFailed             a model's output is not an image or video (NaN, infinity, one constant colour)
    ├── JobError                     the queue cannot perform the operation
    │   ├── QueueFull                the maximum number of jobs is waiting
    │   ├── QueueUnavailable         the queue's folder or database is unavailable, or the queue is closing
    │   ├── JobNotFound              no job has this id
    │   ├── BatchNotFound            no batch has this id
    │   ├── FileNotFound             no file of a batch has this id
    │   ├── JobUnfinished            the job has no result, because it has not finished or has failed
    │   ├── FileInUse                an unfinished batch reads the file
    │   └── IdempotencyKeyReused     an idempotency key was reused with another request
    ├── ServerUnreachable            the server of a batch does not answer
    ├── ServerBusy                   the server has reached a concurrency limit
    ├── QuotaExceeded                a client has used up its daily quota
    ├── VideoError                   a video file cannot be written or read
    ├── CredentialsError             content credentials can't be signed, or their key can't be used
    └── RecipeError                  a file contains no recipe, or one that cannot be applied

Errors of other libraries are translated where they occur and never propagate unchanged, with one exception: the
constructor of `VideoRequest` raises pydantic's ValidationError (`VideoRequest.checked` raises InvalidRequest). `code`
is the error's name in the HTTP API and in the events of `--json`; every class has its own.
"""

from typing import ClassVar


class KinemaError(Exception):
    """Base class of all errors that Kinema raises intentionally."""

    code: ClassVar[str] = "kinema_error"


class InvalidRequest(KinemaError, ValueError):
    """A parameter or setting is invalid. `param` is its name, as in `VideoRequest` or `Settings`."""

    code = "invalid_request"

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class RequestTooLarge(InvalidRequest):
    """The request body exceeds the limit."""

    code = "request_too_large"


class ContentRefused(InvalidRequest):
    """The safety check or the blocked words of a server refuse an image, a video or a prompt. Nothing of it is kept."""

    code = "content_refused"


class InvalidImage(KinemaError, ValueError):
    """The input is not a usable image. `param` is the request field that contained it, if any."""

    code = "invalid_image"

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class ModelError(KinemaError):
    """A model is unavailable or invalid."""

    code = "model_error"


class ModelNotFound(ModelError):
    """No catalog name, hub repository or folder has this name."""

    code = "model_not_found"


class ModelGated(ModelError):
    """The hub repository requires a login or an accepted licence."""

    code = "model_gated"


class HubUnreachable(ModelError):
    """There is no network, or the hub does not respond."""

    code = "hub_unreachable"


class ModelIncomplete(ModelError):
    """A file of the model is missing."""

    code = "model_incomplete"


class ModelCorrupt(ModelError):
    """A file of the model is truncated or has the wrong content."""

    code = "model_corrupt"


class NotAnSvdModel(ModelError):
    """The model has a known layout but is not Stable Video Diffusion."""

    code = "not_an_svd_model"


class NotAnImagePipeline(ModelError):
    """The model has a known layout but is not a supported text-to-image pipeline."""

    code = "not_an_image_pipeline"


class InsufficientMemory(KinemaError):
    """The device has too little free memory, before or during generation."""

    code = "insufficient_memory"


class DeviceLost(KinemaError):
    """A process of a group of GPUs ended or does not respond."""

    code = "device_lost"


class InsufficientDisk(KinemaError):
    """The disk has too little free space for a download or a result."""

    code = "insufficient_disk"


class GenerationFailed(KinemaError):
    """A model's output is not an image or video: NaN, infinity, or one constant colour."""

    code = "generation_failed"


class JobError(KinemaError):
    """The queue cannot perform the operation."""

    code = "job_error"


class QueueFull(JobError):
    """The maximum number of jobs is waiting. `retry_after` is the expected time until a slot is free, in seconds."""

    code = "queue_full"

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class QueueUnavailable(JobError):
    """The queue's folder or database is unavailable, or the queue is closing."""

    code = "queue_unavailable"


class JobNotFound(JobError):
    """No job has this id."""

    code = "job_not_found"


class BatchNotFound(JobError):
    """No batch has this id."""

    code = "batch_not_found"


class FileNotFound(JobError):
    """No file of a batch has this id."""

    code = "file_not_found"


class JobUnfinished(JobError):
    """The job has no result, because it has not finished or has failed."""

    code = "job_unfinished"


class FileInUse(JobError):
    """An unfinished batch reads the file."""

    code = "file_in_use"


class IdempotencyKeyReused(JobError):
    """An idempotency key was reused with another request."""

    code = "idempotency_key_reused"


class ServerUnreachable(KinemaError):
    """The server that makes the videos of a batch does not answer."""

    code = "server_unreachable"


class ServerBusy(KinemaError):
    """The server has reached a concurrency limit; retry a few seconds later."""

    code = "server_busy"


class QuotaExceeded(KinemaError):
    """A client has used up its daily quota. `retry_after` is the time until it may continue, in seconds."""

    code = "quota_exceeded"

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class VideoError(KinemaError):
    """A video file cannot be written or read."""

    code = "video_error"


class RecipeError(KinemaError):
    """A file contains no recipe, or one that cannot be applied here."""

    code = "recipe_error"


class CredentialsError(KinemaError):
    """Content credentials can't be signed, or their key or certificate can't be used."""

    code = "credentials_error"
