"""/v1/videos: the shape that open video servers share, and what of ours has no place in it."""

from __future__ import annotations

import asyncio
import re
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import quote

from fastapi import FastAPI, Header, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException

from kinema.errors import InvalidImage, InvalidRequest, JobNotFound, KinemaError
from kinema.models.catalog import CATALOG, IMAGE_MODELS
from kinema.serving import openapi, schemas
from kinema.serving.bounded_pool import client_gone
from kinema.serving.connections import interim_sender
from kinema.serving.decode_process import ClientGone
from kinema.serving.events import Events
from kinema.serving.fields import is_set
from kinema.serving.lifespan import ServerState, server_state
from kinema.serving.opened_file import OpenedFile
from kinema.serving.request_parsing import Body, ParsedRequest, UnreadableBody, fetched, receive
from kinema.serving.submission import Submission, change, default_model, offered_models, prepare, submit
from kinema.serving.video_variants import Variant, VideoVariants
from kinema.version import own_version

if TYPE_CHECKING:
    from collections.abc import Callable

    from kinema.jobs import Job


POLL_HEADER = "openai-poll-after-ms"
# Of many bodies at once each is parsed in its turn of the event loop, and others get theirs in between.
_PARSING = asyncio.Lock()
_ID = re.compile(r"video_[0-9a-f]{32}")
_Key = Annotated[str | None, Header(alias="Idempotency-Key", description="The same key gives the same video.")]
_After = Annotated[str | None, Query(description="The last id of the page before.")]
_Limit = Annotated[int, Query(ge=1, le=100)]


def make_app() -> FastAPI:
    """The app; whoever serves it puts a `ServerState` into its `state.server`."""
    app = FastAPI(
        title="Kinema",
        version=own_version(),
        description="A still image, or a sentence, becomes a short video with Stable Video Diffusion.",
        openapi_url="/v1/openapi.json",
        docs_url=None,  # its pages ask other machines for scripts
        redoc_url=None,
    )
    app.state.server = None
    app.state.events = Events()
    app.state.variants = VideoVariants()
    _refuse_in_one_shape(app)
    _add_making(app)
    _add_looking(app)
    _add_changing(app)
    _add_figures(app)
    return app


def _refuse_in_one_shape(app: FastAPI) -> None:
    @app.exception_handler(KinemaError)
    async def _refused(_: Request, error: KinemaError) -> JSONResponse:
        return answer_to(error)

    @app.exception_handler(RequestValidationError)
    async def _invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        fault = error.errors()[0]
        name = str(fault["loc"][-1])
        return answer_to(InvalidRequest(f"{name} {fault.get('input')!r} is not usable: {fault['msg'].lower()}", name))

    @app.exception_handler(ClientGone)
    async def _unheard(_: Request, __: ClientGone) -> Response:
        return Response(status_code=499)  # no one reads it

    @app.exception_handler(HTTPException)
    async def _other(_: Request, error: HTTPException) -> JSONResponse:
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
        body = schemas.error_body(error.status_code, code, str(error.detail))
        return JSONResponse(body, error.status_code, headers=error.headers)


def answer_to(error: KinemaError) -> JSONResponse:
    """An error as it goes over the wire."""
    status, body, headers = schemas.error_response(error)
    if isinstance(error, UnreadableBody):
        status = 415
    return JSONResponse(body, status, headers=headers)


async def accept(
    state: ServerState, request: Request, body: Body, key: str | None, *, waits: bool = False, image_only: bool = False
) -> tuple[Job, Submission, ParsedRequest]:
    """Check what was asked, and queue it; a call that waits first looks for the job of a caller that was cut off.

    The body is closed. `image_only` asks for an image, or a prompt, in the words of a face that is called with images.

    Raises:
        KinemaError: one of its kinds, nothing being queued.
        ClientGone: the client of `request` closed its connection before.
    """
    asked: ParsedRequest | None = None

    def work(gone: Callable[[], bool]) -> tuple[Job, Submission, ParsedRequest]:
        with closing(body):
            given = body.asked() if asked is None else asked
        if image_only and given.image is None and not is_set(given.fields.get("prompt")):
            raise InvalidRequest("no image is given; send a JPEG, PNG or WebP file as image", "image")
        try:
            data = fetched(state.settings, given.image, gone)
            submission = prepare(state.settings, given.fields, data, lambda data: state.images.inspect(data, gone))
        except InvalidImage as error:
            error.param = given.image_field
            raise
        given = replace(given, image=None)  # it is in the submission
        if waits and key is None and (job := state.abandoned.take(submission.fingerprint)):
            return job, submission, given
        if given.pinned:
            state.pins.check(request.scope)
        job = submit(
            state.queue,
            state.settings,
            submission,
            idempotency_key=key,
            title=given.title,
            pinned=given.pinned,
            priority=given.priority,
        )
        return job, replace(submission, image=None), given

    try:
        state.check_open()
        if body.small:
            async with _PARSING:
                asked = body.asked()
                await asyncio.sleep(0)
            if asked.image is None:
                return await asyncio.to_thread(work, lambda: False)
            if isinstance(asked.image, str):
                return await state.images.addresses.run(work, request)
        return await state.images.uploads(body.size).run(work, request)
    except BaseException:
        body.close()
        raise


async def wait_for(state: ServerState, request: Request, job: Job, fingerprint: str, *, keep: bool) -> Response:
    """The finished video, or why there is none. A client that goes takes its job along, unless it is to be kept.

    While the job goes on, interim responses keep the client from giving up. One to which none can be sent may have
    given up against its will: its job waits a while for the same request.
    """
    every = state.settings.interim_seconds
    send_interim = interim_sender(request.scope) if every else None
    waiting, leaving = asyncio.ensure_future(state.finished(job)), asyncio.ensure_future(client_gone(request))
    try:
        while not waiting.done():
            done, _ = await asyncio.wait({waiting, leaving}, timeout=every or None, return_when=asyncio.FIRST_COMPLETED)
            if leaving in done and not waiting.done():
                if not keep and send_interim is None:
                    state.abandoned.add(job.id, fingerprint)
                elif not keep:
                    await asyncio.to_thread(state.queue.cancel, job.id)
                return Response(status_code=499)
            if not done and send_interim is not None:
                send_interim()
    finally:
        waiting.cancel()
        leaving.cancel()
    finished = waiting.result()
    if finished is None:
        raise JobNotFound(f"{job.id} was deleted before it was made")
    if finished.status == "failed":
        status, body, headers = schemas.failure_response(finished.error)
        return JSONResponse(body, status, headers=headers | video_headers(finished))
    path = await asyncio.to_thread(state.queue.result, job.id)
    return OpenedFile(path, media_type="video/mp4", filename=f"{job.id}.mp4", headers=video_headers(finished))


def video_headers(job: Job) -> dict[str, str]:
    """What a file can't say: which job it was, and the seed that makes it again; a model's name as in an address."""
    model = quote(job.request.model, safe="/@:+ ")
    return {"X-Kinema-Job": job.id, "X-Kinema-Seed": str(job.request.seed), "X-Kinema-Model": model}


def _add_making(app: FastAPI) -> None:
    refusals = openapi.errors(400, 409, 413, 415, 429, 507)

    @app.post(
        "/v1/videos",
        response_model=schemas.VideoObject,
        response_model_exclude_none=False,
        responses=refusals,
        openapi_extra=openapi.body(),
        tags=["videos"],
    )
    async def create(request: Request, key: _Key = None) -> Response:
        """Ask for a video; it is made in its turn."""
        state = server_state(app)
        job, submission, _ = await accept(state, request, await receive(request, state.bodies), key)
        return _polled(job, schemas.video_of(job, submission.warnings))

    @app.post(
        "/v1/videos/sync",
        response_class=FileResponse,
        responses=openapi.file("video/mp4", "The video.") | refusals | openapi.errors(404),
        openapi_extra=openapi.body(),
        tags=["videos"],
    )
    async def sync(request: Request, key: _Key = None) -> Response:
        """Ask for a video, and wait for it. Its id and seed are in the headers."""
        state = server_state(app)
        job, submission, asked = await accept(state, request, await receive(request, state.bodies), key, waits=True)
        return await wait_for(state, request, job, submission.fingerprint, keep=asked.keep or key is not None)


def _add_looking(app: FastAPI) -> None:
    @app.get("/v1/videos", response_model=schemas.VideoList, responses=openapi.errors(400, 404), tags=["videos"])
    async def list_videos(after: _After = None, limit: _Limit = 20, order: Literal["asc", "desc"] = "desc") -> Response:
        """All videos, by the time at which they were asked for."""
        queue = server_state(app).queue
        if after is not None:
            _check_id(after)
        page = await asyncio.to_thread(queue.list, after=after, limit=limit, newest_first=order == "desc")
        data = [schemas.video_of(job) for job in page.jobs]
        ends = {"first_id": data[0]["id"] if data else None, "last_id": data[-1]["id"] if data else None}
        return JSONResponse({"object": "list", "data": data, "has_more": page.has_more, **ends})

    @app.get(
        "/v1/videos/{video_id}", response_model=schemas.VideoObject, responses=openapi.errors(404), tags=["videos"]
    )
    async def retrieve(video_id: str) -> Response:
        """One video as it stands."""
        job = await _job(app, video_id)
        return _polled(job, schemas.video_of(job))

    kinds = openapi.file("video/mp4 image/webp image/jpeg", "The file; parts of it by Range.")
    partial: dict[int | str, dict[str, Any]] = {
        206: {"description": "The part that was asked for.", "content": kinds[200]["content"]}
    }
    unmet: dict[int | str, dict[str, Any]] = {
        416: {"model": schemas.ErrorResponse, "description": "There is no such part."}
    }

    @app.get(
        "/v1/videos/{video_id}/content",
        response_class=FileResponse,
        responses=kinds | partial | unmet | openapi.errors(400, 404, 409),
        tags=["videos"],
    )
    async def content(request: Request, video_id: str, variant: Variant = "video") -> Response:
        """The video's file, its thumbnail, or a sheet of all its frames."""
        job = await _job(app, video_id)
        state = server_state(app)
        path, kind = await app.state.variants.file(state.queue, state.images, request, job.id, variant)
        name = f"{job.id}{path.suffix}"
        return OpenedFile(path, media_type=kind, filename=name, headers=video_headers(job))

    @app.get(
        "/v1/videos/{video_id}/preview",
        responses=openapi.file("image/jpeg", "How far it is.") | openapi.errors(404),
        tags=["videos"],
    )
    async def preview(video_id: str) -> Response:
        """The latest small picture of a video that is being made."""
        job = await _job(app, video_id)
        data = await asyncio.to_thread(server_state(app).queue.preview, job.id)
        if data is None:
            raise JobNotFound(f"there is no preview of {job.id} now; there is one while it is made")
        return Response(data, media_type="image/jpeg", headers={"Cache-Control": "no-store"})

    stream: dict[int | str, dict[str, Any]] = {
        200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}, "description": "The events."}
    }

    @app.get(
        "/v1/videos/{video_id}/events",
        response_class=StreamingResponse,
        responses=stream | openapi.errors(404),
        tags=["videos"],
    )
    async def events(video_id: str) -> Response:
        """The video's life as server-sent events: `video`, `preview`, and at last `done` or `deleted`."""
        job = await _job(app, video_id)
        told = app.state.events.stream(server_state(app), job.id)
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(told, media_type="text/event-stream", headers=headers)

    @app.get("/v1/models", response_model=schemas.ModelList, responses=openapi.errors(), tags=["models"])
    async def models() -> Response:
        """What `model` and `image_model` may name here."""
        return JSONResponse({"object": "list", "data": await asyncio.to_thread(_models, server_state(app))})


def _add_figures(app: FastAPI) -> None:
    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        state = server_state(app)
        text = await asyncio.to_thread(state.metrics.text, state.queue)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_changing(app: FastAPI) -> None:
    @app.post(
        "/v1/videos/{video_id}",
        response_model=schemas.VideoObject,
        responses=openapi.errors(400, 404, 413, 415, 429, 507),
        openapi_extra=openapi.change_body(),
        tags=["videos"],
    )
    async def update(video_id: str, request: Request) -> Response:
        """Give a video another title, or pin it, so that it never expires, or no longer."""
        job = await _job(app, video_id)
        state = server_state(app)
        with closing(await receive(request, state.bodies)) as body:
            asked = body.change()
        if asked.pinned and not job.pinned:
            state.pins.check(request.scope)
        job = await asyncio.to_thread(change, state.queue, job.id, title=asked.title, pinned=asked.pinned)
        return _polled(job, schemas.video_of(job))

    @app.post(
        "/v1/videos/{video_id}/cancel",
        response_model=schemas.VideoObject,
        responses=openapi.errors(404, 507),
        tags=["videos"],
    )
    async def cancel(video_id: str) -> Response:
        """Stop making a video; one that is finished stays as it is."""
        job = await _job(app, video_id)
        return JSONResponse(schemas.video_of(await asyncio.to_thread(server_state(app).queue.cancel, job.id)))

    @app.delete(
        "/v1/videos/{video_id}",
        response_model=schemas.DeletedVideo,
        responses=openapi.errors(404, 507),
        tags=["videos"],
    )
    async def delete(video_id: str) -> Response:
        """Stop making a video where it is not finished, and delete it with its files."""
        job = await _job(app, video_id)
        await asyncio.to_thread(server_state(app).queue.delete, job.id)
        return JSONResponse({"id": job.id, "deleted": True, "object": "video.deleted"})


async def _job(app: FastAPI, video_id: str) -> Job:
    _check_id(video_id)
    return await asyncio.to_thread(server_state(app).queue.get, video_id)


def _check_id(video_id: str) -> None:
    if not _ID.fullmatch(video_id):
        raise JobNotFound(f"there is no video {video_id[:80]!r}; an id is video_ and 32 hexadecimal digits")


def _polled(job: Job, body: dict[str, Any]) -> JSONResponse:
    """The video, and when it pays to ask again."""
    headers = {}
    if not job.finished:
        left = 2.0 if job.status == "queued" else job.eta if job.eta is not None else 1.0
        headers[POLL_HEADER] = str(round(1000 * min(5.0, max(0.25, left / 4))))
    return JSONResponse(body, headers=headers)


def _models(state: ServerState) -> list[dict[str, Any]]:
    usual = default_model(state.settings)
    told = []
    for name in dict.fromkeys([*offered_models(state.settings), *IMAGE_MODELS]):
        entry = CATALOG.get(name) or IMAGE_MODELS.get(name)
        told.append(
            {
                "id": name,
                "object": "model",
                "created": 0,
                "owned_by": "kinema" if entry is None or entry.repository is None else entry.repository.split("/")[0],
                "kind": "image_model" if name in IMAGE_MODELS else "video",
                "default": name == usual,
                "licence": None if entry is None else entry.licence,
                "defaults": {} if entry is None else dict(entry.defaults),
            }
        )
    return told
