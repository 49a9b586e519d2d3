"""Read and validate the input file of a batch, line by line, in bounded memory.

{"custom_id": "rocket", "method": "POST", "url": "/v1/videos", "body": {"prompt": "a rocket", "seed": 42}}
"""

from __future__ import annotations

import codecs
import hashlib
import json
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from kinema.errors import InvalidImage, InvalidRequest, KinemaError, RequestTooLarge
from kinema.jobs.batch_schema import BatchLine, LineError
from kinema.serving.request_parsing import parse_fields, parse_json
from kinema.serving.short_messages import shorten, shorten_name
from kinema.serving.submission import check, check_text
from kinema.serving.webhook_urls import check_webhook_url

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

    from kinema.serving.request_parsing import ParsedRequest
    from kinema.settings import Settings

ENDPOINT = "/v1/videos"
MAX_LINES = 50_000
LARGE_BYTES = 2_000_000
MAX_CUSTOM_ID = 512
# A file with more invalid lines, or longer messages, is not read further.
MAX_ERRORS = 50
MAX_ERROR_CHARACTERS = 16_000
_FIELDS = ("custom_id", "method", "url", "body")
_EXAMPLE = '{"custom_id": "1", "method": "POST", "url": "/v1/videos", "body": {"prompt": "a rocket"}}'


@dataclass(frozen=True, slots=True)
class RequestLine:
    """A parsed line. The parameters of its request are not validated yet."""

    custom_id: str
    request: ParsedRequest


class LineReader:
    """Reads the lines of an input file. The longest line may be as large as the body of a single request."""

    def __init__(self, settings: Settings, file: IO[bytes]) -> None:
        self._settings = settings
        self._file = file
        self._max_bytes = int(settings.max_body_mb * 1_000_000)

    def check_all(self) -> Iterator[BatchLine | LineError]:
        """Yield each line that is not blank: to be run, or the reason why it is invalid.

        The file as a whole is invalid if it has no lines or too many; this is the last error then.
        """
        first_lines: dict[bytes, int] = {}
        count = errors = characters = 0
        for number, position, data in self._read_all():
            count += 1
            if count > MAX_LINES:
                message = f"the file has more than {MAX_LINES} requests; divide it into several files"
                yield LineError(InvalidRequest.code, message, None, None)
                return
            try:
                custom_id = self._check(data)
                if (first := first_lines.setdefault(_digest(custom_id), number)) != number:
                    raise InvalidRequest(
                        f"custom_id {custom_id[:80]!r} is used in line {first} too; give each line its own", "custom_id"
                    )
            except KinemaError as error:
                message = f"line {number}: {shorten(str(error))}"
                yield LineError(error.code, message, shorten_name(_param(error)), number)
                errors += 1
                characters += len(message)
                if errors == MAX_ERRORS or characters > MAX_ERROR_CHARACTERS:
                    return
            else:
                yield BatchLine(number, custom_id, position)
        if not count:
            message = f"the file has no requests; write one per line, such as {_EXAMPLE}"
            yield LineError(InvalidRequest.code, message, None, None)

    def read_at(self, position: int) -> RequestLine:
        """Return the line that begins at this position.

        Raises:
            InvalidRequest, InvalidImage: it is invalid, if the file or the settings have changed since `check_all`.
        """
        self._file.seek(position)
        return self._parse(self._file.readline(self._max_bytes + 1))

    def is_large(self, position: int) -> bool:
        """Return whether the line that begins at this position takes much memory to parse."""
        self._file.seek(position)
        return len(self._file.readline(LARGE_BYTES + 1)) > LARGE_BYTES

    def _read_all(self) -> Iterator[tuple[int, int, bytes]]:
        """Yield number, position and bytes of each line that is not blank."""
        position = len(codecs.BOM_UTF8) if self._file.read(3) == codecs.BOM_UTF8 else 0
        self._file.seek(position)
        number = 0
        while data := self._file.readline(self._max_bytes + 1):
            number += 1
            start, position = position, position + len(data)
            while not data.endswith(b"\n") and (rest := self._file.readline(1 << 20)):  # of a line that is too long
                position += len(rest)
                if rest.endswith(b"\n"):
                    break
            if data.strip():
                yield number, start, data

    def _check(self, data: bytes) -> str:
        """Validate a line; return its custom_id."""
        line = self._parse(data)
        check_webhook_url(self._settings, line.request.webhook_url)
        has_last_image = line.request.last_image is not None
        has_image = line.request.image is not None
        check(self._settings, line.request.fields, has_image=has_image, has_last_image=has_last_image)
        return line.custom_id

    def _parse(self, data: bytes) -> RequestLine:
        if len(data) > self._max_bytes:
            raise RequestTooLarge(
                f"the line is larger than {self._settings.max_body_mb:g} MB (KINEMA_MAX_BODY_MB); shrink its image"
            )
        value = parse_json(data, name="the line", parent="body")
        unknown = next((name for name in value if name not in _FIELDS), None)
        if unknown is not None:
            raise InvalidRequest(f"unknown field {unknown[:80]!r}; write a line such as {_EXAMPLE}", unknown[:80])
        return RequestLine(_custom_id(value), _request(value))


def _digest(custom_id: str) -> bytes:
    """Return a hash of a custom_id: 50,000 of them would take much memory."""
    return hashlib.blake2b(custom_id.encode(), digest_size=16).digest()


def _custom_id(value: Mapping[str, Any]) -> str:
    if (custom_id := value.get("custom_id")) is None:
        raise InvalidRequest(f"custom_id is missing; use a text of 1 to {MAX_CUSTOM_ID} characters", "custom_id")
    if not isinstance(custom_id, str):
        shown = json.dumps(custom_id)[:80]
        raise InvalidRequest(f"custom_id {shown} is not text; put it in quotation marks", "custom_id")
    if not 1 <= len(custom_id) <= MAX_CUSTOM_ID:
        raise InvalidRequest(
            f"custom_id {custom_id[:80]!r} has {len(custom_id)} characters; use 1 to {MAX_CUSTOM_ID}", "custom_id"
        )
    check_text({"custom_id": custom_id})
    return custom_id


def _request(value: Mapping[str, Any]) -> ParsedRequest:
    for name, expected in (("method", "POST"), ("url", ENDPOINT)):
        if name not in value:
            raise InvalidRequest(f"{name} is missing; use {expected!r}", name)
        if value[name] != expected:
            raise InvalidRequest(f"{name} {str(value[name])[:80]!r} is not supported; use {expected!r}", name)
    if "body" not in value:
        raise InvalidRequest(f"body is missing; write a line such as {_EXAMPLE}", "body")
    body = value["body"]
    if not isinstance(body, dict):
        raise InvalidRequest(f"body is not an object; write a line such as {_EXAMPLE}", "body")
    request = parse_fields(body)
    if request.pinned:
        raise InvalidRequest("pinned is not supported in a batch; pin the video when it is completed", "pinned")
    return request


def _param(error: KinemaError) -> str | None:
    return error.param if isinstance(error, InvalidRequest | InvalidImage) else None
