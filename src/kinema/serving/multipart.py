"""Parse a multipart form: images as bytes, every other part as text."""

from __future__ import annotations

import json
from typing import IO, TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from kinema.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from python_multipart.multipart import MultipartCallbacks

IMAGE_FIELDS = ("input_reference", "image")
LAST_IMAGE_FIELD = "last_image"
FILE_FIELDS = (*IMAGE_FIELDS, LAST_IMAGE_FIELD)
MAX_PARTS = 100
# For parts other than images. The longest prompt takes 120,000 bytes with JSON escapes.
MAX_VALUE_BYTES = 128 * 1024


def read_multipart(
    content_type: str, body: Iterable[bytes], files: Mapping[str, IO[bytes]] | None = None
) -> dict[str, str | bytes]:
    """Return the fields of a multipart body; an image sent as text (such as a data: URL) is returned as text.

    `files` are the files to which fields of any size are written; instead of their content, their file names are
    returned.

    The field's name determines whether a part is an image, because clients differ in the rest: browsers give every
    Blob a file name, Swagger UI sends each value as a Blob of JSON, and other clients send files without a name.

    Raises:
        InvalidRequest: the form can't be parsed, or a part that must be text is not.
    """
    form = _Form(files or {})
    try:
        parser = MultipartParser(_boundary(content_type), form.callbacks)
        for chunk in body:
            parser.write(chunk)
        parser.finalize()
    except FormParserError as error:
        raise InvalidRequest(f"the form can't be parsed: {error}") from None
    if not form.complete:
        raise InvalidRequest("the form can't be parsed: its last boundary is missing; send the complete form")
    return form.fields


def _boundary(content_type: str) -> bytes:
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise InvalidRequest("the form can't be parsed: its Content-Type has no boundary")
    return boundary


class _Form:
    """The parsed fields and the current part, updated by the parser's callbacks."""

    def __init__(self, files: Mapping[str, IO[bytes]]) -> None:
        self._files = files
        self._file_names = " and ".join(files) if files else "input_reference (or image) and last_image"
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
            "on_end": self._complete,
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
            raise InvalidRequest("the form can't be parsed: a part has no name in its Content-Disposition")
        self._field = name = options[b"name"].decode("utf-8", "replace")
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise InvalidRequest(f"the form has more than {MAX_PARTS} parts; send one per field")
        if name in self.fields:
            raise InvalidRequest(f"{name} is sent twice; send it once", name)
        self._is_json = parse_options_header(self._headers.get(b"content-type"))[0] == b"application/json"
        self._is_file = b"filename" in options and not self._is_json
        self._file_name = options.get(b"filename", b"").decode("utf-8", "replace")

    def _extend(self, data: bytes, start: int, end: int) -> None:
        if self._field in self._files:
            self._files[self._field].write(data[start:end])
            return
        self._data += data[start:end]
        if self._field not in FILE_FIELDS and len(self._data) > MAX_VALUE_BYTES:
            raise self._not_text()

    def _end(self) -> None:
        data, self._data = bytes(self._data), bytearray()
        if self._field in self._files:
            self.fields[self._field] = self._file_name
            return
        if self._field in FILE_FIELDS and self._is_file:
            self.fields[self._field] = data
            return
        try:
            text = data.decode()
        except UnicodeDecodeError:
            if self._field not in FILE_FIELDS:
                raise self._not_text() from None
            self.fields[self._field] = data
        else:
            self.fields[self._field] = _unquote(text) if self._is_json else text

    def _complete(self) -> None:
        self.complete = True

    def _not_text(self) -> InvalidRequest:
        return InvalidRequest(f"{self._field} must be text; only {self._file_names} can be files", self._field)


def _unquote(text: str) -> str:
    """Return a JSON string without its quotes; return any other text unchanged."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text  # Swagger UI sends text without quotes as JSON
    return value if isinstance(value, str) else text
