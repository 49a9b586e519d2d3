"""The values of the queue: a job as a caller sees it, a task as a worker gets it, and what the work yields."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    from kinema.values import Step, VideoRequest

Status = Literal["queued", "in_progress", "completed", "failed"]
Part = Literal["image", "latents", "video"]

# What each part of a job leaves behind: a crash costs at most the part that was being made.
PRODUCTS: Mapping[Part, str] = {"image": "image.png", "latents": "latents.safetensors", "video": "video.mp4"}

# Why a job failed, where it was none of `kinema.errors`.
OWN_FAILURES = ("cancelled", "worker_died", "worker_hung", "interrupted", "internal_error")


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a job failed. `code` is one of OWN_FAILURES, or the `code` of a `KinemaError`."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Job:
    """A job at one moment. Times are seconds since 1970 (UTC), durations seconds."""

    id: str
    status: Status
    request: VideoRequest
    title: str | None
    image: str | None  # SHA-256 of the still's bytes, once there is one
    priority: int
    created_at: float
    started_at: float | None = None
    completed_at: float | None = None
    expires_at: float | None = None
    pinned: bool = False
    queue_position: int | None = None  # 1 is next; None unless queued
    stage: str | None = None  # that of the latest Step
    step: int = 0
    total: int = 0
    progress: int = 0  # percent of the whole job
    eta: float | None = None  # seconds until it is done; None while no one can know
    error: Failure | None = None
    stage_durations: Mapping[str, float] = field(default_factory=dict)
    previews: int = 0  # how many there were: another number, another preview
    attempts: int = 0  # workers that died or hung under it

    @property
    def finished(self) -> bool:
        """Whether it will never change again."""
        return self.status in ("completed", "failed")


@dataclass(frozen=True, slots=True)
class JobPage:
    """Part of a list of jobs; ask for those `after` the last one's id while there are more."""

    jobs: tuple[Job, ...]
    has_more: bool


@dataclass(frozen=True, slots=True)
class Task:
    """One part of a job, as a worker gets it: make `part` from what is there.

    `image` is the picture's file as it was given or drawn, None for the part that draws it; `latents` is the file that
    the part "latents" saved, for the part "video".
    """

    job: str
    part: Part
    request: VideoRequest
    image: Path | None = None
    latents: Path | None = None


@dataclass(frozen=True, slots=True)
class Preview:
    """A small picture (bytes of a JPEG) of how far the work is; `make` is called only where one is wanted now."""

    make: Callable[[], bytes]


class TaskResult(Protocol):
    """What a part ends with: an image, latents, a Clip. It is saved once, under a path that ends as in PRODUCTS."""

    def save(self, path: Any, /) -> Any:
        """Write it whole to a file that is not there yet."""


# Yields a Step for each piece of work, Previews, and last the part's TaskResult. To cancel, stop iterating. It always
# runs in the same worker process, so it may keep its model loaded.
Work = Callable[[Task], Iterator["Step | Preview | TaskResult"]]
