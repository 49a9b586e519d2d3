"""A request's body, form or JSON: received to a file, then read as loose fields and a still's bytes."""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import re
import secrets
from dataclasses import dataclass
from tempfile import SpooledTemporaryFile
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote_to_bytes

from kinema.errors import InsufficientDisk, InvalidImage, InvalidRequest, RequestTooLarge
from kinema.media.fetch import fetch
from kinema.serving.decode_process import ClientGone
from kinema.serving.fields import is_set
from kinema.serving.multipart import IMAGE_FIELDS, read_multipart
from kinema.serving.rate_limits import CALLER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from starlette.requests import Request

    from kinema.serving.body_quota import BodyQuota
    from kinema.settings import Settings

# A body of no more is kept in memory, and parsed in the event loop, at once: JSON is parsed in one go, whatever thread
# does it, and no other runs meanwhile. The longest prompt in JSON's escapes takes 120,000.
SMALL_BYTES = 128 * 1024
MAX_FIELDS = 100
PIECE_BYTES = 64 * 1024
# Of base64, decoded at once: between two pieces other threads run.
BASE64_BYTES = 1 << 20
_JSON_IMAGE = re.compile(rb'"data:', re.IGNORECASE)
_DATA_URL = re.compile(r"data:([^,]*),(.*)", re.DOTALL | re.IGNORECASE)
_YES, _NO = {"true", "1", "yes", "on"}, {"false", "0", "no", "off"}


class UnreadableBody(InvalidRequest):
    """The body is of a kind that is not read."""

    code = "unreadable_body"


@dataclass(frozen=True, slots=True)
class ParsedRequest:
    """What a body says. `image` is a picture's bytes, or the address of one, and `image_field` what it came in."""

    fields: dict[str, Any]
    image: bytes | str | None = None
    image_field: str = IMAGE_FIELDS[0]
    title: str | None = None
    keep: bool = False
    pinned: bool = False
    priority: int = 0


@dataclass(frozen=True, slots=True)
class VideoUpdate:
    """What a body says of a video that is there; None leaves it as it is."""

    title: str | None
    pinned: bool | None


@dataclass(frozen=True, slots=True)
class Body:
    """A body that has come whole; a large one is on the disk, and takes no memory until it is read."""

    content_type: str
    size: int
    file: IO[bytes]
    held: contextlib.ExitStack
    """The file, and its share of the room for bodies."""

    @property
    def small(self) -> bool:
        """Whether it may be read in the event loop."""
        return self.size <= SMALL_BYTES

    def close(self) -> None:
        """Let it go."""
        self.held.close()

    def asked(self) -> ParsedRequest:
        """What it asks for, judged only so far as it can be read.

        Raises:
            InvalidRequest: saying what can't be read.
        """
        asked = _asked(self._fields())
        if isinstance(asked.image, str) and not self.small:
            raise RequestTooLarge(
                f"the body has {self.size} bytes, and at most {SMALL_BYTES} are read with the address of an image; "
                "send less, or the image itself"
            )
        return asked

    def change(self) -> VideoUpdate:
        """The same of a body that changes a video.

        Raises:
            InvalidRequest: saying what can't be read, or that nothing which can be changed is given.
        """
        given = {name: value for name, value in self._fields().items() if is_set(value)}
        title, pinned = _text("title", given.pop("title", None)), given.pop("pinned", None)
        if given:
            name = next(iter(given))
            raise InvalidRequest(f"{name} can't be changed; title and pinned can", name)
        if title is None and pinned is None:
            raise InvalidRequest("neither title nor pinned is given: give one of them, or both", "pinned")
        return VideoUpdate(title, None if pinned is None else _truth("pinned", pinned))

    def _fields(self) -> dict[str, Any]:
        match _kind(self.content_type):
            case "multipart/form-data":
                return dict(read_multipart(self.content_type, self._pieces()))
            case "application/x-www-form-urlencoded":
                return _form(self.file.read(SMALL_BYTES + 1))
        return _object(self.file.read())

    def _pieces(self) -> Iterator[bytes]:
        while piece := self.file.read(PIECE_BYTES):
            yield piece


def _kind(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower() or "application/json"


async def receive(request: Request, room: BodyQuota) -> Body:
    """The body, as it comes.

    Raises:
        InvalidRequest: where bodies of its kind are not read.
        ServerBusy: where as many bytes of bodies wait as may.
        InsufficientDisk: where the disk has no room for it.
        ClientGone: the client closed its connection before it was whole.
    """
    content_type = request.headers.get("content-type", "")
    kind = _kind(content_type)
    if kind not in ("multipart/form-data", "application/x-www-form-urlencoded", "application/json"):
        raise UnreadableBody(f"a body of {kind} is not read; send multipart/form-data or application/json")
    return await received(request, room, content_type)


async def received(request: Request, room: BodyQuota, content_type: str = "", most: float = float("inf")) -> Body:
    """Any body, as it comes.

    Raises:
        RequestTooLarge: it has more than `most` bytes.
        ServerBusy, InsufficientDisk: there is no room for it.
        ClientGone: the client closed its connection before it was whole.
    """
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import ClientDisconnect

    with contextlib.ExitStack() as held:
        share = held.enter_context(contextlib.closing(room.share(request.scope.get(CALLER, ""))))
        file: IO[bytes] = held.enter_context(SpooledTemporaryFile(SMALL_BYTES))
        size = 0

        def write(piece: bytes) -> None:
            if size > SMALL_BYTES:
                share.grow(size)
            file.write(piece)

        try:
            async for piece in request.stream():
                size += len(piece)
                if size > most:
                    raise RequestTooLarge(f"the body is larger than {most / 1_000_000:g} MB: shrink the image")
                if size <= SMALL_BYTES:
                    write(piece)
                else:
                    await run_in_threadpool(write, piece)
        except ClientDisconnect:
            raise ClientGone from None
        except OSError as error:
            raise InsufficientDisk(f"the server has no room for the body ({error.strerror}); try again later") from None
        file.seek(0)
        return Body(content_type, size, file, held.pop_all())


def _form(body: bytes) -> dict[str, Any]:
    """The fields of an URL-encoded form."""
    if len(body) > SMALL_BYTES:
        raise RequestTooLarge(
            f"a form without a file is larger than {SMALL_BYTES // 1024} KB; send an image as multipart/form-data"
        )
    try:
        pairs = parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=MAX_FIELDS)
    except ValueError as error:
        raise InvalidRequest(f"the form can't be read: {error}") from None
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            raise InvalidRequest(f"{name} is given twice; give it once", name)
        fields[name] = value
    return fields


def _object(body: bytes) -> dict[str, Any]:
    """The fields of a JSON object. The data: URL of a large one is taken out before it is parsed, and put back."""
    image, mark = None, f"data:{secrets.token_hex(16)}"
    if len(body) > SMALL_BYTES and (found := _JSON_IMAGE.search(body)):
        start = found.start() + 1
        end = max(start, body.find(b'"', start))
        image = body[start:end]
        del found  # it holds the body
        # Base64 needs no escapes, but PHP writes / as \\/. With any other, the string may end elsewhere.
        if image.count(b"\\") == image.count(b"\\/"):
            image = image.replace(b"\\/", b"/")
            body = body[:start] + mark.encode() + body[end:]
    if len(body) > SMALL_BYTES:
        raise RequestTooLarge(
            f"apart from an image, the JSON body is larger than {SMALL_BYTES // 1024} KB; send less, and an "
            "image as a data: URL of plain base64 in input_reference"
        )
    try:
        fields = json.loads(body or b"{}")
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"the body is no JSON: {error}") from None
    if not isinstance(fields, dict):
        raise InvalidRequest("the body is no JSON object; send {...}")
    if image is not None:
        _put_back(fields, mark, image)
    return fields


def _put_back(fields: dict[str, Any], mark: str, image: bytes) -> None:
    """Replace the mark by the text that it stands for, wherever an image may be."""
    for name in IMAGE_FIELDS:
        place: Any = fields
        key = name
        while isinstance(place, dict) and key in place:
            if place[key] == mark:
                place[key] = DataUrl(image)
                return
            place, key = place[key], "url" if place is not fields else "image_url"
    raise RequestTooLarge(f"only {' and '.join(IMAGE_FIELDS)} may be as large as an image")


@dataclass(frozen=True, slots=True)
class DataUrl:
    """The text of a data: URL, in UTF-8."""

    text: bytes


def _asked(fields: dict[str, Any]) -> ParsedRequest:
    """The fields apart from those that are no settings of a video."""
    given = {name: value for name, value in fields.items() if value != b"" and is_set(value)}
    images = [name for name in IMAGE_FIELDS if name in given]
    if len(images) > 1:
        raise InvalidRequest("input_reference and image are the same, and both are given: drop one", "image")
    field = images[0] if images else IMAGE_FIELDS[0]
    return ParsedRequest(
        image=_image(given.pop(field), field) if images else None,
        image_field=field,
        title=_text("title", given.pop("title", None)),
        keep=_truth("keep", given.pop("keep", False)),
        pinned=_truth("pinned", given.pop("pinned", False)),
        priority=_whole("priority", given.pop("priority", 0)),
        fields={name: _scalar(name, value) for name, value in given.items()},
    )


def _image(value: object, name: str) -> bytes | str:
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
    if isinstance(value, DataUrl):
        kind, _, payload = value.text.partition(b",")
        return _data(kind.decode("utf-8", "replace"), payload, name)
    if not isinstance(value, str):
        raise InvalidRequest(f"{name} is neither a file nor {{image_url}} with a data: URL", name)
    value = value.strip()
    if found := _DATA_URL.fullmatch(value):
        return _data(found[1], found[2].encode("utf-8", "surrogatepass"), name)
    if value[:8].lower().startswith(("http://", "https://")):
        return value
    raise InvalidRequest(
        f"{name} {value[:40]!r} is no picture; send a file, or {{image_url}} with a data:image/…;base64, URL", name
    )


def _data(kind: str, payload: bytes, name: str) -> bytes:
    """What a data: URL holds, read as browsers do (https://fetch.spec.whatwg.org/#data-url-processor).

    Its media type and parameters count for nothing: what a picture is, its bytes tell.
    """
    if b"%" in payload:
        if len(payload) > SMALL_BYTES:
            raise InvalidImage(f"the data: URL in {name} is large and percent-encoded; send plain base64", name)
        payload = unquote_to_bytes(payload)
    if kind.rpartition(";")[2].strip().lower() != "base64":
        return payload
    payload = payload.translate(None, b"\t\n\f\r ").rstrip(b"=")
    payload += b"=" * (-len(payload) % 4)
    pieces = (payload[start : start + BASE64_BYTES] for start in range(0, len(payload), BASE64_BYTES))
    try:
        return b"".join(base64.b64decode(piece, validate=True) for piece in pieces)
    except binascii.Error:
        raise InvalidImage(f"the data: URL in {name} is not valid base64; encode the file anew", name) from None


def fetched(settings: Settings, image: bytes | str | None, gone: Callable[[], bool]) -> bytes | None:
    """A still's bytes; an address is asked only where the operator lets that host be, and until the client is `gone`.

    Raises:
        InvalidImage: naming the address.
        Unwanted: as `gone` said.
    """
    return fetch(image, settings.image_hosts, gone) if isinstance(image, str) else image


def _scalar(name: str, value: object) -> object:
    if isinstance(value, bool | dict | list | bytes):
        shown = json.dumps(value) if isinstance(value, bool) else type(value).__name__
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
