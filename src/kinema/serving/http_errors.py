"""One shape for every error: what BentoML, Starlette and Gradio answer in shapes of their own goes out in ours."""

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
_CLIENT_GONE = 499  # nginx's; nobody reads the answer, which is there for the log
_LONGEST = 64 * 1024  # an error's body is shorter


class ErrorResponseMiddleware:
    """ASGI middleware around all that answers over HTTP."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as the app does, an error as `{"error": {"code", "message", "param", "type"}}`."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = _Answer(scope, receive, send)
        try:
            await self._app(scope, receive, answer.send)
        except Exception:
            if not answer.begun:
                await answer.fail(500)
            raise  # it is logged where all are


class _Answer:
    """One answer on its way out; an error is held back until its body is whole."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self._held: Message | None = None
        self._body = bytearray()
        self.begun = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] >= 400 and message["status"] != _CLIENT_GONE:
            self._held = message
        elif self._held is None:
            self.begun = True
            await self._send(message)
        else:
            self._body += message.get("body", b"")[: _LONGEST - len(self._body)]
            if not message.get("more_body"):
                await self._send_error(self._held)

    async def _send_error(self, start: Message) -> None:
        if not _is_ours(self._body):
            await self.fail(start["status"], start["headers"])
            return
        self.begun = True
        await self._send(start)
        await self._send({"type": "http.response.body", "body": bytes(self._body)})

    async def fail(self, status: int, raw: list[tuple[bytes, bytes]] | None = None) -> None:
        """Send the error that goes with a status; `raw` are headers to keep beside the body's own."""
        self.begun = True
        body = error_body(status, _code(status), self._message(status, Headers(raw=raw or [])))
        headers = MutableHeaders(raw=list(raw or []))
        for name in ("content-type", "content-length", "content-encoding", "transfer-encoding"):
            del headers[name]
        await JSONResponse(body, status, headers=headers)(self._scope, self._receive, self._send)

    def _message(self, status: int, headers: Headers) -> str:
        path, method = self._scope["path"][:80], self._scope["method"]
        match status:
            case 404:
                return f"there is nothing at {path!r}"
            case 405:
                return f"{path} does not take {method}; it takes {headers.get('allow', 'another method')}"
            case 503:
                return "the server is not ready; try again in a moment"
            case _ if status >= 500:
                return "an internal error; the server's log has the details"
        return HTTPStatus(status).phrase.lower()


def _code(status: int) -> str:
    return _CODES.get(status, "invalid_request" if status < 500 else "internal_error")


def _is_ours(body: bytes | bytearray) -> bool:
    try:
        answer: Any = json.loads(body)
    except ValueError:
        return False
    return isinstance(answer, dict) and isinstance(answer.get("error"), dict) and "code" in answer["error"]
