"""The BentoML service, where all faces and the queue are joined.

bentoml serve service:StableDiffusionVideo
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, Optional, Self

# Before BentoML looks: no one is told of who uses this.
os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")

import bentoml
import uvicorn.config
from _bentoml_sdk.io_models import IODescriptor
from pydantic import ConfigDict, Field, create_model
from starlette.exceptions import HTTPException
from starlette.responses import Response

from kinema.errors import InvalidRequest, KinemaError
from kinema.jobs.worker_process import end_with
from kinema.serving import logs, page, swagger
from kinema.serving.bentoml_arbiter import close_control_ports
from kinema.serving.connections import Connection, Limits
from kinema.serving.decode_process import ClientGone
from kinema.serving.http_errors import ErrorResponseMiddleware
from kinema.serving.lifespan import WORK, ServerState, server_state
from kinema.serving.listen_address import own_address
from kinema.serving.middleware import AccessControl
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


class _Loose(IODescriptor):
    """What the document says comes in; what does come is read as on /v1/videos, and judged in the same words.

    BentoML's own reading would fetch any address that is given as the image, and decode any picture.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    @classmethod
    async def from_http_request(cls, request: Request, serde: object) -> Self:  # noqa: ARG003 - BentoML passes it
        """The body as it came; where it can't be read, why."""
        try:
            body: Body | KinemaError | ClientGone = await receive(request, server_state(api).bodies)
        except (KinemaError, ClientGone) as error:
            body = error
        loose: Self = cls.model_construct(image=body)
        return loose


def _fields() -> Mapping[str, Any]:
    """The tutorial's parameters first, then every other setting."""
    fields: dict[str, Any] = {"image": (Annotated[Path, bentoml.validators.ContentType("image/*")], ...)}
    first = ["decode_chunk_size", "seed"]
    for name in [*first, *(name for name in VideoRequest.model_fields if name not in first)]:
        field = VideoRequest.model_fields[name]
        told = Field(None, description=field.description)
        fields[name] = (Optional[field.annotation], told)  # noqa: UP045 - the annotation is a value here
    return fields | {"keep": (bool | None, None)}


def _started_by_arbiter() -> bool:
    """Whether this is the process that serves, and another starts it again when it dies."""
    main = getattr(sys.modules["__main__"], "__spec__", None)
    return main is not None and main.name == "_bentoml_impl.worker.service"


if _started_by_arbiter():  # BentoML has not made uvicorn's configuration yet, nor any arbiter
    uvicorn.config.HTTP_PROTOCOLS["auto"] = "kinema.serving.connections:Connection"
    # Unless told which proxies to trust, uvicorn takes any local program's X-Forwarded-For for the client's address.
    os.environ.setdefault("FORWARDED_ALLOW_IPS", "none")
else:
    close_control_ports()


def _refuse_to_start(error: InvalidRequest) -> NoReturn:
    """End, and the arbiter too: each new process would be refused for the same reason."""
    if not _started_by_arbiter():
        raise error
    sys.stderr.write(f"kinema: {error}\n")
    sys.stderr.flush()
    os.kill(os.getppid(), signal.SIGTERM)
    os._exit(2)


Input = create_model("Input", __base__=_Loose, **_fields())


@bentoml.asgi_app(api, path="/")
@bentoml.service(
    name="StableDiffusionVideo",
    # A video takes what it takes, and the queue is the bound: no time-out that leaves the work running, no 429 of all
    # routes. BentoML wants a number; this one is a day.
    traffic={"timeout": 86_400},
    workers=1,
    http={"host": "127.0.0.1"},
    # Its figures lie in mapped files, and a full disk would kill whoever writes them; /metrics is ours.
    metrics={"enabled": False},
    # Whom a service manager asks, and what Gradio asks by itself while the page is open, several times a second.
    logging={
        "access": {
            "skip_paths": ["/metrics", "/healthz", "/livez", "/readyz", *page.POLLED],
            # In this header bytes that are not UTF-8 would fail, and with them the request.
            "request_content_type": False,
        }
    },
    # A span for each event of a stream would cost more than the event.
    tracing={"excluded_urls": ["/v1/videos"]},
)
class StableDiffusionVideo:
    """Turns a still into a short video with Stable Video Diffusion."""

    def __init__(self) -> None:
        try:
            settings = read_settings()
            if _started_by_arbiter():  # an orphan would keep the port and the queue from the next
                end_with(os.getppid())
                Connection.limits = Limits.within_descriptors(settings.max_connections)
            logs.set_up(settings.log_format)
            # Tests put work of their own here, which needs no model.
            self._state = ServerState(settings, os.environ.get("KINEMA_WORK", WORK))
        except InvalidRequest as error:
            _refuse_to_start(error)
        state = self._state
        page.mount(api, state.queue, settings, state.stopping.is_set, state.images, state.bodies)

    @bentoml.on_startup
    async def _open(self) -> None:
        await self._state.open()
        api.state.server = self._state
        if address := own_address():
            places = f"{address}{page.PATH}, Swagger UI at {address}/, the API at {address}/v1/videos"
            log.info("the page is at %s", places)

    @bentoml.on_shutdown
    async def _close(self) -> None:
        await self._state.close()

    @bentoml.api(input_spec=Input)
    async def generate(
        self, context: bentoml.Context, image: Body | KinemaError | ClientGone, **_: object
    ) -> Annotated[Path, bentoml.validators.ContentType("video/*")]:
        """A video from a still: the mp4, with its seed and job in the headers X-Kinema-Seed and X-Kinema-Job.

        Every setting but the image may be left out, or sent as `null`. If the client goes, the job is cancelled,
        unless `keep` is true.
        """
        answer = await self._answer(context.request, image)
        context.response.status_code = answer.status_code
        return answer  # type: ignore[return-value]  # BentoML sends a response as it is; the annotation is its document

    async def _answer(self, request: Request, body: Body | KinemaError | ClientGone) -> Response:
        try:
            if isinstance(body, KinemaError | ClientGone):
                raise body
            state = server_state(api)
            key = request.headers.get("idempotency-key")
            job, submission, asked = await accept(state, request, body, key, waits=True, image_only=True)
            keep = asked.keep or key is not None
            return await wait_for(state, request, job, submission.fingerprint, keep=keep)
        except KinemaError as error:
            return answer_to(error)
        except ClientGone:
            return Response(status_code=499)  # no one reads it

    async def __is_ready__(self) -> bool:
        ready = await self._state.ready()
        problems = self._state.problems
        if problems and not ready:  # BentoML's own answer would only say that it is not ready
            answer = error_body(503, "unavailable", "the server is not ready: " + "; ".join(problems))
            raise HTTPException(503, json.dumps(answer), headers={"content-type": "application/json"})
        return ready


StableDiffusionVideo.add_asgi_middleware(ErrorResponseMiddleware)  # type: ignore[attr-defined]  # it is a Service now
StableDiffusionVideo.add_asgi_middleware(AccessControl, api=api)  # type: ignore[attr-defined]  # likewise
swagger.add(api, StableDiffusionVideo)
