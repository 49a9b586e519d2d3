"""The /v1/videos API: the routes that video servers share, and additional ones such as preview and events."""

from __future__ import annotations

import asyncio
import re
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import quote

from fastapi import FastAPI, Header, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, RedirectResponse, StreamingResponse
from starlette.exceptions import HTTPException

from kinema.errors import ContentRefused, InvalidImage, InvalidRequest, JobNotFound, KinemaError, ModelError
from kinema.jobs.job import PART_FILES
from kinema.messages import rejected_value
from kinema.models.catalog import CATALOG, IMAGE_MODELS, default_parameters, image_model_defaults
from kinema.models.resolve import model_kind, resolve
from kinema.recipe import FileEncoding
from kinema.serving import openapi, schemas
from kinema.serving.batches_api import add_batch_routes
from kinema.serving.bounded_pool import client_gone
from kinema.serving.connections import interim_sender
from kinema.serving.decode_process import ClientGone
from kinema.serving.events import Events
from kinema.serving.extension_submission import FIELD, prepare_extension
from kinema.serving.fields import is_set
from kinema.serving.files_api import add_file_routes
from kinema.serving.lifespan import ServerState, server_state
from kinema.serving.middleware import CA_PATH, WAS_HEAD
from kinema.serving.opened_file import OpenedFile
from kinema.serving.rate_limits import CALLER
from kinema.serving.request_parsing import Body, ParsedRequest, UnreadableBody, fetch_images, receive
from kinema.serving.submission import (
    Submission,
    change,
    check_key,
    default_model,
    offered_image_models,
    offered_models,
    prepare,
    submit,
)
from kinema.serving.trace_parent import trace_parent
from kinema.serving.verify_api import add_verify_route
from kinema.serving.video_variants import MAX_CRF, STORED_CRF, Variant, VideoVariants, requested_encoding
from kinema.serving.webhook_urls import check_webhook_url
from kinema.version import own_version

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from kinema.jobs import Job


POLL_HEADER = "openai-poll-after-ms"
# One body is parsed at a time; other tasks of the event loop run in between.
_PARSING = asyncio.Lock()
_ID = re.compile(r"video_[0-9a-f]{32}")
_Key = Annotated[
    str | None, Header(alias="Idempotency-Key", description="Requests with the same key return the same video.")
]
_After = Annotated[str | None, Query(description="The last id of the previous page.")]
_Limit = Annotated[int, Query(ge=1, le=100)]
_Crf = Annotated[
    int | None,
    Query(
        ge=STORED_CRF,
        le=MAX_CRF,
        description=f"Quality of the video: {STORED_CRF} is that of the stored file, higher values give smaller files.",
    ),
]
_Boomerang = Annotated[bool, Query(description="Play the frames forward and then backward.")]


def make_app() -> FastAPI:
    """Return the app. The server sets its `state.server` to a `ServerState`."""
    app = FastAPI(
        title="Kinema",
        version=own_version(),
        description="Generate a short video from an image or a prompt with Stable Video Diffusion.",
        openapi_url="/v1/openapi.json",
        docs_url=None,  # its page loads scripts from other servers
        redoc_url=None,
    )
    app.state.server = None
    app.state.events = Events()
    app.state.variants = VideoVariants()
    _add_error_handlers(app)
    _add_create_routes(app)
    _add_read_routes(app)
    _add_update_routes(app)
    add_file_routes(app)
    add_batch_routes(app)
    add_verify_route(app)
    _add_metrics(app)
    _add_ca_certificate(app)
    return app


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(KinemaError)
    async def _handle_kinema_error(_: Request, error: KinemaError) -> JSONResponse:
        return answer_to(error)

    @app.exception_handler(RequestValidationError)
    async def _handle_validation_error(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        name = str(first["loc"][-1])
        return answer_to(InvalidRequest(rejected_value(name, first), name))

    @app.exception_handler(ClientGone)
    async def _handle_disconnect(_: Request, __: ClientGone) -> Response:
        return Response(status_code=499)  # for the log; the client is disconnected

    @app.exception_handler(HTTPException)
    async def _handle_http_exception(_: Request, error: HTTPException) -> JSONResponse:
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
        body = schemas.error_body(error.status_code, code, str(error.detail))
        return JSONResponse(body, error.status_code, headers=error.headers)


def answer_to(error: KinemaError) -> JSONResponse:
    """Return the response for an error."""
    status, body, headers = schemas.error_response(error)
    if isinstance(error, UnreadableBody):
        status = 415
    return JSONResponse(body, status, headers=headers)


def _prepared(state: ServerState, fields: ParsedRequest, gone: Callable[[], bool]) -> Submission:
    """Return the submission of a request, of which images are fetched until `gone()` is true.

    Raises:
        KinemaError: the request is rejected.
    """
    if is_set(fields.fields.get(FIELD)):
        return prepare_extension(state.queue, state.settings, fields.fields, has_image=fields.has_image)
    try:
        image, last_image = fetch_images(state.settings, fields, gone)
        return prepare(state.settings, fields.fields, image, lambda data: state.images.inspect(data, gone), last_image)
    except (ContentRefused, InvalidImage) as error:
        error.param = error.param or fields.image_field
        raise


async def accept(
    state: ServerState, request: Request, body: Body, key: str | None, *, waits: bool = False, image_only: bool = False
) -> tuple[Job, Submission, ParsedRequest]:
    """Validate a request and submit its job. If `waits`, first look for the same request's abandoned job.

    Closes the body. `image_only` selects an error message that mentions only the image.

    Raises:
        KinemaError: the request is rejected; no job is submitted.
        ClientGone: the client of `request` disconnected.
    """
    parsed: ParsedRequest | None = None
    traceparent = trace_parent(request.headers)

    def work(gone: Callable[[], bool]) -> tuple[Job, Submission, ParsedRequest]:
        with closing(body):
            fields = body.parse() if parsed is None else parsed
        if image_only and fields.image is None and not is_set(fields.fields.get("prompt")):
            raise InvalidRequest("image is required; send a JPEG, PNG, WebP, HEIC or AVIF file", "image")
        check_key(key)
        webhook_url = check_webhook_url(state.settings, fields.webhook_url)
        submission = _prepared(state, fields, gone)
        fields = replace(fields, image=None, last_image=None)  # the submission has them
        if waits and key is None and (job := state.abandoned.take(submission.fingerprint)):
            return job, submission, fields
        if fields.pinned:
            state.pins.check(request.scope)
        job = submit(
            state.queue,
            state.settings,
            submission,
            idempotency_key=key,
            title=fields.title,
            pinned=fields.pinned,
            caller=request.scope.get(CALLER, ""),
            traceparent=traceparent,
            priority=fields.priority or 0,
            webhook_url=webhook_url,
        )
        return job, replace(submission, image=None, last_image=None), fields

    try:
        state.check_open()
        if body.small:
            async with _PARSING:
                parsed = body.parse()
                await asyncio.sleep(0)
            if not parsed.has_image:
                return await asyncio.to_thread(work, lambda: False)
            if parsed.has_url:
                return await state.images.addresses.run(work, request)
        return await state.images.uploads(body.size).run(work, request)
    except BaseException:
        body.close()
        raise


async def wait_for(state: ServerState, request: Request, job: Job, fingerprint: str, *, keep: bool) -> Response:
    """Return the finished video or the job's error. If the client disconnects, cancel the job unless `keep`.

    During the job, interim responses prevent a time-out in the client or a proxy. A client without support for them
    may disconnect because of a time-out: its job becomes abandoned, and the same request finds it for a while.
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
        raise JobNotFound(f"{job.id} was deleted before it was finished")
    if finished.status == "failed":
        status, body, headers = schemas.failure_response(finished.error)
        return JSONResponse(body, status, headers=headers | video_headers(finished))
    path = await asyncio.to_thread(state.queue.result, job.id)
    if state.signed is not None:
        path = await state.signed.file(state.queue, None, job.id, path)
    return _opened(path, "video/mp4", finished)


def video_headers(job: Job) -> dict[str, str]:
    """Return the headers of a video file: job, seed and percent-encoded model name."""
    model = quote(job.request.model, safe="/@:+ ")
    return {"X-Kinema-Job": job.id, "X-Kinema-Seed": str(job.request.seed), "X-Kinema-Model": model}


def _add_create_routes(app: FastAPI) -> None:
    errors = openapi.error_responses(400, 409, 413, 415, 429, 507)

    @app.post(
        "/v1/videos",
        response_model=schemas.VideoObject,
        response_model_exclude_none=False,
        responses=errors,
        openapi_extra=openapi.create_body(),
        tags=["videos"],
    )
    async def create_video(request: Request, key: _Key = None) -> Response:
        """Submit a video job to the queue."""
        state = server_state(app)
        job, submission, _ = await accept(state, request, await receive(request, state.bodies), key)
        return _poll_response(job, schemas.video_of(job, submission.warnings))

    @app.post(
        "/v1/videos/sync",
        response_class=FileResponse,
        responses=openapi.file_response("video/mp4", "The video file.") | errors | openapi.error_responses(404),
        openapi_extra=openapi.create_body(),
        tags=["videos"],
    )
    async def create_video_and_wait(request: Request, key: _Key = None) -> Response:
        """Submit a video job, wait and return the video. The headers contain its id and seed."""
        state = server_state(app)
        job, submission, parsed = await accept(state, request, await receive(request, state.bodies), key, waits=True)
        return await wait_for(state, request, job, submission.fingerprint, keep=parsed.keep or key is not None)


def _add_read_routes(app: FastAPI) -> None:
    @app.get(
        "/v1/videos", response_model=schemas.VideoList, responses=openapi.error_responses(400, 404), tags=["videos"]
    )
    async def list_videos(after: _After = None, limit: _Limit = 20, order: Literal["asc", "desc"] = "desc") -> Response:
        """List videos by creation time."""
        queue = server_state(app).queue
        if after is not None:
            _check_id(after)
        page = await asyncio.to_thread(queue.list, after=after, limit=limit, newest_first=order == "desc")
        data = [schemas.video_of(job) for job in page.jobs]
        ends = {"first_id": data[0]["id"] if data else None, "last_id": data[-1]["id"] if data else None}
        return JSONResponse({"object": "list", "data": data, "has_more": page.has_more, **ends})

    @app.get(
        "/v1/videos/{video_id}",
        response_model=schemas.VideoObject,
        responses=openapi.error_responses(404),
        tags=["videos"],
    )
    async def retrieve_video(video_id: str) -> Response:
        """Get the current state of a video."""
        job = await _job(app, video_id)
        return _poll_response(job, schemas.video_of(job))

    file_response = openapi.file_response("video/mp4 image/webp image/jpeg", "The file. Range requests are supported.")
    partial: dict[int | str, dict[str, Any]] = {
        206: {"description": "The requested range of the file.", "content": file_response[200]["content"]}
    }
    redirected: dict[int | str, dict[str, Any]] = {
        307: {"description": "The URL of the video in the server's store (KINEMA_PRESIGN_SECONDS)."}
    }

    @app.get(
        "/v1/videos/{video_id}/content",
        response_class=FileResponse,
        responses=file_response
        | partial
        | redirected
        | openapi.range_error()
        | openapi.error_responses(400, 404, 409, 507),
        tags=["videos"],
    )
    async def download_video(
        request: Request, video_id: str, variant: Variant = "video", crf: _Crf = None, *, boomerang: _Boomerang = False
    ) -> Response:
        """Download the video, its thumbnail or a contact sheet of all its frames."""
        encoding = requested_encoding(variant, crf, boomerang=boomerang)
        return await _file(app, request, await _job(app, video_id), variant, encoding)

    @app.get(
        "/v1/videos/{video_id}/preview",
        responses=openapi.file_response("image/jpeg", "The preview image.") | openapi.error_responses(404),
        tags=["videos"],
    )
    async def retrieve_preview(video_id: str) -> Response:
        """Get the latest preview image of a running job."""
        job = await _job(app, video_id)
        data = await asyncio.to_thread(server_state(app).queue.preview, job.id)
        if data is None:
            raise JobNotFound(f"{job.id} has no preview; only a running job has one")
        return Response(data, media_type="image/jpeg", headers={"Cache-Control": "no-store"})

    event_stream: dict[int | str, dict[str, Any]] = {
        200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}, "description": "Server-sent events."}
    }

    @app.get(
        "/v1/videos/{video_id}/events",
        response_class=StreamingResponse,
        responses=event_stream | openapi.error_responses(404),
        tags=["videos"],
    )
    async def stream_events(video_id: str) -> Response:
        """Stream the job's changes as server-sent events: `video`, `preview`, and finally `done` or `deleted`."""
        job = await _job(app, video_id)
        stream = app.state.events.stream(server_state(app), job.id)
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(stream, media_type="text/event-stream", headers=headers)

    @app.get("/v1/models", response_model=schemas.ModelList, responses=openapi.error_responses(), tags=["models"])
    async def list_models() -> Response:
        """List the available values of `model` and `image_model`."""
        return JSONResponse({"object": "list", "data": await asyncio.to_thread(_model_entries, server_state(app))})

    @app.get("/v1/workers", response_model=schemas.WorkerList, responses=openapi.error_responses(), tags=["workers"])
    async def list_workers() -> schemas.WorkerList:
        """List the workers: the device or node of each, what it does, and the model it has loaded."""
        queue = server_state(app).queue
        return schemas.WorkerList.of(await asyncio.to_thread(lambda: queue.pool_state))


def _add_metrics(app: FastAPI) -> None:
    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        state = server_state(app)
        text = await asyncio.to_thread(state.metrics.text, state.queue)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_ca_certificate(app: FastAPI) -> None:
    @app.get(CA_PATH, include_in_schema=False)
    async def ca_certificate() -> Response:
        """Return the certificate that those who verify videos of this server have to trust."""
        signed = server_state(app).signed
        if signed is None or signed.keys.ca is None:
            raise HTTPException(404, "this server has no certificate authority: see KINEMA_CREDENTIALS")
        return Response(signed.keys.ca, media_type="application/x-pem-file", headers={"Cache-Control": "no-cache"})


def _add_update_routes(app: FastAPI) -> None:
    @app.post(
        "/v1/videos/{video_id}",
        response_model=schemas.VideoObject,
        responses=openapi.error_responses(400, 404, 413, 415, 429, 507),
        openapi_extra=openapi.update_body(),
        tags=["videos"],
    )
    async def update_video(video_id: str, request: Request) -> Response:
        """Rename, pin or unpin a video. A pinned video never expires."""
        job = await _job(app, video_id)
        state = server_state(app)
        with closing(await receive(request, state.bodies)) as body:
            update = body.parse_update()
        if update.pinned and not job.pinned:
            state.pins.check(request.scope)
        job = await asyncio.to_thread(change, state.queue, job.id, title=update.title, pinned=update.pinned)
        return _poll_response(job, schemas.video_of(job))

    @app.post(
        "/v1/videos/{video_id}/cancel",
        response_model=schemas.VideoObject,
        responses=openapi.error_responses(404, 507),
        tags=["videos"],
    )
    async def cancel_video(video_id: str) -> Response:
        """Cancel a job. A finished job is unchanged."""
        job = await _job(app, video_id)
        return JSONResponse(schemas.video_of(await asyncio.to_thread(server_state(app).queue.cancel, job.id)))

    @app.delete(
        "/v1/videos/{video_id}",
        response_model=schemas.DeletedVideo,
        responses=openapi.error_responses(404, 507),
        tags=["videos"],
    )
    async def delete_video(video_id: str) -> Response:
        """Delete a video and its files; cancel its job if it is not finished."""
        job = await _job(app, video_id)
        await asyncio.to_thread(server_state(app).queue.delete, job.id)
        return JSONResponse({"id": job.id, "deleted": True, "object": "video.deleted"})


async def _file(app: FastAPI, request: Request, job: Job, variant: Variant, encoding: FileEncoding) -> Response:
    """Return a variant of a video."""
    state = server_state(app)
    is_stored = variant == "video" and encoding == FileEncoding()
    if is_stored and state.signed is None and (redirect := await _redirect_to_store(state, request, job, None)):
        return redirect
    path, kind = await app.state.variants.file(state.queue, state.images, request, job.id, variant, encoding)
    if variant == "video" and state.signed is not None:
        path = await state.signed.file(state.queue, request, job.id, path)
        if is_stored and (redirect := await _redirect_to_store(state, request, job, path.name)):
            return redirect
    return _opened(path, kind, job)


def _opened(path: Path, kind: str, job: Job) -> OpenedFile:
    """Return a file of a completed job. All servers of a store give it the same time, whenever they copied it."""
    name = f"{job.id}{path.suffix}"
    return OpenedFile(path, headers=video_headers(job), modified_at=job.completed_at, media_type=kind, filename=name)


async def _redirect_to_store(state: ServerState, request: Request, job: Job, signed: str | None) -> Response | None:
    """Return a redirect to a presigned URL of the video, or None if there is none (KINEMA_PRESIGN_SECONDS).

    `signed` is the name of the signed copy, if videos are signed.
    """
    if request.scope.get(WAS_HEAD):  # the URL is for GET only
        return None
    address = await asyncio.to_thread(state.queue.result_address, job.id, signed or PART_FILES["video"])
    if address is None:
        return None
    return RedirectResponse(address, 307, video_headers(job) | {"Cache-Control": "no-store"})


async def _job(app: FastAPI, video_id: str) -> Job:
    _check_id(video_id)
    return await asyncio.to_thread(server_state(app).queue.get, video_id)


def _check_id(video_id: str) -> None:
    if not _ID.fullmatch(video_id):
        raise JobNotFound(f"video {video_id[:80]!r} does not exist; an id is video_ and 32 hexadecimal digits")


def _poll_response(job: Job, body: dict[str, Any]) -> JSONResponse:
    """Return the video object, with a header that recommends when to poll again."""
    headers = {}
    if not job.finished:
        remaining = 2.0 if job.status == "queued" else job.eta if job.eta is not None else 1.0
        headers[POLL_HEADER] = str(round(1000 * min(5.0, max(0.25, remaining / 4))))
    return JSONResponse(body, headers=headers)


def _model_entries(state: ServerState) -> list[dict[str, Any]]:
    """Return the entries of `/v1/models`."""
    default = default_model(state.settings)
    models = []
    for name in dict.fromkeys([*offered_models(state.settings), *offered_image_models(state.settings)]):
        entry = CATALOG.get(name) or IMAGE_MODELS.get(name)
        kind = "video" if name == state.settings.model else model_kind(name)
        models.append(
            {
                "id": name,
                "object": "model",
                "created": 0,
                "owned_by": _owner(name),
                "kind": kind,
                "default": name == default,
                "licence": None if entry is None else entry.licence,
                "defaults": image_model_defaults(name) if kind == "image_model" else default_parameters(name),
            }
        )
    return models


def _owner(name: str) -> str:
    """Return the owner of a model: of its hub repository, "kinema" for embedded models, "local" for folders."""
    try:
        source = resolve(name, text_to_image=None)
    except ModelError:  # a folder that no longer exists
        return "local"
    if source.repository is not None:
        return source.repository.split("/")[0]
    return "kinema" if name in CATALOG or name in IMAGE_MODELS else "local"
