"""The BentoML service: /generate, the /v1/videos API, the page and the queue.

bentoml serve service:StableDiffusionVideo
"""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional, Self

# Set before BentoML is imported: disables its usage statistics.
os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")

import bentoml
import uvicorn.config
from _bentoml_sdk.io_models import IODescriptor
from pydantic import ConfigDict, Field, create_model
from starlette.exceptions import HTTPException
from starlette.responses import Response

from kinema.errors import CredentialsError, InvalidRequest, KinemaError, ModelError
from kinema.jobs.worker_process import exit_with_parent
from kinema.models.resolve import check_folder
from kinema.serving import logs, page, swagger
from kinema.serving.bentoml_arbiter import close_control_ports, exit_on_refusal, refuse_to_start
from kinema.serving.connections import Connection, Limits
from kinema.serving.decode_process import ClientGone
from kinema.serving.http_errors import ErrorResponseMiddleware
from kinema.serving.lifespan import WORK, ServerState, server_state, trust_summary
from kinema.serving.listen_address import own_url
from kinema.serving.middleware import AccessControl
from kinema.serving.multipart import LAST_IMAGE_FIELD
from kinema.serving.request_parsing import Body, receive
from kinema.serving.schemas import error_body
from kinema.serving.videos import accept, answer_to, make_app, wait_for
from kinema.settings import read_settings
from kinema.values import VideoRequest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.requests import Request

log = logging.getLogger(__name__)
api = make_app()


class _RawInput(IODescriptor):
    """Input that is documented by its fields, but parsed and validated as on /v1/videos.

    BentoML's own parsing would fetch any URL sent as the image, and decode any image.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    @classmethod
    async def from_http_request(cls, request: Request, serde: object) -> Self:  # noqa: ARG003 - BentoML passes it
        """Return an input with the body, or with the error that occurred while receiving it."""
        try:
            body: Body | KinemaError | ClientGone = await receive(request, server_state(api).bodies)
        except (KinemaError, ClientGone) as error:
            body = error
        raw: Self = cls.model_construct(image=body)
        return raw


def _fields() -> Mapping[str, Any]:
    """Return the input's fields: the tutorial's parameters first, then all others."""
    fields: dict[str, Any] = {
        "image": (Annotated[Path, bentoml.validators.ContentType("image/*")], ...),
        LAST_IMAGE_FIELD: (
            Annotated[Path, bentoml.validators.ContentType("image/*")],  # BentoML's client sends no Optional file
            # A default in the document would be encoded like a file, which fails for None.
            Field(
                default_factory=lambda: None,
                description="Image at which the video ends. Denoising takes twice as long.",
            ),
        ),
    }
    first = ["decode_chunk_size", "seed"]
    for name in [*first, *(name for name in VideoRequest.model_fields if name not in first)]:
        field = VideoRequest.model_fields[name]
        default = Field(None, description=field.description)
        fields[name] = (Optional[field.annotation], default)  # noqa: UP045 - the annotation is a value here
    fields["size"] = (
        str | None,
        Field(None, description="Width x height, such as 1024x576. Unset: follows the image."),
    )
    fields["seconds"] = (float | None, Field(None, description="Duration of the video; determines num_frames."))
    return fields | {"keep": (bool | None, None), "webhook_url": (str | None, None)}


def _started_by_arbiter() -> bool:
    """Return whether this is the server process of an arbiter, which restarts it when it dies."""
    main = getattr(sys.modules["__main__"], "__spec__", None)
    return main is not None and main.name == "_bentoml_impl.worker.service"


if _started_by_arbiter():  # before BentoML creates uvicorn's configuration and the arbiter
    uvicorn.config.HTTP_PROTOCOLS["auto"] = "kinema.serving.connections:Connection"
    # By default uvicorn trusts X-Forwarded-For from any local program.
    os.environ.setdefault("FORWARDED_ALLOW_IPS", "none")
else:
    close_control_ports()
    exit_on_refusal()


Input = create_model("Input", __base__=_RawInput, **_fields())


@bentoml.asgi_app(api, path="/")
@bentoml.service(
    name="StableDiffusionVideo",
    # The queue limits the load. BentoML's time-out would leave the work running and its 429 would apply to all routes,
    # so the time-out is one day (a number is required).
    traffic={"timeout": 86_400},
    workers=1,
    http={"host": "127.0.0.1"},
    # BentoML stores its metrics in mapped files, and writing to them on a full disk kills the process.
    metrics={"enabled": False},
    # Health checks, metrics, and what Gradio polls several times a second while the page is open.
    logging={
        "access": {
            "skip_paths": ["/metrics", "/healthz", "/livez", "/readyz", *page.POLLED],
            # Logging a header with bytes that are not UTF-8 would fail the request.
            "request_content_type": False,
        }
    },
    # A span per event of a stream would cost more than the event itself.
    tracing={"excluded_urls": ["/v1/videos"]},
)
class StableDiffusionVideo:
    """Generate a short video from an image with Stable Video Diffusion."""

    def __init__(self) -> None:
        try:
            settings = read_settings()
            if _started_by_arbiter():  # an orphan would block the port and the queue of the next server
                exit_with_parent(os.getppid())
                Connection.limits = Limits.within_descriptors(settings.max_connections)
            logs.set_up(settings.log_format)
            # Tests set KINEMA_WORK to work that needs no model.
            for name in settings.models:
                check_folder(name)
            self._state = ServerState(settings, os.environ.get("KINEMA_WORK", WORK))
        except (CredentialsError, InvalidRequest, ModelError) as error:
            if not _started_by_arbiter():
                raise
            refuse_to_start(error)
        state = self._state
        page.mount(api, state.queue, settings, state.stopping.is_set, state.images, state.bodies, state.signed)

    @bentoml.on_startup
    async def _open(self) -> None:
        await self._state.open()
        api.state.server = self._state
        log.info("%s", trust_summary(self._state.settings))
        if url := own_url():
            urls = f"{url}{page.PATH}, Swagger UI: {url}/, API: {url}/v1/videos"
            log.info("web page: %s", urls)

    @bentoml.on_shutdown
    async def _close(self) -> None:
        await self._state.close()

    @bentoml.api(input_spec=Input)
    async def generate(
        self, context: bentoml.Context, image: Body | KinemaError | ClientGone, **_: object
    ) -> Annotated[Path, bentoml.validators.ContentType("video/*")]:
        """Generate a video from an image: an mp4, with seed and job id in the headers X-Kinema-Seed and X-Kinema-Job.

        Only the image is required; omitted or null fields use the model's defaults. If the client disconnects, the
        job is cancelled, unless `keep` is true.
        """
        response = await self._respond(context.request, image)
        context.response.status_code = response.status_code
        return response  # type: ignore[return-value]  # BentoML sends a Response unchanged; the annotation is for OpenAPI

    async def _respond(self, request: Request, body: Body | KinemaError | ClientGone) -> Response:
        try:
            if isinstance(body, KinemaError | ClientGone):
                raise body
            state = server_state(api)
            key = request.headers.get("idempotency-key")
            job, submission, parsed = await accept(state, request, body, key, waits=True, image_only=True)
            keep = parsed.keep or key is not None
            return await wait_for(state, request, job, submission.fingerprint, keep=keep)
        except KinemaError as error:
            return answer_to(error)
        except ClientGone:
            return Response(status_code=499)  # for the log; the client is disconnected

    async def __is_ready__(self) -> bool:
        ready = await self._state.ready()
        problems = self._state.problems
        if problems and not ready:  # BentoML's own response has no reason
            body = error_body(503, "unavailable", "the server is not ready: " + "; ".join(problems))
            raise HTTPException(503, json.dumps(body), headers={"content-type": "application/json"})
        return ready


StableDiffusionVideo.add_asgi_middleware(ErrorResponseMiddleware)  # type: ignore[attr-defined]  # the decorator makes it a Service
StableDiffusionVideo.add_asgi_middleware(AccessControl, fastapi_app=api)  # type: ignore[attr-defined]  # the same
swagger.add(api, StableDiffusionVideo)
