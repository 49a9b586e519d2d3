"""Requests that extend a video of this server: the field `extend` is its id."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from kinema.errors import InvalidRequest, JobNotFound, RecipeError, VideoError
from kinema.extension import extended_recipe_request
from kinema.media.source_video import check_extendable, lengths_of
from kinema.media.video_reader import read_recipe
from kinema.messages import Message
from kinema.models.workload import extension_workload
from kinema.serving.blocked_words import check_prompt
from kinema.serving.fields import is_set
from kinema.serving.submission import Submission, check_offered, check_text
from kinema.serving.work_limits import check_work
from kinema.values import TEXT_TO_IMAGE_FIELDS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from kinema.jobs import Job, Queue
    from kinema.settings import Settings

FIELD = "extend"
# The model may be sent, since clients of other servers require it; the prompt is the title.
_ALLOWED = (FIELD, "seconds", "num_frames", "model", "prompt")


def prepare_extension(queue: Queue, settings: Settings, fields: Mapping[str, Any], *, has_image: bool) -> Submission:
    """Return a submission that extends a video. Its image, model and parameters are those of that video.

    Args:
        queue: Has the video.
        settings: Limits and offered models.
        fields: `extend`, the id; `seconds` or `num_frames` to add.
        has_image: Whether an image was sent, which is an error.

    Raises:
        InvalidRequest: there is no such video, it can't be extended, or another field is sent.
    """
    given = {name: value for name, value in fields.items() if is_set(value)}
    check_text(given)
    for name in [*(["image"] if has_image else []), *given]:
        if name not in _ALLOWED:
            raise InvalidRequest(_not_chosen(name), name)
    check_prompt(settings, str(given["prompt"]) if "prompt" in given else None)
    job = _completed(queue, str(given[FIELD]))
    video, image = _files(queue, job)
    try:
        recipe = read_recipe(video)
        check_extendable(recipe, "the video")
        request = extended_recipe_request(
            recipe, "the video", seconds=given.get("seconds"), num_frames=_integer(given.get("num_frames"))
        )
    except InvalidRequest as error:
        param = FIELD if error.param in (None, "video") else error.param
        raise InvalidRequest(error.args[0], param) from None  # not its text: the page has it in other languages
    except (RecipeError, VideoError):  # their messages have the file's path
        message = Message(
            "extend_unreadable",
            "the video {id} has no recipe that this version of Kinema reads, so that it can't be extended; generate it "
            "again",
            id=job.id,
        )
        raise InvalidRequest(message, FIELD) from None
    request = request.changed(model=job.request.model)  # a recipe has only the last part of a folder
    if given.get("model", request.model) != request.model:
        raise InvalidRequest(_not_chosen("model"), "model")
    check_offered(settings, "model", request.model)
    workload = extension_workload(request, lengths_of(recipe))
    check_work(settings, request, workload)
    source = video.read_bytes()
    title = str(given["prompt"]) if "prompt" in given else job.title
    fingerprint = hashlib.sha256(repr(sorted(given.items())).encode() + source).hexdigest()
    request = request.changed(**dict.fromkeys(TEXT_TO_IMAGE_FIELDS))  # the image exists
    return Submission(
        request, image.read_bytes(), title, (), fingerprint, source, extend=job.id, extension_workload=workload
    )


def _not_chosen(name: str) -> Message:
    return Message(
        "extend_parameter",
        "{name} can't be chosen for a video that is extended: it is that of the video; remove it",
        name=name,
    )


def _completed(queue: Queue, job_id: str) -> Job:
    try:
        job = queue.get(job_id)
    except JobNotFound:
        message = Message("extend_unknown", "there is no video {id!r} to extend; it may have expired", id=job_id[:80])
        raise InvalidRequest(message, FIELD) from None
    if job.status != "completed":
        message = Message(
            "extend_unfinished", "the video {id} is {status}; extend it when it is completed", id=job.id,
            status=job.status,
        )  # fmt: skip
        raise InvalidRequest(message, FIELD)
    return job


def _files(queue: Queue, job: Job) -> tuple[Path, Path]:
    """Return the paths of the video and its image, both of which exist."""
    video, image = queue.result(job.id), queue.image(job.id)
    if image is None or not image.exists() or not video.exists():
        message = Message("extend_unknown", "there is no video {id!r} to extend; it may have expired", id=job.id)
        raise InvalidRequest(message, FIELD)
    return video, image


def _integer(value: Any) -> int | None:
    if value is None:
        return None
    try:
        return int(str(value))
    except ValueError:
        message = f"num_frames {value!r} is not an integer; use the number of frames to add"
        raise InvalidRequest(message, "num_frames") from None
