"""A request's body, form or JSON, as loose fields and a still's bytes."""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

from kinema.errors import InvalidRequest, InvalidStill
from kinema.media.fetch import fetch
from kinema.serving.fields import is_set
from kinema.serving.forms import IMAGE_FIELDS, read_multipart

if TYPE_CHECKING:
    from starlette.requests import Request

    from kinema.settings import Settings

_DATA_URL = re.compile(r"data:([^,]*),(.*)", re.DOTALL | re.IGNORECASE)
_YES, _NO = {"true", "1", "yes", "on"}, {"false", "0", "no", "off"}


class UnreadableBody(InvalidRequest):
    """The body is of a kind that is not read."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a body says. `still` is a picture's bytes, or the address of one, and `image_field` what it came in."""

    fields: dict[str, Any]
    still: bytes | str | None = None
    image_field: str = IMAGE_FIELDS[0]
    title: str | None = None
    keep: bool = False
    pinned: bool = False
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Change:
    """What a body says of a video that is there; None leaves it as it is."""

    title: str | None
    pinned: bool | None


async def read(request: Request) -> Asked:
    """The body, judged only so far as it can be read.

    Raises:
        InvalidRequest: saying what can't be read.
    """
    return _asked(await _fields(request))


async def read_change(request: Request) -> Change:
    """The same of a body that changes a video.

    Raises:
        InvalidRequest: saying what can't be read, or that nothing which can be changed is given.
    """
    given = {name: value for name, value in (await _fields(request)).items() if is_set(value)}
    title, pinned = _text("title", given.pop("title", None)), given.pop("pinned", None)
    if given:
        name = next(iter(given))
        raise InvalidRequest(f"{name} can't be changed; title and pinned can", name)
    if title is None and pinned is None:
        raise InvalidRequest("neither title nor pinned is given: give one of them, or both", "pinned")
    return Change(title, None if pinned is None else _truth("pinned", pinned))


async def _fields(request: Request) -> dict[str, Any]:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return dict(await read_multipart(request.headers["content-type"], request.stream()))
    if kind == "application/x-www-form-urlencoded":
        return await _form(request)
    if kind in ("application/json", ""):
        return _object(await request.body())
    raise UnreadableBody(f"a body of {kind} is not read; send multipart/form-data or application/json")


async def _form(request: Request) -> dict[str, Any]:
    from starlette.exceptions import HTTPException

    try:
        form = await request.form(max_fields=100)
    except HTTPException as error:
        raise InvalidRequest(f"the form can't be read: {error.detail}") from None
    fields: dict[str, Any] = {}
    for name, value in form.multi_items():
        if name in fields:
            raise InvalidRequest(f"{name} is given twice; give it once", name)
        fields[name] = value
    return fields


def _object(body: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(body or b"{}")
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"the body is no JSON: {error}") from None
    if not isinstance(fields, dict):
        raise InvalidRequest("the body is no JSON object; send {...}")
    return fields


def _asked(fields: dict[str, Any]) -> Asked:
    """The fields apart from those that are no settings of a video."""
    given = {name: value for name, value in fields.items() if value != b"" and is_set(value)}
    stills = [name for name in IMAGE_FIELDS if name in given]
    if len(stills) > 1:
        raise InvalidRequest("input_reference and image are the same, and both are given: drop one", "image")
    field = stills[0] if stills else IMAGE_FIELDS[0]
    return Asked(
        still=_still(given.pop(field), field) if stills else None,
        image_field=field,
        title=_text("title", given.pop("title", None)),
        keep=_truth("keep", given.pop("keep", False)),
        pinned=_truth("pinned", given.pop("pinned", False)),
        priority=_whole("priority", given.pop("priority", 0)),
        fields={name: _scalar(name, value) for name, value in given.items()},
    )


def _still(value: object, name: str) -> bytes | str:
    """A picture's bytes from a file, a data: URL or {image_url}; or an http(s) address, which is not fetched here."""
    if isinstance(value, str) and value.lstrip().startswith("{"):  # an object in a form
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(value)
    if isinstance(value, dict):
        value = value.get("image_url")
        if isinstance(value, dict):  # as chat messages write it
            value = value.get("url")
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise InvalidRequest(f"{name} is neither a file nor {{image_url}} with a data: URL", name)
    value = value.strip()
    if found := _DATA_URL.fullmatch(value):
        return _data(found[1], found[2], name)
    if value[:8].lower().startswith(("http://", "https://")):
        return value
    raise InvalidRequest(
        f"{name} {value[:40]!r} is no picture; send a file, or {{image_url}} with a data:image/…;base64, URL", name
    )


def _data(kind: str, payload: str, name: str) -> bytes:
    """What a data: URL holds, read as browsers do (https://fetch.spec.whatwg.org/#data-url-processor).

    Its media type and parameters count for nothing: what a picture is, its bytes tell.
    """
    data = unquote_to_bytes(payload)
    if kind.rpartition(";")[2].strip().lower() != "base64":
        return data
    data = re.sub(rb"[\t\n\f\r ]", b"", data)
    try:
        return base64.b64decode(data.rstrip(b"=") + b"=" * (-len(data.rstrip(b"=")) % 4), validate=True)
    except binascii.Error:
        raise InvalidStill(f"the data: URL in {name} is not valid base64; encode the file anew", name) from None


def fetched(settings: Settings, still: bytes | str | None) -> bytes | None:
    """A still's bytes; an address is asked only where the operator lets that host be.

    Raises:
        InvalidStill: naming the address.
    """
    return fetch(still, settings.image_hosts) if isinstance(still, str) else still


def _scalar(name: str, value: object) -> object:
    if isinstance(value, bool | dict | list | bytes):
        shown = type(value).__name__ if isinstance(value, bytes) else json.dumps(value)[:40]
        raise InvalidRequest(f"{name} {shown} is neither a number nor text", name)
    return value


def _text(name: str, value: object) -> str | None:
    if value is not None and not isinstance(value, str):
        raise InvalidRequest(f"{name} is no text", name)
    return value


def _truth(name: str, value: object) -> bool:
    word = str(value).strip().lower()
    if word not in _YES | _NO:
        raise InvalidRequest(f"{name} {value!r} is neither true nor false", name)
    return word in _YES


def _whole(name: str, value: object) -> int:
    try:
        return int(str(value))
    except ValueError:
        raise InvalidRequest(f"{name} {value!r} is no whole number", name) from None
