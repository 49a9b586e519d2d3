"""The routes of /v1/batches: run the requests of an uploaded file."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Header, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import ValidationError

from kinema.errors import BatchNotFound, InvalidRequest
from kinema.jobs.idempotency import check_key_length
from kinema.serving import openapi
from kinema.serving.batch_schemas import MAX_LABEL_NAME, BatchList, BatchObject, BatchRequest, batch_of, page_of
from kinema.serving.files_api import check_file_id
from kinema.serving.lifespan import ServerState, server_state
from kinema.serving.rate_limits import CALLER
from kinema.serving.request_parsing import receive
from kinema.serving.submission import check_key, check_text
from kinema.serving.webhook_urls import check_webhook_url

if TYPE_CHECKING:
    from fastapi import FastAPI

    from kinema.jobs.batch_schema import Batch

_ID = re.compile(r"batch_[0-9a-f]{32}")
_After = Annotated[str | None, Query(description="The last id of the previous page.")]
_Key = Annotated[
    str | None, Header(alias="Idempotency-Key", description="Requests with the same key return the same batch.")
]
_Limit = Annotated[int, Query(ge=1, le=100)]


def add_batch_routes(app: FastAPI) -> None:
    """Add the routes to the app."""

    @app.post(
        "/v1/batches",
        response_model=BatchObject,
        responses=openapi.error_responses(400, 404, 409, 413, 415, 429, 507),
        openapi_extra=openapi.json_body(BatchRequest.model_json_schema()),
        tags=["batches"],
    )
    async def create_batch(request: Request, key: _Key = None) -> Response:
        """Run the requests of an uploaded file, within 24 hours."""
        state = server_state(app)
        state.check_open()
        with closing(await receive(request, state.bodies)) as body:
            wanted = _validate(body.fields())
        caller = request.scope.get(CALLER, "")
        return JSONResponse(batch_of(await asyncio.to_thread(_create, state, wanted, caller, key)))

    @app.get("/v1/batches", response_model=BatchList, responses=openapi.error_responses(400, 404), tags=["batches"])
    async def list_batches(after: _After = None, limit: _Limit = 20) -> Response:
        """List batches, newest first."""
        if after is not None:
            _check_id(after)
        batches, has_more = await asyncio.to_thread(server_state(app).queue.batches.list_batches, after, limit)
        return JSONResponse(page_of([batch_of(batch) for batch in batches], has_more=has_more))

    @app.get(
        "/v1/batches/{batch_id}", response_model=BatchObject, responses=openapi.error_responses(404), tags=["batches"]
    )
    async def retrieve_batch(batch_id: str) -> Response:
        """Get the current state of a batch."""
        return JSONResponse(batch_of(await _batch(server_state(app), batch_id)))

    @app.post(
        "/v1/batches/{batch_id}/cancel",
        response_model=BatchObject,
        responses=openapi.error_responses(404, 507),
        tags=["batches"],
    )
    async def cancel_batch(batch_id: str) -> Response:
        """Cancel the waiting and running jobs of a batch. A finished batch is unchanged."""
        state = server_state(app)
        _check_id(batch_id)
        await asyncio.to_thread(state.queue.batches.stop, batch_id, "cancelled")
        state.batches.wake()
        return JSONResponse(batch_of(await _batch(state, batch_id)))


def _validate(fields: dict[str, Any]) -> BatchRequest:
    """Return the request of a body.

    Raises:
        InvalidRequest: a field is missing, unknown or invalid.
    """
    try:
        wanted = BatchRequest.model_validate(fields)
    except ValidationError as error:
        raise _invalid_field(error) from None
    for label, text in (wanted.metadata or {}).items():
        check_text({"metadata": label})
        check_text({"metadata": text})
    return wanted


def _invalid_field(error: ValidationError) -> InvalidRequest:
    """Return the error for the first invalid field."""
    first = error.errors()[0]
    name, *keys = (str(part)[:80] for part in first["loc"] if part != "[key]")
    shown = f"{name} {str(first['input'])[:80]!r}{f' of {keys[0]!r}' if keys else ''}"
    limits = first.get("ctx", {})
    match first["type"]:
        case "missing":
            message = f"{name} is missing; send it"
        case "extra_forbidden":
            message = f"unknown field {name!r}; expected one of {', '.join(BatchRequest.model_fields)}"
        case "literal_error":
            message = f"{shown} is not supported; use {limits['expected']}"
        case "string_type":
            message = f"{shown} is not text; put it in quotation marks"
        case "string_too_short":
            message = f"{name} has an empty name; use 1 to {MAX_LABEL_NAME} characters"
        case "string_too_long":
            message = f"{shown} is too long; use at most {limits['max_length']} characters"
        case "too_long":
            message = f"{name} has more than {limits['max_length']} names; use fewer"
        case _:
            message = f'{shown} is not an object; send names and texts, such as {{"customer": "7"}}'
    return InvalidRequest(message, name)


def _create(state: ServerState, wanted: BatchRequest, caller: str, key: str | None) -> Batch:
    """Create a batch, unless the caller has created one with the same key."""
    check_key(key)
    check_key_length(key)
    webhook_url = check_webhook_url(state.settings, wanted.webhook_url)
    fingerprint = hashlib.sha256(json.dumps(wanted.model_dump(), sort_keys=True).encode()).hexdigest()
    if (known := state.queue.batches.by_key(caller, key, fingerprint)) is not None:
        return known  # also if its file is deleted by now
    state.queue.check_data_folder()
    check_file_id(wanted.input_file_id)
    file = state.queue.file_table.get(wanted.input_file_id)
    if file.purpose != "batch":
        raise InvalidRequest(
            f"the file {file.id!r} has the purpose {file.purpose}; use one with the purpose batch", "input_file_id"
        )
    batch = state.queue.batches.add(
        file.id,
        labels=wanted.metadata,
        owner=caller,
        webhook_url=webhook_url,
        idempotency_key=key,
        fingerprint=fingerprint,
    )
    state.batches.wake()
    return batch


async def _batch(state: ServerState, batch_id: str) -> Batch:
    _check_id(batch_id)
    return await asyncio.to_thread(state.queue.batches.get, batch_id)


def _check_id(batch_id: str) -> None:
    if not _ID.fullmatch(batch_id):
        raise BatchNotFound(f"batch {batch_id[:80]!r} does not exist; an id is batch_ and 32 hexadecimal digits")
