"""The route /v1/verify: what a video file says about itself, and whether it comes from this server."""

from __future__ import annotations

import re
import tempfile
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import Request, Response  # noqa: TC002 - FastAPI reads the annotations
from fastapi.responses import JSONResponse
from pydantic import Field

from kinema.errors import InvalidImage, InvalidRequest, JobNotFound, VideoError
from kinema.media.credentials.signing_keys import trust_anchors
from kinema.media.verification import Verification, verify_file
from kinema.messages import Message
from kinema.serving import openapi
from kinema.serving.image_service import ENCODER_MB
from kinema.serving.lifespan import ServerState, server_state
from kinema.serving.middleware import VERIFY_PATH
from kinema.serving.multipart import read_multipart
from kinema.serving.request_parsing import Body, UnreadableBody, receive

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi import FastAPI

CPU_SECONDS = 30
_TITLE = re.compile(r"(video_[0-9a-f]{32})\.mp4")


class VerifiedFile(Verification):
    """What was found in a file, and whether this server made it."""

    job: str | None = Field(
        description="The job that the credentials name, if this server's own certificate signed them."
    )
    job_exists: bool | None = Field(description="Whether this server still has the job; null without one.")


def add_verify_route(app: FastAPI) -> None:
    """Add the route to the app."""

    @app.post(
        VERIFY_PATH,
        response_model=VerifiedFile,
        responses=openapi.error_responses(400, 413, 415, 507),
        openapi_extra=_request_body(),
        tags=["verify"],
    )
    async def verify_video(request: Request) -> Response:
        """Check content credentials, invisible watermark and recipe of a video: mp4, webm, gif, webp or png.

        Of long videos, the first frames are decoded. The file is not stored, and nothing is sent to other servers.
        """
        return JSONResponse(await verify_upload(server_state(app), request))


async def verify_upload(state: ServerState, request: Request) -> dict[str, Any]:
    """Return what was found in the file of a form, as JSON.

    Raises:
        KinemaError: the form or the file can't be read, or the server is busy.
        ClientGone: the client disconnected.
    """
    body = await receive(request, state.bodies)
    with closing(body):
        found = await state.images.verifications.run(lambda gone: _verify(state, body, gone), request)
    return found.model_dump(mode="json")


def _request_body() -> dict[str, object]:
    properties = {
        "file": {"type": "string", "format": "binary", "description": "The video."},
        "sidecar": {"type": "string", "format": "binary", "description": "The .c2pa file of a webm, if it has one."},
    }
    schema = {"type": "object", "properties": properties, "required": ["file"], "additionalProperties": False}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


def _verify(state: ServerState, body: Body, gone: Callable[[], bool]) -> VerifiedFile:
    """Check the file of a form in the process for it.

    Raises:
        InvalidRequest: the form is invalid, or the file is no video or can't be read within limits.
        ClientGone: `gone()` returned true.
    """
    if not body.content_type.lower().startswith("multipart/form-data"):
        raise UnreadableBody("the body is not multipart/form-data; send the field file in a form")
    with tempfile.TemporaryDirectory(prefix="kinema-verify-") as folder:
        video, sidecar = Path(folder) / "video", Path(folder) / "video.c2pa"
        with video.open("wb") as video_file, sidecar.open("wb") as sidecar_file:
            fields = read_multipart(body.content_type, body.pieces(), {"file": video_file, "sidecar": sidecar_file})
        unknown = next((name for name in fields if name not in ("file", "sidecar")), None)
        if unknown is not None:
            raise InvalidRequest(
                f"unknown field {unknown[:80]!r}; send file, and sidecar if there is one", unknown[:80]
            )
        if "file" not in fields:
            raise InvalidRequest("file is required; send a video", "file")
        if "sidecar" not in fields:
            sidecar.unlink()
        anchors = trust_anchors(state.settings)
        try:
            found = state.images.verifier.run(verify_file, video, None, anchors, gone=gone, cpu_seconds=CPU_SECONDS)
        except VideoError as error:
            raise InvalidRequest(_of_the_file(error), "file") from None
        except InvalidImage:  # a limit of the process
            message = Message(
                "verify_limits",
                "the file takes more than {megabytes} MB of memory or {seconds} seconds of CPU time to read, the "
                "limits of this server; check it with the command: kinema verify FILE",
                megabytes=ENCODER_MB,
                seconds=CPU_SECONDS,
            )
            raise InvalidRequest(message, "file") from None
    return _with_job(state, found)


def _of_the_file(error: VideoError) -> str:
    """Return the message of an error without the path, which is that of a copy."""
    message = error.args[0]
    return message.replaced(path=Message("the_file", "the file")) if isinstance(message, Message) else str(error)


def _with_job(state: ServerState, found: Verification) -> VerifiedFile:
    credentials, exists = found.credentials, None
    is_own = credentials.state == "trusted" and state.signed is not None and state.signed.has_signed(credentials.serial)
    named = _TITLE.fullmatch(credentials.title or "") if is_own else None
    if named is not None:
        try:
            exists = bool(state.queue.get(named[1]))
        except JobNotFound:
            exists = False
    return VerifiedFile(**dict(found), job=named[1] if named else None, job_exists=exists)
