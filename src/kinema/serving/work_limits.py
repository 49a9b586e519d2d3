"""Limits of the work of one request: that of the server, and that of an API key."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kinema.errors import InvalidRequest
from kinema.messages import Message

if TYPE_CHECKING:
    from kinema.settings import Settings
    from kinema.values import VideoRequest, Workload


def check_work(settings: Settings, request: VideoRequest, workload: Workload) -> None:
    """Check the work of a request.

    Raises:
        InvalidRequest: it is more than a request or an API key may have.
    """
    work, most, most_of_key = workload.total, settings.max_work, settings.key_work
    largest = max(workload.finishing, key=lambda stage: workload.finishing[stage], default="")
    if workload.denoise > most:
        raise InvalidRequest(_too_much_work(request, workload.denoise, most), "num_frames")
    if work > most:
        raise InvalidRequest(_too_much_finishing(request, largest, work, most), largest)
    if most_of_key is None or work <= most_of_key:
        return
    if workload.denoise <= most_of_key:
        raise InvalidRequest(_too_much_finishing_for_key(request, largest, work, most_of_key), largest)
    raise InvalidRequest(
        Message(
            "too_much_work_for_key",
            "this request is {work:,g} million pixels × frames × steps; the maximum of all unfinished jobs of an "
            "API key is {most:,g} (KINEMA_KEY_WORK): choose a smaller size, fewer frames or fewer steps",
            work=work,
            most=most_of_key,
        ),
        "num_frames",
    )


def _too_much_finishing(request: VideoRequest, stage: str, work: float, most: float) -> Message:
    """Return the error message for a request that would be allowed without its largest stage after decoding."""
    return Message(
        "too_much_finishing",
        "with {name} {value}, {size} pixels × {frames} frames × {steps} steps are {work:,g} million; the "
        "maximum per request is {most:,g} (KINEMA_MAX_WORK): use {name} 1, or choose a smaller size or fewer frames",
        name=stage,
        value=getattr(request, stage),
        size=_size(request),
        frames=request.num_frames,
        steps=request.num_inference_steps,
        work=work,
        most=most,
    )


def _too_much_finishing_for_key(request: VideoRequest, stage: str, work: float, most: float) -> Message:
    """Return the same for the limit of an API key."""
    return Message(
        "too_much_finishing_for_key",
        "with {name} {value}, this request is {work:,g} million pixels × frames × steps; the maximum of all unfinished "
        "jobs of an API key is {most:,g} (KINEMA_KEY_WORK): use {name} 1, or choose a smaller size or fewer frames",
        name=stage,
        value=getattr(request, stage),
        work=work,
        most=most,
    )


def _too_much_work(request: VideoRequest, work: float, most: float) -> Message:
    """Return the error message for too much work of the model."""
    # Those that the model predicts in each step.
    frames = round(work * 1_000_000 / (request.width * request.height * request.num_inference_steps))
    if frames == request.num_frames:
        return Message(
            "too_much_work",
            "{size} pixels × {frames} frames × {steps} steps is {work:,g} million; the maximum per "
            "request is {most:,g} (KINEMA_MAX_WORK): choose a smaller size, fewer frames or fewer steps",
            size=_size(request),
            frames=frames,
            steps=request.num_inference_steps,
            work=work,
            most=most,
        )
    return Message(
        "too_much_predicted",
        "{size} pixels × {frames} predicted frames × {steps} steps is {work:,g} million; the maximum per "
        "request is {most:,g} (KINEMA_MAX_WORK): choose a smaller size, fewer frames or fewer steps. A loop, a last "
        "image, and the windows of a long video need more predicted frames than the video has",
        size=_size(request),
        frames=frames,
        steps=request.num_inference_steps,
        work=work,
        most=most,
    )


def _size(request: VideoRequest) -> str:
    return f"{request.width}×{request.height}"
