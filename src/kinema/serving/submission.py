"""What every face does with what it was given: check it whole, say what it will take, hand it to the queue.

    submission = prepare(settings, {"seed": "42", "size": "288x160"}, still=data)
    seconds = estimate(queue, submission)
    job = submit(queue, settings, submission, idempotency_key=key)

Nothing here waits for a model; a still of many pixels takes a moment to be read, so event loops call `prepare` in a
thread.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from kinema.errors import InvalidRequest
from kinema.jobs.worker_pool import count_gpus
from kinema.library import all_warnings
from kinema.media.image import inspect_image
from kinema.messages import Message
from kinema.models.catalog import CATALOG, IMAGE_MODELS, for_image_model, parameter_warnings, request_for
from kinema.serving.fields import is_set, sent_name, to_parameters
from kinema.values import too_long

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from kinema.jobs import Job, Queue
    from kinema.media.image import ImageFacts
    from kinema.settings import Settings
    from kinema.values import VideoRequest

log = logging.getLogger(__name__)

MILLION = 1_000_000
MAX_TITLE = 10_000  # characters


@dataclass(frozen=True, slots=True)
class Submission:
    """What was asked, found to be usable; cautions say what may not come out as hoped."""

    request: VideoRequest
    image: bytes | None
    title: str | None
    warnings: tuple[Message, ...]
    fingerprint: str
    """Of what was asked, whatever was drawn or filled in for it."""


def prepare(
    settings: Settings,
    fields: Mapping[str, Any],
    image: bytes | None = None,
    inspect: Callable[[bytes], ImageFacts] = inspect_image,
) -> Submission:
    """A submission from loose fields, by `VideoRequest`'s names or those of `kinema.serving.fields`.

    Values may be strings; None, "" and "null" leave a setting to the model's own default. Where there is a still,
    the prompt is only the title. `inspect` checks the still, last of all: a server does that where it can be stopped.

    Raises:
        InvalidRequest: naming the first field that is wrong; a model that is not offered; too much work.
        InvalidImage: where the still is no usable picture.
    """
    given = {name: value for name, value in fields.items() if is_set(value)}
    _check_text(given)
    fingerprint = _fingerprint(given, image)
    title = _title(given.pop("prompt", None))
    if title is not None and image is None:
        given["prompt"] = title
    if image is None and title is None:
        raise InvalidRequest(
            Message("nothing_given", "neither a still nor a prompt is given: give one of them"), "prompt"
        )
    wanted = to_parameters(given, lambda: default_model(settings))
    _check_offered(settings, "model", str(wanted["model"]))
    try:
        request = request_for(**wanted)
    except InvalidRequest as error:
        error.param = sent_name(given, error.param)
        raise
    if request.prompt is not None:
        image_model = request.image_model or default_image_model(settings, request.width, request.height)
        _check_offered(settings, "image_model", image_model)
        request = for_image_model(request, image_model)
    _check_work(settings, request)
    told = parameter_warnings(request) if image is None else all_warnings(inspect(image), request)
    return Submission(request, image, title, tuple(told), fingerprint)


def submit(
    queue: Queue,
    settings: Settings,
    submission: Submission,
    *,
    idempotency_key: str | None = None,
    title: str | None = None,
    pinned: bool = False,
    priority: int = 0,
) -> Job:
    """Hand it to the queue, and note that in the log; `title` replaces the submission's own.

    Raises:
        InvalidRequest, QueueFull, InsufficientDisk, KeyReused, QueueUnavailable: as `Queue.submit`.
    """
    _check_text({"title": title})
    job = queue.submit(
        submission.request,
        image=submission.image,
        title=submission.title if title is None else title,
        priority=priority,
        pinned=pinned,
        idempotency_key=idempotency_key,
        fingerprint=submission.fingerprint,
    )
    request = job.request
    words = f": {job.title!r}" if settings.log_prompts and job.title else ""  # only where the operator wants them
    size = f"{request.num_frames} frames of {request.width}×{request.height} by {request.model}"
    log.info("job %s is queued, %s%s", job.id, size, words)
    return job


def change(queue: Queue, job_id: str, *, title: str | None, pinned: bool | None) -> Job:
    """Give a job another title, or pin it, or no longer; None leaves either as it is.

    Raises:
        InvalidRequest: where no file or database would keep the title.
        JobNotFound: where there is no job with this id.
    """
    _check_text({"title": title})
    if title is not None:
        queue.rename(job_id, title)
    if pinned is not None:
        queue.pin(job_id, pinned=pinned)
    return queue.get(job_id)


def estimate(queue: Queue, submission: Submission) -> float | None:
    """Seconds that it should take here once it is its turn; None while no job of its model was completed here."""
    return queue.estimate(submission.request)


def compute_cost(request: VideoRequest) -> float:
    """How much a request asks for, in millions of pixels × frames × steps."""
    return request.width * request.height * request.num_frames * request.num_inference_steps / MILLION


def offered_models(settings: Settings) -> tuple[str, ...]:
    """The models that requests may name: the catalog's, and what the settings add."""
    return tuple(dict.fromkeys([*CATALOG, *([settings.model] if settings.model else []), *settings.models]))


def offered_image_models(settings: Settings) -> tuple[str, ...]:
    """The painters that requests may name."""
    return tuple(dict.fromkeys([*IMAGE_MODELS, *settings.models]))


def default_model(settings: Settings) -> str:
    """The model of a request that names none."""
    if settings.model is not None:
        return settings.model
    return "pocket" if _without_gpu(settings) else _asked_apart(_default_model, settings)


def default_image_model(settings: Settings, width: int, height: int) -> str:
    """The painter of a prompt for which none is named, at this size of the video in pixels."""
    if _without_gpu(settings):
        return "pocket-t2i"
    return _asked_apart(_default_image_model, settings, (width, height))


def _check_offered(settings: Settings, param: str, name: str) -> None:
    """Refuse what the operator has not chosen: a client must not make a server read folders or fetch weights."""
    offered = offered_models(settings) if param == "model" else offered_image_models(settings)
    if name not in offered:
        raise InvalidRequest(
            Message(
                "not_offered",
                "{name} {value!r} is not offered here; {offered} are (KINEMA_MODELS adds others)",
                name=param,
                value=name,
                offered=", ".join(offered),
            ),
            param,
        )


def _check_work(settings: Settings, request: VideoRequest) -> None:
    work = compute_cost(request)
    if work > settings.max_work:
        raise InvalidRequest(
            Message(
                "too_much_work",
                "{width}×{height} pixels × {frames} frames × {steps} steps is {work:,.0f} million, and one request may "
                "ask for {most:,.0f} (KINEMA_MAX_WORK): take a smaller size, fewer frames or fewer steps",
                width=request.width,
                height=request.height,
                frames=request.num_frames,
                steps=request.num_inference_steps,
                work=work,
                most=settings.max_work,
            ),
            "num_frames",
        )


def _check_text(given: Mapping[str, Any]) -> None:
    """Refuse characters that no database and no file keeps, and words that a title would be too long for."""
    for name, value in given.items():
        for text in (name, value):
            if isinstance(text, str) and ("\0" in text or any("\ud800" <= c <= "\udfff" for c in text)):
                raise InvalidRequest(
                    Message(
                        "no_character",
                        "{name!a} holds what is no character: {text}; write it anew",
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
        raise InvalidRequest(Message("no_prompt", "prompt {value!r} is no sentence", value=prompt), "prompt")
    return prompt


def _fingerprint(given: Mapping[str, Any], image: bytes | None) -> str:
    asked = json.dumps({name: str(value) for name, value in given.items()}, sort_keys=True)
    image = b"" if image is None else hashlib.sha256(image).digest()
    return hashlib.sha256(asked.encode() + image).hexdigest()


def _without_gpu(settings: Settings) -> bool:
    """Whether it is plain, without loading torch, that no GPU will do the work."""
    return settings.device in ("cpu", "mps") or (settings.device == "auto" and not count_gpus())


@lru_cache(maxsize=64)
def _asked_apart(question: Callable[..., str], *given: Any) -> str:
    """The answer of another process: who asks what fits on a GPU takes hundreds of megabytes there until it ends."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as other:
        return other.submit(question, *given).result()


def _default_model(settings: Settings) -> str:
    from kinema.models import loading

    return loading.default_model(settings)[0]


def _default_image_model(settings: Settings, size: tuple[int, int]) -> str:
    from kinema.models import image_pipeline

    return image_pipeline.default_image_model(size, settings)[0]
