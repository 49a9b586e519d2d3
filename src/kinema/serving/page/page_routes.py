"""What the page's own elements fetch: stills and how they are fitted, a job as it goes, previews, videos, recipes."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import re
import time
from contextlib import closing
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, HTTPException, Query, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response, StreamingResponse

from kinema.errors import (
    AllowanceUsedUp,
    InsufficientDisk,
    InvalidImage,
    JobNotFound,
    JobUnfinished,
    KinemaError,
    RequestTooLarge,
    ServerBusy,
)
from kinema.jobs.job_files import JobFiles, write
from kinema.media.video_reader import read_recipe
from kinema.serving.client_messages import refusal_message
from kinema.serving.decode_process import ClientGone
from kinema.serving.image_tasks import fitted
from kinema.serving.opened_file import OpenedFile
from kinema.serving.page import job_html
from kinema.serving.page.translations.english import ENGLISH
from kinema.serving.page.translations.languages import LANGUAGES
from kinema.serving.rate_limits import DraftBytes
from kinema.serving.request_parsing import received
from kinema.serving.schemas import error_body, refusal
from kinema.serving.video_variants import VideoVariants
from kinema.values import Fit  # noqa: TC001 - FastAPI reads the annotations

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
    from pathlib import Path

    from kinema.jobs import Job, Queue
    from kinema.media.image import ImageFacts
    from kinema.serving.body_quota import BodyQuota
    from kinema.serving.image_service import ImageService

MAX_BYTES = 20_000_000
DRAFT_SECONDS = 24 * 3600.0
# A watched job is told so often even where nothing changed: its time left runs on, and its place may.
TELL_SECONDS = 1.0
COOKIE = "kinema_language"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_DRAFT = re.compile(r"\.part-[0-9a-f]+-.+|[0-9a-f]{64}")
_FOR_EVER = {"Cache-Control": "private, max-age=31536000, immutable"}
_NEVER = {"Cache-Control": "no-store"}


_STATUS = {InvalidImage: 422, InsufficientDisk: 507, ServerBusy: 503, AllowanceUsedUp: 429}


class Drafts:
    """Stills that were given but not submitted yet, by the SHA-256 of their bytes; a day later they are gone.

    They lie in the data folder, so that neither a reload nor a restart of the server loses what a person chose.
    """

    def __init__(self, data_dir: Path, reserve_gb: float, images: ImageService) -> None:
        self.images = images
        self.bytes = DraftBytes(1_000_000_000)
        self._files = JobFiles(data_dir)
        self._reserve_gb = reserve_gb
        self._root = self._files.drafts
        self._root.mkdir(exist_ok=True, mode=0o700)

    def add(self, data: bytes, gone: Callable[[], bool] = lambda: False) -> str:
        """Keep a still's bytes; `gone` is asked whether that is still wanted.

        Raises:
            InvalidImage: where they are no usable picture.
            InsufficientDisk: less is free than must be.
        """
        self.images.inspect(data, gone)
        self._files.check_room(self._reserve_gb)
        self._sweep()
        sha256 = hashlib.sha256(data).hexdigest()
        write(self._root / sha256, data)
        return sha256

    def read(self, sha256: str) -> bytes | None:
        """A draft's bytes, or those of a job's still; None where there is neither."""
        if not _SHA256.fullmatch(sha256):
            return None
        for folder in (self._root, self._files.images):
            with contextlib.suppress(FileNotFoundError):
                return (folder / sha256).read_bytes()
        return None

    def inspect(self, data: bytes) -> ImageFacts:
        """Check a picture's bytes.

        Raises:
            InvalidImage: where they are no usable picture.
        """
        return self.images.inspect(data, lambda: False)

    def size(self, sha256: str) -> tuple[int, int] | None:
        """The same picture's width and height, upright."""
        data = self.read(sha256)
        return None if data is None else self.inspect(data).size

    def fitted(self, sha256: str, width: int, height: int, fit: Fit, gone: Callable[[], bool]) -> bytes | None:
        """The same picture as the engine fits it, as JPEG."""
        data = self.read(sha256)
        return None if data is None else self.images.process.run(fitted, data, width, height, fit, gone=gone)

    def _sweep(self) -> None:
        """Delete old drafts, and what was half-written when a server died; what is being written now is younger."""
        oldest = time.time() - DRAFT_SECONDS
        for path in self._root.iterdir():
            if not _DRAFT.fullmatch(path.name):
                continue  # not Kinema's
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < oldest:
                    path.unlink()


def routes(queue: Queue, drafts: Drafts, bodies: BodyQuota, stopping: Callable[[], bool]) -> APIRouter:
    """Everything beneath /studio that is not Gradio's."""
    router = APIRouter(prefix="/studio", include_in_schema=False)
    _add_images(router, drafts, bodies)
    _add_jobs(router, queue, drafts.images, stopping)

    @router.get("")
    @router.get("/")
    def studio(request: Request) -> Response:
        """To the page in the browser's language, or the one that was chosen."""
        query = f"?{request.url.query}" if request.url.query else ""
        here = request.url.path.rstrip("/").rsplit("/", 1)[-1]
        return RedirectResponse(f"{'' if request.url.path.endswith('/') else here + '/'}{_language(request)}/{query}")

    return router


def _add_images(router: APIRouter, drafts: Drafts, bodies: BodyQuota) -> None:
    @router.post("/images")
    async def add_image(request: Request, language: str = ENGLISH.language) -> Response:
        """Keep what was dropped, pasted or chosen: the picture's bytes as they are."""
        words = LANGUAGES.get(language, ENGLISH)
        try:
            with closing(await received(request, bodies, most=MAX_BYTES)) as body:
                drafts.bytes.check(request.scope, body.size)
                sha256 = await drafts.images.uploads(body.size).run(
                    lambda gone: drafts.add(body.file.read(), gone), request
                )
        except RequestTooLarge:
            return _fault(413, "request_too_large", words.too_large, words.language)
        except ClientGone:
            return Response(status_code=499)  # no one reads it
        except (InvalidImage, InsufficientDisk, ServerBusy, AllowanceUsedUp) as fault:
            message = refusal_message(fault)
            said = words.said(message)
            status = next(status for kind, status in _STATUS.items() if isinstance(fault, kind))
            answer = _fault(status, fault.code, said or message, words.language if said else "en")
            if status in (429, 503):
                answer.headers["Retry-After"] = refusal(fault)[2]["Retry-After"]
            return answer
        return JSONResponse({"image": sha256})

    @router.get("/images/{sha256}")
    async def fitted(
        request: Request,
        sha256: str,
        width: Annotated[int, Query(ge=64, le=2048)],
        height: Annotated[int, Query(ge=64, le=2048)],
        fit: Fit = "crop",
    ) -> Response:
        """A still as the engine fits it."""
        with _wanted():
            data = await drafts.images.images.run(lambda gone: drafts.fitted(sha256, width, height, fit, gone), request)
        if data is None:
            raise HTTPException(404)
        return Response(data, media_type="image/jpeg", headers=_FOR_EVER)


def _add_jobs(router: APIRouter, queue: Queue, images: ImageService, stopping: Callable[[], bool]) -> None:
    variants = VideoVariants()

    @router.get("/jobs/{job_id}/events")
    async def events(job_id: str, language: str = ENGLISH.language) -> StreamingResponse:
        """The panel, whenever the job changes: server-sent events, to which browsers connect again by themselves."""
        words = LANGUAGES.get(language, ENGLISH)

        async def told() -> AsyncIterator[str]:
            yield "retry: 1000\n\n"
            async for job in _watched(queue, job_id, stopping):
                html = job_html.nothing(words) if job is None else job_html.panel(job, words)
                yield f"data: {json.dumps({'html': html, 'finished': job is None or job.finished})}\n\n"

        return StreamingResponse(told(), media_type="text/event-stream", headers=_NEVER)

    @router.get("/jobs/{job_id}/preview.jpg")
    def preview(job_id: str) -> Response:
        """How far the video is."""
        with _found():
            image = queue.preview(job_id)
        if image is None:
            raise HTTPException(404)
        return Response(image, media_type="image/jpeg", headers=_NEVER)

    @router.get("/jobs/{job_id}/video.mp4")
    def video(job_id: str) -> Response:
        """The result, by ranges too."""
        with _found():
            return OpenedFile(queue.result(job_id), media_type="video/mp4", headers=_FOR_EVER)

    @router.get("/jobs/{job_id}/thumbnail.webp")
    async def thumbnail(request: Request, job_id: str) -> Response:
        """A frame of the result."""
        with _found(), _wanted():
            path, kind = await variants.file(queue, images, request, job_id, "thumbnail")
        return OpenedFile(path, media_type=kind, headers=_FOR_EVER)

    @router.get("/jobs/{job_id}/recipe.json")
    def recipe(job_id: str) -> Response:
        """How the result was made: what lies within its file."""
        with _found():
            text = read_recipe(queue.result(job_id)).model_dump_json(indent=2)
        return Response(text, media_type="application/json", headers=_NEVER)


def _fault(status: int, code: str, message: str, language: str) -> JSONResponse:
    """Why an image is refused, in the language that the header names."""
    return JSONResponse(error_body(status, code, message), status, headers={"Content-Language": language})


def _language(request: Request) -> str:
    """The chosen language, else the first of the browser's that is known here."""
    chosen = request.cookies.get(COOKIE, "")
    if chosen in LANGUAGES:
        return chosen
    for wanted in request.headers.get("accept-language", "").split(","):
        if (language := wanted.split(";")[0].split("-")[0].strip().lower()) in LANGUAGES:
            return language
    return ENGLISH.language


@contextlib.contextmanager
def _wanted() -> Iterator[None]:
    """Where the browser has gone, or too many ask, nothing is made."""
    try:
        yield
    except ClientGone:
        raise HTTPException(499) from None  # no one reads it
    except ServerBusy as error:
        raise HTTPException(503, str(error), {"Retry-After": "5"}) from None


@contextlib.contextmanager
def _found() -> Iterator[None]:
    """Where there is no such job, or no such file of it, the browser is told so."""
    try:
        yield
    except JobUnfinished as error:
        raise HTTPException(409, refusal_message(error)) from None
    except KinemaError as error:  # no such job, or a file that is gone or holds no recipe
        raise HTTPException(404, refusal_message(error)) from None


async def _watched(queue: Queue, job_id: str, stopping: Callable[[], bool]) -> AsyncGenerator[Job | None]:
    """The job at each change, and now and then between; None when it is gone."""
    watching = queue.watch_async(job_id)
    change = asyncio.ensure_future(_next(watching))
    try:
        while not stopping():
            await asyncio.wait({change}, timeout=TELL_SECONDS)
            if change.done():
                job = change.result()
                change = asyncio.ensure_future(_next(watching))
            else:
                job = await asyncio.to_thread(queue.get, job_id)
            yield job
            if job is None or job.finished:
                return
    except JobNotFound:
        yield None
    finally:
        change.cancel()
        await asyncio.gather(change, return_exceptions=True)


async def _next(watching: AsyncIterator[Job]) -> Job | None:
    return await anext(watching, None)
