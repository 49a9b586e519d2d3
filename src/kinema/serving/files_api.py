"""The routes of /v1/files: upload the requests of a batch, download its results."""

from __future__ import annotations

import asyncio
import re
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import Query, Request, Response
from fastapi.responses import FileResponse, JSONResponse

from kinema.errors import FileNotFound, InvalidRequest, KinemaError
from kinema.jobs.file_table import new_file_id
from kinema.serving import openapi
from kinema.serving.batch_schemas import DeletedFile, FileList, FileObject, file_of, page_of
from kinema.serving.lifespan import ServerState, server_state
from kinema.serving.multipart import read_multipart
from kinema.serving.opened_file import OpenedFile
from kinema.serving.request_parsing import Body, UnreadableBody, receive
from kinema.serving.submission import check_text

if TYPE_CHECKING:
    from fastapi import FastAPI

    from kinema.jobs.batch_schema import BatchFile

MEDIA_TYPE = "application/jsonl"
MAX_NAME = 255
_ID = re.compile(r"file-[0-9a-f]{32}")
_After = Annotated[str | None, Query(description="The last id of the previous page.")]


def add_file_routes(app: FastAPI) -> None:
    """Add the routes to the app."""

    @app.post(
        "/v1/files",
        response_model=FileObject,
        responses=openapi.error_responses(400, 413, 415, 507),
        openapi_extra=openapi.upload_body(),
        tags=["batches"],
    )
    async def upload_file(request: Request) -> Response:
        """Upload the requests of a batch as a file in JSON Lines format."""
        state = server_state(app)
        state.check_open()
        body = await receive(request, state.bodies)
        with closing(body):
            file = await state.images.uploads(body.size).run(lambda _: _store(state, body), request)
        return JSONResponse(file_of(file))

    @app.get("/v1/files", response_model=FileList, responses=openapi.error_responses(400, 404), tags=["batches"])
    async def list_files(
        after: _After = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        order: Literal["asc", "desc"] = "desc",
        purpose: Literal["batch", "batch_output"] | None = None,
    ) -> Response:
        """List files by creation time."""
        table = server_state(app).queue.file_table
        if after is not None:
            check_file_id(after)
        files, has_more = await asyncio.to_thread(
            table.list_page, after, limit, newest_first=order == "desc", purpose=purpose
        )
        return JSONResponse(page_of([file_of(file) for file in files], has_more=has_more))

    @app.get("/v1/files/{file_id}", response_model=FileObject, responses=openapi.error_responses(404), tags=["batches"])
    async def retrieve_file(file_id: str) -> Response:
        """Get a file's name, size and expiry."""
        return JSONResponse(file_of(await _file(server_state(app), file_id)))

    @app.get(
        "/v1/files/{file_id}/content",
        response_class=FileResponse,
        responses=_content_responses(),
        tags=["batches"],
    )
    async def download_file(file_id: str) -> Response:
        """Download a file. Range requests are supported."""
        state = server_state(app)
        file = await _file(state, file_id)
        path = await asyncio.to_thread(state.queue.batch_files.find, file.id)
        return OpenedFile(
            path,
            headers={"ETag": f'"{file.id}"'},  # the content never changes
            modified_at=file.created_at,
            missing=FileNotFound(f"the file {file.id!r} was deleted"),
            media_type=MEDIA_TYPE,
            filename=file.name,
        )

    @app.delete(
        "/v1/files/{file_id}", response_model=DeletedFile, responses=openapi.error_responses(404, 409), tags=["batches"]
    )
    async def delete_file(file_id: str) -> Response:
        """Delete a file that no unfinished batch reads."""
        queue = server_state(app).queue
        check_file_id(file_id)
        await asyncio.to_thread(queue.file_table.remove, file_id, queue.batch_files.delete)
        return JSONResponse({"id": file_id, "deleted": True, "object": "file"})


def check_file_id(file_id: str) -> None:
    """Check the form of an id.

    Raises:
        FileNotFound: no file can have it.
    """
    if not _ID.fullmatch(file_id):
        raise FileNotFound(f"file {file_id[:80]!r} does not exist; an id is file- and 32 hexadecimal digits")


async def _file(state: ServerState, file_id: str) -> BatchFile:
    check_file_id(file_id)
    return await asyncio.to_thread(state.queue.file_table.get, file_id)


def _store(state: ServerState, body: Body) -> BatchFile:
    """Store the file of a form.

    Raises:
        InvalidRequest: the form is invalid; nothing is stored.
    """
    if not body.content_type.lower().startswith("multipart/form-data"):
        raise UnreadableBody("the body is not multipart/form-data; send the fields purpose and file in a form")
    state.queue.check_data_folder()
    file_id = new_file_id()
    files = state.queue.batch_files
    with files.create(file_id) as file:
        fields = read_multipart(body.content_type, body.pieces(), {"file": file})
        name = _check_form(fields)
        size = file.tell()
    try:
        return state.queue.file_table.add(file_id, name, "batch", size)
    except BaseException:
        with suppress(OSError, KinemaError):
            files.delete(file_id)
        raise


def _check_form(fields: dict[str, str | bytes]) -> str:
    """Return the file's name."""
    unknown = next((name for name in fields if name not in ("file", "purpose")), None)
    if unknown is not None:
        raise InvalidRequest(
            f"unknown field {unknown[:80]!r}; send file and purpose (files expire after KINEMA_KEEP_DAYS)", unknown[:80]
        )
    purpose = fields.get("purpose")
    if purpose is None:
        raise InvalidRequest("purpose is missing; send 'batch'", "purpose")
    if purpose != "batch":
        raise InvalidRequest(f"purpose {str(purpose)[:80]!r} is not supported; use 'batch'", "purpose")
    if "file" not in fields:
        raise InvalidRequest("file is required; send a file in JSON Lines format", "file")
    name = str(fields["file"]) or "requests.jsonl"
    check_text({"file": name})
    if len(name) > MAX_NAME:
        raise InvalidRequest(f"the file's name has {len(name)} characters; use at most {MAX_NAME}", "file")
    return name


def _content_responses() -> dict[int | str, dict[str, Any]]:
    whole = openapi.file_response(MEDIA_TYPE, "The file.")
    partial: dict[int | str, dict[str, Any]] = {
        206: {"description": "The requested range of the file.", "content": whole[200]["content"]}
    }
    return {**whole, **partial, **openapi.range_error(), **openapi.error_responses(400, 404)}
