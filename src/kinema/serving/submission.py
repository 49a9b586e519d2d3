"""Validate a request, estimate its duration and submit it to the queue. The API and the page share this.

    submission = prepare(settings, {"seed": "42", "size": "288x160"}, image=data)
    seconds = estimate(queue, submission)
    job = submit(queue, settings, submission, idempotency_key=key)

Nothing here waits for a model. Decoding a large image takes time, so call `prepare` from a thread, not the event loop.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from kinema.errors import ContentRefused, InvalidImage, InvalidRequest
from kinema.jobs import NewJob
from kinema.jobs.batch_schema import KEY_PREFIX
from kinema.jobs.owner_limits import OwnerLimits
from kinema.jobs.worker_devices import count_gpus
from kinema.library import about_last_image, all_warnings, check_last_image, last_image_warnings
from kinema.media.image import inspect_image
from kinema.messages import Message
from kinema.models.catalog import (
    CATALOG,
    IMAGE_MODELS,
    for_image_model,
    parameter_warnings,
    request_for,
)
from kinema.models.video_size import follow_image
from kinema.models.workload import video_workload
from kinema.serving.blocked_words import check_prompt
from kinema.serving.fields import is_set, sent_name, to_parameters
from kinema.serving.work_limits import check_work
from kinema.values import too_long

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from kinema.jobs import Job, Queue
    from kinema.media.image import ImageFacts
    from kinema.settings import Settings
    from kinema.values import VideoRequest, Workload

log = logging.getLogger(__name__)

MAX_TITLE = 10_000  # characters


@dataclass(frozen=True, slots=True)
class Submission:
    """A validated request; `warnings` name parameters that may give a poor video."""

    request: VideoRequest
    image: bytes | None
    title: str | None
    warnings: tuple[Message, ...]
    fingerprint: str
    """SHA-256 of the fields and the images as sent, before defaults are filled in."""
    last_image: bytes | None = None
    """The image at which the video ends; for one that is extended, the file of the video before."""
    extend: str | None = None
    """The id of the video that is extended."""
    extension_workload: Workload | None = None

    @property
    def workload(self) -> Workload:
        """The work of the video; see `kinema.models.workload`."""
        return self.extension_workload or video_workload(self.request, has_last_image=self.last_image is not None)


def prepare(
    settings: Settings,
    fields: Mapping[str, Any],
    image: bytes | None = None,
    inspect: Callable[[bytes], ImageFacts] = inspect_image,
    last_image: bytes | None = None,
) -> Submission:
    """Return a submission from fields with the names of `VideoRequest` or the aliases of `kinema.serving.fields`.

    Values may be strings; None, "" and "null" select the model's default. With an image, the prompt is only the
    title. `inspect` checks the images, after all other checks; the server passes one that can be cancelled. A width or
    height that is not set follows the image.

    Raises:
        InvalidRequest: a field is invalid (`param` is the first one), a model is not offered, or the cost is too high.
        InvalidImage: an image can't be used; `param` is "last_image" for that one.
        ContentRefused: the prompt contains a blocked word, or `inspect` refuses an image; `param` likewise.
    """
    has_last_image = last_image is not None
    request, title, parameters = _check(settings, fields, has_image=image is not None, has_last_image=has_last_image)
    if image is None:
        warnings = parameter_warnings(request)
    else:
        facts = inspect(image)
        request = follow_image(request, facts.size, parameters)
        check_work(settings, request, video_workload(request, has_last_image=has_last_image))
        warnings = all_warnings(facts, request)
    if last_image is not None:
        warnings += last_image_warnings(_inspect_last(last_image, inspect), request)
    given = {name: value for name, value in fields.items() if is_set(value)}
    return Submission(request, image, title, tuple(warnings), _fingerprint(given, image, last_image), last_image)


def _inspect_last(image: bytes, inspect: Callable[[bytes], ImageFacts]) -> ImageFacts:
    try:
        return inspect(image)
    except InvalidImage as error:
        raise InvalidImage(about_last_image(error.args[0]), "last_image") from None
    except ContentRefused as error:
        raise ContentRefused(about_last_image(error.args[0]), "last_image") from None


def check(
    settings: Settings, fields: Mapping[str, Any], *, has_image: bool, has_last_image: bool = False
) -> tuple[VideoRequest, str | None]:
    """Validate fields as `prepare`, without the images; return the request and the title.

    The request of an image has the model's size if none is sent.

    Raises:
        InvalidRequest: as `prepare`.
    """
    request, title, _ = _check(settings, fields, has_image=has_image, has_last_image=has_last_image)
    return request, title


def _check(
    settings: Settings, fields: Mapping[str, Any], *, has_image: bool, has_last_image: bool
) -> tuple[VideoRequest, str | None, dict[str, Any]]:
    """Do the same as `check`, and also return the parameters without the models' defaults."""
    given = {name: value for name, value in fields.items() if is_set(value)}
    check_text(given)
    title = _title(given.pop("prompt", None))
    check_prompt(settings, title)
    if title is not None and not has_image:
        given["prompt"] = title
    if not has_image and title is None:
        raise InvalidRequest(Message("nothing_given", "an image or a prompt is required; send one of them"), "prompt")
    parameters = to_parameters(given, lambda: default_model(settings))
    check_offered(settings, "model", str(parameters["model"]))
    try:
        request = request_for(**parameters)
        if has_last_image:
            check_last_image(request)
    except InvalidRequest as error:
        error.param = sent_name(given, error.param)
        raise
    if request.prompt is not None:
        image_model = request.image_model or default_image_model(settings, request.width, request.height)
        check_offered(settings, "image_model", image_model)
        request = for_image_model(request, image_model)
    check_work(settings, request, video_workload(request, has_last_image=has_last_image))
    return request, title, parameters


def submit(
    queue: Queue,
    settings: Settings,
    submission: Submission,
    *,
    idempotency_key: str | None = None,
    title: str | None = None,
    pinned: bool = False,
    priority: int = 0,
    caller: str = "",
    traceparent: str | None = None,
    webhook_url: str | None = None,
) -> Job:
    """Submit it to the queue and log that; `title` replaces the submission's own, and `caller` names the API key.

    Raises:
        KinemaError: as `Queue.submit`.
    """
    check_text({"title": title})
    job = queue.submit(
        NewJob(
            submission.request,
            image=submission.image,
            last_image=submission.last_image,
            extend=submission.extend,
            workload=submission.workload,
            title=submission.title if title is None else title,
            priority=priority,
            pinned=pinned,
            idempotency_key=idempotency_key,
            fingerprint=submission.fingerprint,
            owner=caller if settings.api_keys else "",
            limits=OwnerLimits(settings.key_waiting_jobs, settings.key_work),
            traceparent=traceparent,
            webhook_url=webhook_url,
        )
    )
    request = job.request
    title_text = f": {job.title!r}" if settings.log_prompts and job.title else ""
    size = f"{request.num_frames} frames, {request.width}×{request.height}, {request.model}"
    log.info("job %s is queued, %s%s", job.id, size, title_text)
    return job


def change(queue: Queue, job_id: str, *, title: str | None, pinned: bool | None) -> Job:
    """Rename, pin or unpin a job; None leaves the value unchanged.

    Raises:
        InvalidRequest: the title is too long or contains invalid characters.
        JobNotFound: there is no job with this id.
    """
    check_text({"title": title})
    if title is not None:
        queue.rename(job_id, title)
    if pinned is not None:
        queue.pin(job_id, pinned=pinned)
    return queue.get(job_id)


def estimate(queue: Queue, submission: Submission) -> float | None:
    """Return the expected run time in seconds, without the wait; None until a job of its model was completed here."""
    has_last_image = submission.last_image is not None
    return queue.estimate(submission.request, workload=submission.workload, has_last_image=has_last_image)


def offered_models(settings: Settings) -> tuple[str, ...]:
    """Return the models that requests may name: those of the catalog and of the settings."""
    return tuple(dict.fromkeys([*CATALOG, *([settings.model] if settings.model else []), *settings.models]))


def offered_image_models(settings: Settings) -> tuple[str, ...]:
    """Return the text-to-image models that requests may name."""
    return tuple(dict.fromkeys([*IMAGE_MODELS, *settings.models]))


def default_model(settings: Settings) -> str:
    """Return the model of a request without one."""
    if settings.model is not None:
        return settings.model
    return "pocket" if _has_no_gpu(settings) else _call_in_subprocess(_default_model, settings)


def default_image_model(settings: Settings, width: int, height: int) -> str:
    """Return the text-to-image model of a request without one, for a video of this size in pixels."""
    if _has_no_gpu(settings):
        return "pocket-t2i"
    return _call_in_subprocess(_default_image_model, settings, (width, height))


def check_offered(settings: Settings, param: str, name: str) -> None:
    """Reject models that are neither in the catalog nor in the settings.

    A client must not choose a folder to read or a repository to download.

    Raises:
        InvalidRequest: it is not offered.
    """
    offered = offered_models(settings) if param == "model" else offered_image_models(settings)
    if name not in offered:
        raise InvalidRequest(
            Message(
                "not_offered",
                "{name} {value!r} is not offered by this server; use one of {offered} (KINEMA_MODELS adds others)",
                name=param,
                value=name,
                offered=", ".join(offered),
            ),
            param,
        )


def check_key(key: str | None) -> None:
    """Check an idempotency key of a client.

    Raises:
        InvalidRequest: it may be the key of a batch's line.
    """
    if key is not None and key.startswith(KEY_PREFIX):
        raise InvalidRequest(
            Message(
                "key_reserved",
                "the idempotency key {key!r} starts with {prefix!r}, which is reserved; use another",
                key=key[:80],
                prefix=KEY_PREFIX,
            ),
            "idempotency_key",
        )


def check_text(given: Mapping[str, Any]) -> None:
    """Reject characters that can't be stored in the database or a file, and a prompt or title that is too long.

    Raises:
        InvalidRequest: naming the field.
    """
    for name, value in given.items():
        for text in (name, value):
            if isinstance(text, str) and ("\0" in text or any("\ud800" <= c <= "\udfff" for c in text)):
                raise InvalidRequest(
                    Message(
                        "no_character",
                        "{name!a} contains an invalid character: {text}; remove it",
                        name=name,
                        text=ascii(text)[:80],
                    ),
                    name,
                )
        if name in ("prompt", "title") and isinstance(value, str) and len(value) > MAX_TITLE:
            raise InvalidRequest(too_long(name, len(value), MAX_TITLE), name)


def _title(prompt: Any) -> str | None:
    if prompt is None:
        return None
    if not isinstance(prompt, str):
        raise InvalidRequest(Message("no_prompt", "prompt must be text, got {value!r}", value=prompt), "prompt")
    return prompt


def _fingerprint(given: Mapping[str, Any], image: bytes | None, last_image: bytes | None) -> str:
    text = json.dumps({name: str(value) for name, value in given.items()}, sort_keys=True)
    image_hash = b"" if image is None else hashlib.sha256(image).digest()
    last_hash = b"" if last_image is None else b"last" + hashlib.sha256(last_image).digest()
    return hashlib.sha256(text.encode() + image_hash + last_hash).hexdigest()


def _has_no_gpu(settings: Settings) -> bool:
    """Return whether no GPU will be used; decided without importing torch."""
    return settings.device in ("cpu", "mps") or (settings.device == "auto" and not count_gpus())


@lru_cache(maxsize=64)
def _call_in_subprocess(function: Callable[..., str], *arguments: Any) -> str:
    """Call a function in a subprocess: querying a GPU keeps hundreds of MB allocated until the process ends."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        return executor.submit(function, *arguments).result()


def _default_model(settings: Settings) -> str:
    from kinema.models import loading

    return loading.default_model(settings)[0]


def _default_image_model(settings: Settings, size: tuple[int, int]) -> str:
    from kinema.models import image_pipeline

    return image_pipeline.default_image_model(size, settings)[0]
