"""A multipart form's parts as fields: an image as bytes, every other part as text."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from kinema.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Iterable

    from python_multipart.multipart import MultipartCallbacks

IMAGE_FIELDS = ("input_reference", "image")
MAX_PARTS = 100
# Of a part that is no image: the longest prompt in JSON's escapes needs 120,000.
MAX_VALUE_BYTES = 128 * 1024


def read_multipart(content_type: str, body: Iterable[bytes]) -> dict[str, str | bytes]:
    """The fields of a multipart body in pieces; an image that comes as text (a data URL, say) is text.

    The field's name decides what a part is, because clients disagree about the rest: browsers give every Blob a file
    name, Swagger UI sends each value as a Blob of JSON, and other clients send files without a name.

    Raises:
        InvalidRequest: where it can't be read, or a part that must be text is none.
    """
    form = _Form()
    try:
        parser = MultipartParser(_boundary(content_type), form.callbacks)
        for chunk in body:
            parser.write(chunk)
        parser.finalize()
    except FormParserError as error:
        raise InvalidRequest(f"the form can't be read: {error}") from None
    if not form.complete:
        raise InvalidRequest("the form can't be read: its last boundary is missing; send all of it")
    return form.fields


def _boundary(content_type: str) -> bytes:
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise InvalidRequest("the form can't be read: its Content-Type names no boundary")
    return boundary


class _Form:
    """The fields so far, and the part that is being read; fed by the parser's callbacks."""

    def __init__(self) -> None:
        self.fields: dict[str, str | bytes] = {}
        self.complete = False
        self.callbacks: MultipartCallbacks = {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._header_name.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._header_value.extend(data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._name,
            "on_part_data": self._extend,
            "on_part_end": self._end,
            "on_end": self._finish,
        }
        self._parts = 0
        self._begin()

    def _begin(self) -> None:
        self._headers: dict[bytes, bytes] = {}
        self._header_name, self._header_value = bytearray(), bytearray()
        self._field, self._data = "", bytearray()

    def _end_header(self) -> None:
        self._headers[bytes(self._header_name).lower()] = bytes(self._header_value)
        self._header_name, self._header_value = bytearray(), bytearray()

    def _name(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition"))
        if b"name" not in options:
            raise InvalidRequest("the form can't be read: a part has no name in its Content-Disposition")
        self._field = name = options[b"name"].decode("utf-8", "replace")
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise InvalidRequest(f"the form has more than {MAX_PARTS} parts; send one for each setting")
        if name in self.fields:
            raise InvalidRequest(f"{name} is given twice; give it once", name)
        self._is_json = parse_options_header(self._headers.get(b"content-type"))[0] == b"application/json"
        self._is_file = b"filename" in options and not self._is_json

    def _extend(self, data: bytes, start: int, end: int) -> None:
        self._data += data[start:end]
        if self._field not in IMAGE_FIELDS and len(self._data) > MAX_VALUE_BYTES:
            raise self._no_text()

    def _end(self) -> None:
        data, self._data = bytes(self._data), bytearray()
        if self._field in IMAGE_FIELDS and self._is_file:
            self.fields[self._field] = data
            return
        try:
            text = data.decode()
        except UnicodeDecodeError:
            if self._field not in IMAGE_FIELDS:
                raise self._no_text() from None
            self.fields[self._field] = data
        else:
            self.fields[self._field] = _unquoted(text) if self._is_json else text

    def _finish(self) -> None:
        self.complete = True

    def _no_text(self) -> InvalidRequest:
        return InvalidRequest(f"{self._field} is a file, and only input_reference (or image) can be one", self._field)


def _unquoted(text: str) -> str:
    """The text of a value that is called JSON: a string without its quotes, all else as it stands."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text  # Swagger UI sends a sentence without quotes
    return value if isinstance(value, str) else text
