"""Everything that Kinema can refuse or fail at, as one tree; every message says what to do.

    KinemaError
    ├── InvalidRequest        a setting out of range, or settings that contradict each other
    │   └── RequestTooLarge   more was sent than is read at once
    ├── InvalidImage          what was given is no usable image
    ├── WeightsError          a model can't be had or can't be used
    │   ├── ModelNotFound     no such catalog name, hub repository or folder
    │   ├── ModelGated        the repository asks for a licence to be accepted, or for a login
    │   ├── HubUnreachable    no network, or the hub does not answer
    │   ├── WeightsMissing    a file of the model is not there
    │   ├── WeightsDamaged    a file is truncated or is not what its name says
    │   ├── NotAnSvdModel     a model, but no Stable Video Diffusion
    │   └── NotAnImagePipeline       a model, but no text-to-image pipeline that can be used here
    ├── InsufficientMemory    not enough memory on the device, or none left
    ├── InsufficientDisk      not enough room for a download or a result
    ├── GenerationFailed      a model gave what is no video, or no still (NaN, or one constant colour)
    ├── JobError              the queue can't do what was asked
    │   ├── QueueFull         as many jobs wait as may
    │   ├── QueueUnavailable  its folder or database can't be used, or it is closing
    │   ├── JobNotFound       no job has this id
    │   ├── JobUnfinished     the job has no result: not yet, or it failed
    │   └── KeyReused         an idempotency key came again with another request
    ├── ServerBusy            more is asked of a server at once than it handles
    ├── AllowanceUsedUp       a caller has had what it may have in a day
    ├── VideoError            a video file can't be written or read
    └── RecipeError           a file carries no recipe, or one that can't be followed

Lower libraries' errors are translated where they arise, and never pass through as they are.
"""


class KinemaError(Exception):
    """The root: catch this to catch everything that Kinema raises on purpose."""


class InvalidRequest(KinemaError, ValueError):
    """A setting out of range. `param` names it, as in `VideoRequest`."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class RequestTooLarge(InvalidRequest):
    """More was sent than is read at once."""


class InvalidImage(KinemaError, ValueError):
    """What was given is no usable image. `param` names the field that it came in, where it came in one."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class WeightsError(KinemaError):
    """A model can't be had or can't be used."""


class ModelNotFound(WeightsError):
    """No such catalog name, hub repository or folder."""


class ModelGated(WeightsError):
    """The repository asks for its licence to be accepted, or for a login."""


class HubUnreachable(WeightsError):
    """No network, or the hub does not answer."""


class WeightsMissing(WeightsError):
    """A file of the model is not there."""


class WeightsDamaged(WeightsError):
    """A file is truncated, or is not what its name says."""


class NotAnSvdModel(WeightsError):
    """A model in a known layout, but not a Stable Video Diffusion."""


class NotAnImagePipeline(WeightsError):
    """A model in a known layout, but no text-to-image pipeline that can be used here."""


class InsufficientMemory(KinemaError):
    """Not enough memory on the device, or none left while generating."""


class InsufficientDisk(KinemaError):
    """Not enough room on the disk for a download or a result."""


class GenerationFailed(KinemaError):
    """A model gave something that is no video, or no still: NaN, infinity, or one constant colour."""


class JobError(KinemaError):
    """The queue can't do what was asked."""


class QueueFull(JobError):
    """As many jobs wait as may. `retry_after` is when a place should be free, in seconds."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class QueueUnavailable(JobError):
    """The queue's folder or database can't be used, or it is closing."""


class JobNotFound(JobError):
    """No job has this id."""


class JobUnfinished(JobError):
    """The job has no result: not yet, or it failed."""


class KeyReused(JobError):
    """An idempotency key came again with another request."""


class ServerBusy(KinemaError):
    """More is asked of a server at once than it handles; a little later it may be free."""


class AllowanceUsedUp(KinemaError):
    """A caller has had what it may have in a day. `retry_after` is when it may have more, in seconds."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class VideoError(KinemaError):
    """A video file can't be written or read."""


class RecipeError(KinemaError):
    """A file carries no recipe, or one that can't be followed here."""
