"""Receive the body of a request, a form or JSON, and parse it into fields and the bytes of images."""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import re
import secrets
from collections import Counter
from dataclasses import dataclass
from tempfile import SpooledTemporaryFile
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote_to_bytes

from kinema.errors import InsufficientDisk, InvalidImage, InvalidRequest, RequestTooLarge
from kinema.jobs.job import check_priority
from kinema.media.fetch import fetch
from kinema.serving.decode_process import ClientGone
from kinema.serving.fields import is_set
from kinema.serving.multipart import FILE_FIELDS, IMAGE_FIELDS, LAST_IMAGE_FIELD, read_multipart
from kinema.serving.rate_limits import CALLER
from kinema.values import VideoRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from starlette.requests import Request

    from kinema.serving.body_quota import BodyQuota
    from kinema.settings import Settings

# Up to this size a body stays in memory and is parsed in the event loop: `json.loads` holds the GIL, so a thread would
# not help. The longest prompt takes 120,000 bytes with JSON escapes.
SMALL_BYTES = 128 * 1024
MAX_FIELDS = 100
PIECE_BYTES = 64 * 1024
# Base64 is decoded in pieces of this size, so that other threads run in between.
BASE64_BYTES = 1 << 20
MAX_IMAGES = 2
_MARKER = "kinema-image:"
_JSON_IMAGE = re.compile(rb'"data:', re.IGNORECASE)
_DATA_URL = re.compile(r"data:([^,]*),(.*)", re.DOTALL | re.IGNORECASE)
FLAGS = {name for name, field in VideoRequest.model_fields.items() if field.annotation is bool}
_YES, _NO = {"true", "1", "yes", "on"}, {"false", "0", "no", "off"}


class UnreadableBody(InvalidRequest):
    """The Content-Type of the body is not supported."""

    code = "unreadable_body"


@dataclass(frozen=True, slots=True)
class ParsedRequest:
    """The contents of a body. Images are bytes or their URLs; `image_field` is the field that contained the first."""

    fields: dict[str, Any]
    image: bytes | str | None = None
    image_field: str = IMAGE_FIELDS[0]
    last_image: bytes | str | None = None
    title: str | None = None
    keep: bool = False
    pinned: bool = False
    priority: int | None = None
    webhook_url: str | None = None

    @property
    def has_image(self) -> bool:
        """Whether there is any image."""
        return self.image is not None or self.last_image is not None

    @property
    def has_url(self) -> bool:
        """Whether an image is to be downloaded."""
        return isinstance(self.image, str) or isinstance(self.last_image, str)


@dataclass(frozen=True, slots=True)
class VideoUpdate:
    """Changes to an existing video; None leaves the value unchanged."""

    title: str | None
    pinned: bool | None


@dataclass(frozen=True, slots=True)
class Body:
    """A complete body. A large one is in a temporary file and takes no memory until it is read."""

    content_type: str
    size: int
    file: IO[bytes]
    resources: contextlib.ExitStack
    """Closes the file and its reservation in the `BodyQuota`."""

    @property
    def small(self) -> bool:
        """Whether it may be parsed in the event loop."""
        return self.size <= SMALL_BYTES

    def close(self) -> None:
        """Close the file and release its reservation."""
        self.resources.close()

    def parse(self) -> ParsedRequest:
        """Parse a request for a video; the parameters are not validated.

        Raises:
            InvalidRequest: a part can't be parsed.
        """
        parsed = parse_fields(self.fields())
        if parsed.has_url and not self.small:
            raise RequestTooLarge(
                f"the body has {self.size} bytes; with an image URL the maximum is {SMALL_BYTES}; "
                "send less, or send the image itself"
            )
        return parsed

    def parse_update(self) -> VideoUpdate:
        """Parse changes to a video.

        Raises:
            InvalidRequest: a part can't be parsed, can't be changed, or there is no change.
        """
        sent = {name: value for name, value in self.fields().items() if is_set(value)}
        title, pinned = _check_text("title", sent.pop("title", None)), sent.pop("pinned", None)
        if sent:
            name = next(iter(sent))
            raise InvalidRequest(f"{name} can't be changed; only title and pinned can", name)
        if title is None and pinned is None:
            raise InvalidRequest("title or pinned is required; send one or both", "pinned")
        return VideoUpdate(title, None if pinned is None else _to_bool("pinned", pinned))

    def fields(self) -> dict[str, Any]:
        """Parse a form or a JSON object.

        Raises:
            InvalidRequest: it can't be parsed.
        """
        match _media_type(self.content_type):
            case "multipart/form-data":
                return dict(read_multipart(self.content_type, self.pieces()))
            case "application/x-www-form-urlencoded":
                return _parse_form(self.file.read(SMALL_BYTES + 1))
        return parse_json(self.file.read())

    def pieces(self) -> Iterator[bytes]:
        """Yield the body in pieces."""
        while piece := self.file.read(PIECE_BYTES):
            yield piece


def _media_type(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower() or "application/json"


async def receive(request: Request, quota: BodyQuota) -> Body:
    """Receive a form or JSON body.

    Raises:
        InvalidRequest: the Content-Type is not supported.
        ServerBusy: the quota for bodies is used up.
        InsufficientDisk: the disk is full.
        ClientGone: the client disconnected before the body was complete.
    """
    content_type = request.headers.get("content-type", "")
    media_type = _media_type(content_type)
    if media_type not in ("multipart/form-data", "application/x-www-form-urlencoded", "application/json"):
        raise UnreadableBody(
            f"Content-Type {media_type} is not supported; send multipart/form-data or application/json"
        )
    return await receive_any(request, quota, content_type)


async def receive_any(
    request: Request, quota: BodyQuota, content_type: str = "", max_bytes: float = float("inf")
) -> Body:
    """Receive a body of any Content-Type.

    Raises:
        RequestTooLarge: it has more than `max_bytes` bytes.
        ServerBusy: the quota for bodies is used up.
        InsufficientDisk: the disk is full.
        ClientGone: the client disconnected before the body was complete.
    """
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import ClientDisconnect

    with contextlib.ExitStack() as resources:
        reservation = resources.enter_context(contextlib.closing(quota.reserve(request.scope.get(CALLER, ""))))
        file: IO[bytes] = resources.enter_context(SpooledTemporaryFile(SMALL_BYTES))
        size = 0

        def write(piece: bytes) -> None:
            if size > SMALL_BYTES:
                reservation.grow(size)
            file.write(piece)

        try:
            async for piece in request.stream():
                size += len(piece)
                if size > max_bytes:
                    raise RequestTooLarge(f"the body is larger than {max_bytes / 1_000_000:g} MB; shrink the image")
                if size <= SMALL_BYTES:
                    write(piece)
                else:
                    await run_in_threadpool(write, piece)
        except ClientDisconnect:
            raise ClientGone from None
        except OSError as error:
            raise InsufficientDisk(f"the server can't store the body ({error.strerror}); try again later") from None
        file.seek(0)
        return Body(content_type, size, file, resources.pop_all())


def _parse_form(body: bytes) -> dict[str, Any]:
    """Parse a URL-encoded form."""
    if len(body) > SMALL_BYTES:
        raise RequestTooLarge(
            f"a URL-encoded form can have at most {SMALL_BYTES // 1024} KB; send an image as multipart/form-data"
        )
    try:
        pairs = parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=MAX_FIELDS)
    except ValueError as error:
        raise InvalidRequest(f"the form can't be parsed: {error}") from None
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            raise InvalidRequest(f"{name} is sent twice; send it once", name)
        fields[name] = value
    return fields


def parse_json(body: bytes, *, name: str = "the body", parent: str | None = None) -> dict[str, Any]:
    """Parse a JSON object. In a large one, markers replace the data: URLs of images during parsing.

    Args:
        body: The object in UTF-8.
        name: What it is, for messages.
        parent: The field with the object that may contain images; None: the object itself.

    Raises:
        InvalidRequest: it is not a JSON object, or is too large without its images.
    """
    images: dict[str, bytes] = {}
    while len(body) > SMALL_BYTES and len(images) < MAX_IMAGES and (start := _find_image(body)):
        end = max(start, body.find(b'"', start))
        image, marker = body[start:end], f"{_MARKER}{secrets.token_hex(16)}"
        # Base64 needs no escapes, but PHP writes / as \\/. After any other escape, the string may end elsewhere.
        if image.count(b"\\") != image.count(b"\\/"):
            break
        images[marker] = image.replace(b"\\/", b"/")
        del image
        body = body[:start] + marker.encode() + body[end:]
    if len(body) > SMALL_BYTES:
        raise RequestTooLarge(
            f"{name} without the image is larger than {SMALL_BYTES // 1024} KB; send less, and the "
            "image as a plain base64 data: URL in input_reference"
        )
    try:
        fields = json.loads(body or b"{}", object_pairs_hook=_to_object)
    except InvalidRequest:
        raise
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{name} is not valid JSON: {error}") from None
    if not isinstance(fields, dict):
        raise InvalidRequest(f"{name} is not a JSON object; send {{...}}")
    for marker, image in images.items():
        _restore_image(fields if parent is None else fields.get(parent), marker, image)
    return fields


def _find_image(body: bytes) -> int:
    """Return where a string of JSON begins that is a data: URL; 0 if there is none."""
    match = _JSON_IMAGE.search(body)
    return 0 if match is None else match.start() + 1


def _to_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object.

    Raises:
        InvalidRequest: a name occurs twice.
    """
    fields = dict(pairs)
    if len(fields) < len(pairs):
        name = Counter(name for name, _ in pairs).most_common(1)[0][0][:80]
        raise InvalidRequest(f"{name!r} occurs twice in an object; send it once", name)
    return fields


def _restore_image(fields: Any, marker: str, image: bytes) -> None:
    """Replace the marker with the data: URL, in any field that may contain an image."""
    for name in FILE_FIELDS:
        parent: Any = fields
        key = name
        while isinstance(parent, dict) and key in parent:
            if parent[key] == marker:
                parent[key] = DataUrl(image)
                return
            parent, key = parent[key], "url" if parent is not fields else "image_url"
    raise RequestTooLarge(f"only {', '.join(IMAGE_FIELDS)} and {LAST_IMAGE_FIELD} can contain an image")


@dataclass(frozen=True, slots=True)
class DataUrl:
    """The text of a data: URL, in UTF-8."""

    text: bytes


def parse_fields(fields: Mapping[str, Any]) -> ParsedRequest:
    """Separate the video's parameters from the other fields; the parameters are not validated.

    Raises:
        InvalidRequest: another field is invalid.
    """
    sent = {name: value for name, value in fields.items() if value != b"" and is_set(value)}
    images = [name for name in IMAGE_FIELDS if name in sent]
    if len(images) > 1:
        raise InvalidRequest("image is an alias of input_reference, and both are sent; remove one", "image")
    field = images[0] if images else IMAGE_FIELDS[0]
    return ParsedRequest(
        image=_parse_image(sent.pop(field), field) if images else None,
        image_field=field,
        last_image=_parse_image(sent.pop(LAST_IMAGE_FIELD), LAST_IMAGE_FIELD) if LAST_IMAGE_FIELD in sent else None,
        title=_check_text("title", sent.pop("title", None)),
        keep=_to_bool("keep", sent.pop("keep", False)),
        pinned=_to_bool("pinned", sent.pop("pinned", False)),
        priority=_to_priority(sent.pop("priority")) if "priority" in sent else None,
        webhook_url=_check_text("webhook_url", sent.pop("webhook_url", None)),
        fields={name: _check_scalar(name, value) for name, value in sent.items()},
    )


def _parse_image(value: object, name: str) -> bytes | str:
    """Return the bytes of an image in a file, a data: URL or {image_url}; or its http(s) URL, not fetched yet."""
    if isinstance(value, str) and value.lstrip().startswith("{"):  # JSON in a form field
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(value)
    if isinstance(value, dict):
        value = value.get("image_url")
        if isinstance(value, dict):  # as in the messages of OpenAI's chat API
            value = value.get("url")
    if isinstance(value, bytes):
        return value
    if isinstance(value, DataUrl):
        media_type, _, payload = value.text.partition(b",")
        return _decode_data_url(media_type.decode("utf-8", "replace"), payload, name)
    if not isinstance(value, str):
        raise InvalidRequest(f"{name} must be a file or {{image_url}} with a data: URL", name)
    value = value.strip()
    if match := _DATA_URL.fullmatch(value):
        return _decode_data_url(match[1], match[2].encode("utf-8", "surrogatepass"), name)
    if value[:8].lower().startswith(("http://", "https://")):
        return value
    raise InvalidRequest(
        f"{name} {value[:40]!r} is not an image; send a file, or {{image_url}} with a data:image/…;base64, URL", name
    )


def _decode_data_url(media_type: str, payload: bytes, name: str) -> bytes:
    """Decode a data: URL as browsers do (https://fetch.spec.whatwg.org/#data-url-processor).

    Its media type is ignored: the bytes determine the format of the image.
    """
    if b"%" in payload:
        if len(payload) > SMALL_BYTES:
            raise InvalidImage(f"the data: URL in {name} is large and percent-encoded; send plain base64", name)
        payload = unquote_to_bytes(payload)
    if media_type.rpartition(";")[2].strip().lower() != "base64":
        return payload
    payload = payload.translate(None, b"\t\n\f\r ").rstrip(b"=")
    payload += b"=" * (-len(payload) % 4)
    pieces = (payload[start : start + BASE64_BYTES] for start in range(0, len(payload), BASE64_BYTES))
    try:
        return b"".join(base64.b64decode(piece, validate=True) for piece in pieces)
    except binascii.Error:
        raise InvalidImage(f"the data: URL in {name} is not valid base64; encode the file again", name) from None


def fetch_images(
    settings: Settings, request: ParsedRequest, gone: Callable[[], bool]
) -> tuple[bytes | None, bytes | None]:
    """Return the bytes of the image and of the last image.

    Images are downloaded only from the hosts in the settings, and until `gone()` is true.

    Raises:
        InvalidImage: an image can't be downloaded from its URL; `param` is its field.
        FetchCancelled: `gone()` returned true.
    """
    data: list[bytes | None] = []
    for image, field in ((request.image, request.image_field), (request.last_image, LAST_IMAGE_FIELD)):
        try:
            data.append(fetch(image, settings.image_hosts, gone) if isinstance(image, str) else image)
        except InvalidImage as error:
            error.param = field
            raise
    return data[0], data[1]


def _check_scalar(name: str, value: object) -> object:
    if isinstance(value, bool) and name in FLAGS:
        return value
    if isinstance(value, bool | dict | list | bytes):
        shown = json.dumps(value) if isinstance(value, bool) else type(value).__name__
        raise InvalidRequest(f"{name} must be a number or text, got {shown}", name)
    return value


def _check_text(name: str, value: object) -> str | None:
    if value is not None and not isinstance(value, str):
        raise InvalidRequest(f"{name} must be text", name)
    return value


def _to_bool(name: str, value: object) -> bool:
    word = str(value).strip().lower()
    if word not in _YES | _NO:
        raise InvalidRequest(f"{name} must be true or false, got {value!r}", name)
    return word in _YES


def _to_priority(value: object) -> int:
    priority = _to_int("priority", value)
    check_priority(priority)
    return priority


def _to_int(name: str, value: object) -> int:
    try:
        return int(str(value))
    except ValueError:
        raise InvalidRequest(f"{name} must be an integer, got {value!r}", name) from None
