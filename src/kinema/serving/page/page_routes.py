"""The page's own routes: image uploads, fitted images, job events, previews, videos and recipes."""

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
    ContentRefused,
    CredentialsError,
    InsufficientDisk,
    InvalidImage,
    JobNotFound,
    JobUnfinished,
    KinemaError,
    QueueUnavailable,
    QuotaExceeded,
    RequestTooLarge,
    ServerBusy,
)
from kinema.jobs.job_files import JobFiles, write_atomically
from kinema.media.video_reader import read_recipe
from kinema.serving.client_messages import error_message
from kinema.serving.decode_process import ClientGone
from kinema.serving.image_tasks import fitted, last_frame
from kinema.serving.opened_file import OpenedFile
from kinema.serving.page import job_html
from kinema.serving.page.translations.english import ENGLISH
from kinema.serving.page.translations.languages import LANGUAGES
from kinema.serving.rate_limits import DraftQuota
from kinema.serving.request_parsing import receive_any
from kinema.serving.schemas import error_body, error_response
from kinema.serving.video_variants import VideoVariants
from kinema.values import Fit  # noqa: TC001 - FastAPI reads the annotations

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
    from pathlib import Path

    from kinema.jobs import Job, Queue
    from kinema.media.image import ImageFacts
    from kinema.serving.body_quota import BodyQuota
    from kinema.serving.image_service import ImageService
    from kinema.serving.signed_videos import SignedVideos

MAX_BYTES = 20_000_000
DRAFT_SECONDS = 24 * 3600.0
# The interval of events while a job is unchanged: its ETA and queue position may still change.
REFRESH_SECONDS = 1.0
COOKIE = "kinema_language"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_DRAFT = re.compile(r"\.part-[0-9a-f]+-.+|[0-9a-f]{64}")
_IMMUTABLE = {"Cache-Control": "private, max-age=31536000, immutable"}
_NO_STORE = {"Cache-Control": "no-store"}


_STATUS = {ContentRefused: 422, InvalidImage: 422, InsufficientDisk: 507, ServerBusy: 503, QuotaExceeded: 429}


class Drafts:
    """Uploaded images that are not submitted yet, by the SHA-256 of their bytes. They are deleted after a day.

    They are stored in the data folder and survive reloads of the page and restarts of the server.

    Args:
        data_dir: The data folder.
        reserve_gb: Gigabytes that must stay free there.
        images: The service that checks and decodes images.
        find: Returns the path of the input image of a job by its SHA-256, or None.
    """

    def __init__(
        self,
        data_dir: Path,
        reserve_gb: float,
        images: ImageService,
        find: Callable[[str], Path | None] = lambda _: None,
    ) -> None:
        self.images = images
        self._find = find
        self.bytes = DraftQuota(1_000_000_000)
        self._files = JobFiles(data_dir)
        self._reserve_gb = reserve_gb
        self._root = self._files.drafts
        self._root.mkdir(exist_ok=True, mode=0o700)

    def add(self, data: bytes, gone: Callable[[], bool] = lambda: False) -> str:
        """Check and store an image; return its SHA-256. `gone` returns whether the client disconnected.

        Raises:
            InvalidImage: The bytes are not a usable image.
            ContentRefused: The safety check refuses the image.
            InsufficientDisk: Free disk space is below the reserve.
        """
        self.images.inspect(data, gone)
        self._files.check_free_space(self._reserve_gb)
        self._sweep()
        sha256 = hashlib.sha256(data).hexdigest()
        write_atomically(self._root / sha256, data)
        return sha256

    def add_last_frame(self, video: Path) -> str:
        """Store the last frame of a video as an image; return its SHA-256.

        Raises:
            VideoError: The video can't be decoded.
            InsufficientDisk: Free disk space is below the reserve.
        """
        return self.add(self.images.process.run(last_frame, video))

    def read(self, sha256: str) -> bytes | None:
        """Return the bytes of a draft or of a job's input image; None if there is neither."""
        if not _SHA256.fullmatch(sha256):
            return None
        with contextlib.suppress(FileNotFoundError):
            return (self._root / sha256).read_bytes()
        with contextlib.suppress(FileNotFoundError, QueueUnavailable):
            path = self._find(sha256)
            return None if path is None else path.read_bytes()
        return None

    def inspect(self, data: bytes) -> ImageFacts:
        """Check an image's bytes and return its facts.

        Raises:
            InvalidImage: The bytes are not a usable image.
        """
        return self.images.inspect(data, lambda: False)

    def size(self, sha256: str) -> tuple[int, int] | None:
        """Return the upright size of a stored image, by its SHA-256; None if there is no such image."""
        data = self.read(sha256)
        return None if data is None else self.inspect(data).size

    def fitted(
        self, sha256: str, width: int, height: int, fit: Fit, crop_position: float, gone: Callable[[], bool]
    ) -> bytes | None:
        """Return an image as the engine fits it, as JPEG; None if it is not stored."""
        data = self.read(sha256)
        if data is None:
            return None
        return self.images.process.run(fitted, data, width, height, fit, crop_position, gone=gone)

    def _sweep(self) -> None:
        """Delete drafts and partial files older than DRAFT_SECONDS. Partial files may be left from a crash."""
        oldest = time.time() - DRAFT_SECONDS
        for path in self._root.iterdir():
            if not _DRAFT.fullmatch(path.name):
                continue  # not a draft
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < oldest:
                    path.unlink()


def routes(
    queue: Queue, drafts: Drafts, bodies: BodyQuota, stopping: Callable[[], bool], signed: SignedVideos | None = None
) -> APIRouter:
    """Return the router of all routes under /studio that are not Gradio's."""
    router = APIRouter(prefix="/studio", include_in_schema=False)
    _add_images(router, drafts, bodies)
    _add_jobs(router, queue, drafts.images, stopping, signed)

    @router.get("")
    @router.get("/")
    def studio(request: Request) -> Response:
        """Redirect to the page in the chosen language, else in the browser's."""
        query = f"?{request.url.query}" if request.url.query else ""
        name = request.url.path.rstrip("/").rsplit("/", 1)[-1]
        return RedirectResponse(f"{'' if request.url.path.endswith('/') else name + '/'}{language_of(request)}/{query}")

    return router


def _add_images(router: APIRouter, drafts: Drafts, bodies: BodyQuota) -> None:
    @router.post("/images")
    async def add_image(request: Request, language: str = ENGLISH.language) -> Response:
        """Store an uploaded image, unchanged; the body is the image file."""
        labels = LANGUAGES.get(language, ENGLISH)
        try:
            with closing(await receive_any(request, bodies, max_bytes=MAX_BYTES)) as body:
                drafts.bytes.check(request.scope, body.size)
                sha256 = await drafts.images.uploads(body.size).run(
                    lambda gone: drafts.add(body.file.read(), gone), request
                )
        except RequestTooLarge:
            return _error(413, "request_too_large", labels.too_large, labels.language)
        except ClientGone:
            return Response(status_code=499)
        except (ContentRefused, InvalidImage, InsufficientDisk, ServerBusy, QuotaExceeded) as error:
            message = error_message(error)
            translation = labels.translate(message)
            status = next(status for kind, status in _STATUS.items() if isinstance(error, kind))
            language = labels.language if translation else "en"
            response = _error(status, error.code, translation or message, language)
            if status in (429, 503):
                response.headers["Retry-After"] = error_response(error)[2]["Retry-After"]
            return response
        return JSONResponse({"image": sha256})

    @router.get("/images/{sha256}")
    async def fitted(
        request: Request,
        sha256: str,
        width: Annotated[int, Query(ge=64, le=2048)],
        height: Annotated[int, Query(ge=64, le=2048)],
        fit: Fit = "crop",
        crop_position: Annotated[float, Query(ge=0, le=1)] = 0.5,
    ) -> Response:
        """Return an image as the engine fits it."""
        with _http_image_errors():
            data = await drafts.images.images.run(
                lambda gone: drafts.fitted(sha256, width, height, fit, crop_position, gone), request
            )
        if data is None:
            raise HTTPException(404)
        return Response(data, media_type="image/jpeg", headers=_IMMUTABLE)


def _add_jobs(
    router: APIRouter, queue: Queue, images: ImageService, stopping: Callable[[], bool], signed: SignedVideos | None
) -> None:
    variants = VideoVariants()

    @router.get("/jobs/{job_id}/events")
    async def events(job_id: str, language: str = ENGLISH.language) -> StreamingResponse:
        """Stream the panel's HTML as server-sent events at each change of the job. Browsers reconnect by themselves."""
        labels = LANGUAGES.get(language, ENGLISH)

        async def stream() -> AsyncIterator[str]:
            yield "retry: 1000\n\n"
            async for job in _job_updates(queue, job_id, stopping):
                html = job_html.empty_panel(labels) if job is None else job_html.panel(job, labels)
                yield f"data: {json.dumps({'html': html, 'finished': job is None or job.finished})}\n\n"

        return StreamingResponse(stream(), media_type="text/event-stream", headers=_NO_STORE)

    @router.get("/jobs/{job_id}/preview.jpg")
    def preview(job_id: str) -> Response:
        """Return the latest preview of the unfinished video."""
        with _http_job_errors():
            image = queue.preview(job_id)
        if image is None:
            raise HTTPException(404)
        return Response(image, media_type="image/jpeg", headers=_NO_STORE)

    @router.get("/jobs/{job_id}/video.mp4")
    async def video(request: Request, job_id: str) -> Response:
        """Return the video, signed; range requests are supported."""
        with _http_job_errors(), _http_image_errors():
            path = await asyncio.to_thread(queue.result, job_id)
            if signed is not None:
                path = await signed.file(queue, request, job_id, path)
            return OpenedFile(path, media_type="video/mp4", headers=_IMMUTABLE)

    @router.get("/jobs/{job_id}/thumbnail.webp")
    async def thumbnail(request: Request, job_id: str) -> Response:
        """Return a frame of the video."""
        with _http_job_errors(), _http_image_errors():
            path, kind = await variants.file(queue, images, request, job_id, "thumbnail")
        return OpenedFile(path, media_type=kind, headers=_IMMUTABLE)

    @router.get("/jobs/{job_id}/recipe.json")
    def recipe(job_id: str) -> Response:
        """Return the recipe stored in the video file."""
        with _http_job_errors():
            text = read_recipe(queue.result(job_id)).model_dump_json(indent=2)
        return Response(text, media_type="application/json", headers=_NO_STORE)


def _error(status: int, code: str, message: str, language: str) -> JSONResponse:
    """Return an error response; `language` is the language of the message."""
    return JSONResponse(error_body(status, code, message), status, headers={"Content-Language": language})


def language_of(request: Request) -> str:
    """Return the language of the cookie, else the browser's first supported one, else English."""
    chosen = request.cookies.get(COOKIE, "")
    if chosen in LANGUAGES:
        return chosen
    for tag in request.headers.get("accept-language", "").split(","):
        if (language := tag.split(";")[0].split("-")[0].strip().lower()) in LANGUAGES:
            return language
    return ENGLISH.language


@contextlib.contextmanager
def _http_image_errors() -> Iterator[None]:
    """Translate ClientGone to 499 and ServerBusy to 503."""
    try:
        yield
    except ClientGone:
        raise HTTPException(499) from None
    except ServerBusy as error:
        raise HTTPException(503, str(error), {"Retry-After": "5"}) from None


@contextlib.contextmanager
def _http_job_errors() -> Iterator[None]:
    """Translate JobUnfinished to 409, errors of signing to 500, of the queue or disk to 503 or 507, others to 404."""
    try:
        yield
    except JobUnfinished as error:
        raise HTTPException(409, error_message(error)) from None
    except QueueUnavailable as error:
        raise HTTPException(503, error_message(error), {"Retry-After": "5"}) from None
    except (CredentialsError, InsufficientDisk) as error:
        status, body, _ = error_response(error)
        raise HTTPException(status, body["error"]["message"]) from None
    except KinemaError as error:  # unknown job, missing file, or a file without a recipe
        raise HTTPException(404, error_message(error)) from None


async def _job_updates(queue: Queue, job_id: str, stopping: Callable[[], bool]) -> AsyncGenerator[Job | None]:
    """Yield the job at each change and at least every REFRESH_SECONDS; None if it was deleted."""
    updates = queue.subscribe_async(job_id)
    change = asyncio.ensure_future(_next(updates))
    try:
        while not stopping():
            await asyncio.wait({change}, timeout=REFRESH_SECONDS)
            if change.done():
                job = change.result()
                change = asyncio.ensure_future(_next(updates))
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


async def _next(updates: AsyncIterator[Job]) -> Job | None:
    return await anext(updates, None)
