"""One JSON format for every error response, including those of BentoML, Starlette and Gradio."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse

from kinema.serving.schemas import error_body

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_CODES = {
    404: "not_found",
    405: "method_not_allowed",
    413: "request_too_large",
    416: "range_not_satisfiable",
    503: "unavailable",
}
_CLIENT_GONE = 499  # nginx's status for the log; the client is disconnected and reads no response
_MAX_ERROR_BYTES = 64 * 1024  # an error body is shorter


class ErrorResponseMiddleware:
    """ASGI middleware around all HTTP routes."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on the app's response; rewrite an error as `{"error": {"code", "message", "param", "type"}}`."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        response = _Response(scope, receive, send)
        try:
            await self._app(scope, receive, response.send)
        except Exception:
            if not response.started:
                await response.send_standard_error(500)
            raise  # BentoML logs it


class _Response:
    """One response being sent; an error is buffered until its body is complete."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self._error_start: Message | None = None
        self._body = bytearray()
        self.started = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] >= 400 and message["status"] != _CLIENT_GONE:
            self._error_start = message
        elif self._error_start is None:
            self.started = True
            await self._send(message)
        else:
            self._body += message.get("body", b"")[: _MAX_ERROR_BYTES - len(self._body)]
            if not message.get("more_body"):
                await self._send_error(self._error_start)

    async def _send_error(self, start: Message) -> None:
        if not _has_error_format(self._body):
            await self.send_standard_error(start["status"], start["headers"])
            return
        self.started = True
        await self._send(start)
        await self._send({"type": "http.response.body", "body": bytes(self._body)})

    async def send_standard_error(self, status: int, raw: list[tuple[bytes, bytes]] | None = None) -> None:
        """Send the standard error of a status; `raw` are headers of the original response."""
        self.started = True
        body = error_body(status, _code(status), self._message(status, Headers(raw=raw or [])))
        headers = MutableHeaders(raw=list(raw or []))
        for name in ("content-type", "content-length", "content-encoding", "transfer-encoding"):
            del headers[name]
        await JSONResponse(body, status, headers=headers)(self._scope, self._receive, self._send)

    def _message(self, status: int, headers: Headers) -> str:
        path, method = self._scope["path"][:80], self._scope["method"]
        match status:
            case 404:
                return f"{path!r} does not exist"
            case 405:
                return f"{path} does not support {method}; use {headers.get('allow', 'another method')}"
            case 503:
                return "the server is not ready; try again in a moment"
            case _ if status >= 500:
                return "internal error; see the server's log"
        return HTTPStatus(status).phrase.lower()


def _code(status: int) -> str:
    return _CODES.get(status, "invalid_request" if status < 500 else "internal_error")


def _has_error_format(body: bytes | bytearray) -> bool:
    try:
        parsed: Any = json.loads(body)
    except ValueError:
        return False
    return isinstance(parsed, dict) and isinstance(parsed.get("error"), dict) and "code" in parsed["error"]
