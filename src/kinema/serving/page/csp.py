"""Around Gradio: the document in its language with our style, and nothing asked of the outside world."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gradio import Blocks
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Gradio compiles its templates in the browser, and styles elements one by one: hence both "unsafe". What matters
# stands first: scripts, fonts, pictures and connections come from this server or not at all.
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
# What the page asks of Gradio. All else that it serves is for other apps; here it would let strangers fill the disk,
# read files, or ask elsewhere through this server.
OPEN = frozenset({"", "/", "/theme.css", "/gradio_api/queue/data", "/gradio_api/queue/join"})
OPEN_FOLDERS = ("/assets/", "/static/")
# A call brings the form's values; Gradio would fetch what they name as a file, wherever it lies.
MAX_CALL = 128 * 1024
FILE_MARK = "gradio.FileData"
# A call is parsed in the event loop; of many at once, each waits for its turn, and others get theirs in between.
_CALL = asyncio.Lock()


class PageMiddleware:
    """Gradio's app in one language.

    It starts Gradio's queue with the first request, because an app that is mounted within another (as BentoML does)
    never hears of the server's start.
    """

    def __init__(self, app: ASGIApp, blocks: Blocks, language: str) -> None:
        self._app = app
        self._blocks = blocks
        self._language = language

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as Gradio does where the page asks; documents are adapted on their way out."""
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if scope["type"] != "http" or not (path in OPEN or path.startswith(OPEN_FOLDERS)):
            return await _closed(scope, receive, send, 404)
        if not self._blocks.is_running:
            self._blocks.run_startup_events()  # type: ignore[no-untyped-call]  # Gradio gives it no types
        if path == "/gradio_api/queue/join":
            body = await _body(receive)
            async with _CALL:
                if body is None or _names_file(body):
                    return await _closed(scope, receive, send, 413 if body is None else 400)
                return await self._app(scope, _again(body, receive), self._adapting(send))
        # A compressed document could not be adapted; everything else may be compressed as Gradio likes.
        if path in ("", "/"):
            kept = [(name, value) for name, value in scope["headers"] if name != b"accept-encoding"]
            scope = {**scope, "headers": kept}
        return await self._app(scope, receive, self._adapting(send))

    def _adapting(self, send: Send) -> Send:
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
        ours = (
            b'<link rel="icon" href="../static/icon.svg" type="image/svg+xml">'
            b'<link rel="stylesheet" href="../static/page.css"><script src="../static/page.js"></script>'
        )
        html = html.replace(b'lang="en"', f'lang="{self._language}"'.encode(), 1)
        html = html.replace(b'<link rel="manifest" href="/manifest.json" />', b"")  # of an app at the server's root
        return html.replace(b"</head>", ours + b"</head>", 1)


def _is_document(start: Message) -> bool:
    headers = {name.lower(): value for name, value in start["headers"]}
    kind: bytes = headers.get(b"content-type", b"")
    return kind.startswith(b"text/html")


async def _closed(scope: Scope, receive: Receive, send: Send, status: int) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1008})
    else:
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b""})


async def _body(receive: Receive) -> bytes | None:
    """All of a request's body; None where it is too large, or its sender went."""
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


def _again(body: bytes, receive: Receive) -> Receive:
    """The same body, to be received once more."""
    left: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return left.pop() if left else await receive()

    return again


def _names_file(body: bytes) -> bool:
    """Whether a file is named anywhere in it, however it is spelt; what can't be read may name one."""
    try:
        if b"\\u" in body or b"\0" in body:  # escapes, or UTF-16: as pairs, so that nothing hides behind a repeated key
            return FILE_MARK in json.dumps(json.loads(body, object_pairs_hook=list))
        json.loads(body)
    except (ValueError, RecursionError):
        return True
    return FILE_MARK.encode() in body
