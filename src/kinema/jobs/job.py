"""Values of the queue: a job as callers see it, a task as a worker process receives it, and the protocol of work."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from kinema.errors import InvalidRequest
from kinema.values import Workload

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping
    from pathlib import Path

    from kinema.steps import Event, Step
    from kinema.values import VideoRequest

Status = Literal["queued", "in_progress", "completed", "failed"]
Part = Literal["image", "latents", "video"]

MAX_PRIORITY = 1000

# The output file of each part of a job. After a crash, only the interrupted part runs again.
PART_FILES: Mapping[Part, str] = {"image": "image.png", "latents": "latents.safetensors", "video": "video.mp4"}

# Failure codes that are not errors of `kinema.errors`.
QUEUE_FAILURE_CODES = ("cancelled", "worker_died", "worker_hung", "interrupted", "internal_error")


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a job failed. `code` is one of QUEUE_FAILURE_CODES, or the `code` of a `KinemaError`."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Job:
    """A job at one moment. Times are seconds since 1970 (UTC), durations are seconds."""

    id: str
    status: Status
    request: VideoRequest
    title: str | None
    image: str | None  # SHA-256 of the image file; None until the image is generated
    priority: int
    created_at: float
    last_image: str | None = None  # the same of the image at which the video ends, or of the video to extend
    extend: str | None = None  # the id of the job whose video this one extends
    workload: Workload = field(default=Workload(0.0))  # zero of a job that was stored before its work was counted
    started_at: float | None = None
    completed_at: float | None = None
    expires_at: float | None = None
    pinned: bool = False
    queue_position: int | None = None  # 1 is next; None unless queued
    stage: str | None = None  # stage of the latest Step
    step: int = 0
    total: int = 0
    progress: int = 0  # percent of the whole job
    eta: float | None = None  # seconds until completion; None while unknown
    error: Failure | None = None
    stage_durations: Mapping[str, float] = field(default_factory=dict)
    previews: int = 0  # number of previews so far; it changes with each new preview
    attempts: int = 0  # worker processes that died or hung while running it
    traceparent: str | None = None  # of its trace (W3C Trace Context); None if it has none

    @property
    def finished(self) -> bool:
        """Whether the job is completed or failed, which is final."""
        return self.status in ("completed", "failed")


@dataclass(frozen=True, slots=True)
class JobPage:
    """A page of the job list. If `has_more`, pass the id of the last job as `after` to get the next page."""

    jobs: tuple[Job, ...]
    has_more: bool


@dataclass(frozen=True, slots=True)
class Task:
    """One part of a job, as a worker process receives it.

    Attributes:
        image: The uploaded or generated image file; None for the part "image", which generates it.
        latents: The file that the part "latents" saved; None except for the part "video".
        last_image: The uploaded image file at which the video ends, if there is one; None for the part "image".
        source_video: In its place, the file of the video to extend.
    """

    job: str
    part: Part
    request: VideoRequest
    image: Path | None = None
    latents: Path | None = None
    last_image: Path | None = None
    source_video: Path | None = None


@dataclass(slots=True)
class DeviceState:
    """The device of a worker process, and what it has loaded.

    Attributes:
        device: Such as "cpu" or "cuda:0".
        gpus: The number of GPUs that make each video together; 0 on a CPU.
        model: The video model that is loaded, or None. The work keeps it up to date.
    """

    device: str
    gpus: int
    model: str | None = None


class TaskResult(Protocol):
    """The output of a part: an image, latents or a video. It is saved once; the extension is that in PART_FILES."""

    def save(self, path: Any, /) -> Any:
        """Write the output to a new file."""


class Work(Protocol):
    """The work of a worker process. One object runs all its tasks, so it may keep its model loaded."""

    @staticmethod
    def import_libraries() -> None:
        """Import what the work needs, in a spare process: without a device, and with little memory."""

    def start(self, report: Callable[[str], object], /) -> DeviceState | None:
        """Get ready for tasks; call `report` with what is being done, such as "loading a model".

        Return the state of the device, which is read after each step, or None if there is nothing to report.
        """

    def prepare(self, task: Task, /) -> None:
        """Read the inputs of a task that starts soon. Called in a thread, possibly while another task runs."""

    def __call__(self, task: Task, previous: TaskResult | None, /) -> Generator[Event, None, TaskResult]:
        """Run a task: yield a step per unit of work, and return the output. To cancel, close the generator.

        `previous` is the output of the job's part before, if it was computed just now: its file may not exist yet.
        """

    def preview(self, state: Step | TaskResult, /) -> bytes | None:
        """Return a small JPEG of a step or of an output, or None if it can't be shown. Called in a thread."""


def check_priority(priority: int) -> None:
    """Check the priority of a job.

    Raises:
        InvalidRequest: it is out of range.
    """
    if not -MAX_PRIORITY <= priority <= MAX_PRIORITY:
        raise InvalidRequest(f"priority {priority} is out of range: {-MAX_PRIORITY} to {MAX_PRIORITY}", "priority")
