"""A job to submit: the request with its images, and how the queue treats it. It is checked when it is made."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kinema.errors import InvalidRequest
from kinema.jobs.idempotency import check_key_length
from kinema.jobs.job import check_priority
from kinema.jobs.owner_limits import NO_LIMITS

if TYPE_CHECKING:
    from kinema.jobs.owner_limits import OwnerLimits
    from kinema.values import VideoRequest, Workload


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job to submit.

    Attributes:
        request: The parameters of the video. It has a prompt if and only if `image` is None.
        image: The bytes of a valid image file.
        last_image: The same of an image at which the video ends; with `extend`, of the video to extend.
        extend: The id of the job that this one extends.
        workload: The work of the video; None: `request.work`, for a plain video.
        title: Display name; None uses the prompt.
        priority: -1000 to 1000. Each step counts as one minute of waiting.
        pinned: Whether the job never expires.
        idempotency_key: A later submission with the same key returns the same job.
        fingerprint: Identifies the request for the key's comparison; None derives it from request, images and title.
            Pass it if the request has a random seed, which differs with each call.
        owner: Who submits the job. Owners take turns among jobs with the same priority.
        limits: The most that the owner may have in the queue.
        traceparent: The span that submits the job (W3C Trace Context), for its trace.
        webhook_url: URL for a message when the job has ended (`kinema.jobs.webhook_table`).

    Raises:
        InvalidRequest: not exactly one of prompt and image, or priority or key out of range.
    """

    request: VideoRequest
    image: bytes | None = field(default=None, repr=False)
    last_image: bytes | None = field(default=None, repr=False)
    extend: str | None = None
    workload: Workload | None = None
    title: str | None = None
    priority: int = 0
    pinned: bool = False
    idempotency_key: str | None = None
    fingerprint: str | None = None
    owner: str = ""
    limits: OwnerLimits = NO_LIMITS
    traceparent: str | None = None
    webhook_url: str | None = None

    def __post_init__(self) -> None:
        if self.image is None and self.request.prompt is None:
            raise InvalidRequest("neither an image nor a prompt is given; give one of them", "prompt")
        if self.image is not None and self.request.prompt is not None:
            raise InvalidRequest("both an image and a prompt are given; give only one of them", "prompt")
        check_priority(self.priority)
        check_key_length(self.idempotency_key)

    def key_fingerprint(self) -> str:
        """Return the fingerprint for the key, derived if none is given."""
        if self.fingerprint is not None:
            return self.fingerprint
        parts = [self.request.model_dump_json().encode(), self.image or b"", (self.title or "").encode()]
        parts += [] if self.last_image is None else [self.last_image]
        return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()
