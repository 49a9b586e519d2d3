"""Middleware around Gradio: sets the content security policy, adds the page's style and closes unused routes."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gradio import Blocks
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Gradio compiles its templates in the browser and sets inline styles, so scripts need 'unsafe-inline' and
# 'unsafe-eval', and styles need 'unsafe-inline'. Everything is loaded from this server.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)
HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"referrer-policy", b"same-origin"),
    (b"x-content-type-options", b"nosniff"),
)
# The Gradio routes that the page uses. All others are closed: they would let a client fill the disk, read files or
# send requests to other hosts through this server.
OPEN = frozenset({"", "/", "/theme.css", "/gradio_api/queue/data", "/gradio_api/queue/join"})
OPEN_FOLDERS = ("/assets/", "/static/")
# The size limit of a call in bytes. Gradio fetches any URL or path that a call marks as a file, so such calls are
# rejected.
MAX_CALL = 128 * 1024
FILE_MARKER = "gradio.FileData"
# Calls are parsed in the event loop, one at a time, so that other requests are served in between.
_CALL = asyncio.Lock()


class PageMiddleware:
    """Wrap Gradio's app of one language.

    The first request starts Gradio's queue: BentoML mounts the app inside another, and a mounted app receives no
    lifespan events.
    """

    def __init__(self, app: ASGIApp, blocks: Blocks, language: str) -> None:
        self._app = app
        self._blocks = blocks
        self._language = language

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the page's requests to Gradio, answer all others with 404, and adapt HTML documents."""
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if scope["type"] != "http" or not (path in OPEN or path.startswith(OPEN_FOLDERS)):
            return await _reject(scope, receive, send, 404)
        if not self._blocks.is_running:
            self._blocks.run_startup_events()  # type: ignore[no-untyped-call]  # Gradio gives it no types
        if path == "/gradio_api/queue/join":
            body = await _read_body(receive)
            async with _CALL:
                if body is None or _contains_file_marker(body):
                    return await _reject(scope, receive, send, 413 if body is None else 400)
                return await self._app(scope, _receive_again(body, receive), self._adapt(send))
        # Gradio must not compress the document, which is adapted below.
        if path in ("", "/"):
            headers = [(name, value) for name, value in scope["headers"] if name != b"accept-encoding"]
            scope = {**scope, "headers": headers}
        return await self._app(scope, receive, self._adapt(send))

    def _adapt(self, send: Send) -> Send:
        start: Message = {}
        body = bytearray()

        async def adapt(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start":
                start = {**message, "headers": [*message.get("headers", ()), *HEADERS]}
                if not _is_document(start):
                    await send(start)
            elif not _is_document(start):
                await send(message)
            else:
                body.extend(message.get("body", b""))
                if not message.get("more_body"):
                    document = self._document(bytes(body))
                    start["headers"] = [pair for pair in start["headers"] if pair[0].lower() != b"content-length"]
                    start["headers"].append((b"content-length", str(len(document)).encode()))
                    await send(start)
                    await send({"type": "http.response.body", "body": document})

        return adapt

    def _document(self, html: bytes) -> bytes:
        additions = (
            b'<link rel="icon" href="../static/icon.svg" type="image/svg+xml">'
            b'<link rel="stylesheet" href="../static/page.css"><script src="../static/page.js"></script>'
        )
        html = html.replace(b'lang="en"', f'lang="{self._language}"'.encode(), 1)
        html = html.replace(b'<link rel="manifest" href="/manifest.json" />', b"")
        return html.replace(b"</head>", additions + b"</head>", 1)


def _is_document(start: Message) -> bool:
    headers = {name.lower(): value for name, value in start["headers"]}
    kind: bytes = headers.get(b"content-type", b"")
    return kind.startswith(b"text/html")


async def _reject(scope: Scope, receive: Receive, send: Send, status: int) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1008})
    else:
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b""})


async def _read_body(receive: Receive) -> bytes | None:
    """Return the request's body; None if it is larger than MAX_CALL or the client disconnected."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        body.extend(message.get("body", b""))
        if len(body) > MAX_CALL:
            return None
        if not message.get("more_body"):
            return bytes(body)


def _receive_again(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that yields the body that was already read."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return pending.pop() if pending else await receive()

    return replay


def _contains_file_marker(body: bytes) -> bool:
    """Return whether a JSON body contains FILE_MARKER, escaped or not; True for invalid JSON."""
    try:
        if b"\\u" in body or b"\0" in body:  # escapes or UTF-16; pairs keep repeated keys
            return FILE_MARKER in json.dumps(json.loads(body, object_pairs_hook=list))
        json.loads(body)
    except (ValueError, RecursionError):
        return True
    return FILE_MARKER.encode() in body
