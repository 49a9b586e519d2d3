"""Who may come in, and with how much: keys, addresses, host names and bodies, before any face sees a request."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hmac
import ipaddress
from typing import TYPE_CHECKING, Any, TypeAlias

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.routing import Match

from kinema.errors import RequestTooLarge
from kinema.serving.rate_limits import CALLER, WrongKeys
from kinema.serving.schemas import error_body, error_response

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastapi import FastAPI
    from starlette.routing import BaseRoute
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from kinema.settings import Settings

Refused: TypeAlias = "tuple[int, dict[str, Any], dict[str, str]]"  # status, body, headers

# What a service manager asks has no secrets in it, and it may come from another machine by whatever name.
PROBES = frozenset({"/livez", "/readyz"})
# Where an image may come; all other bodies are read whole, and parsed at once.
IMAGE_PATHS = frozenset({"/generate", "/v1/videos", "/v1/videos/sync", "/studio/images"})
PLAIN_BYTES = 128 * 1024
# Methods that change nothing, and what a proxy adds to what it passes on.
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
PROXIES = ("forwarded", "x-forwarded-", "x-real-ip", "via")
LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


class AccessControl:
    """ASGI middleware around everything. Where no key is asked for, only this machine may come in, by its own names.

    `api` is the app whose `state.server` knows the settings once the server has started.
    """

    def __init__(self, app: ASGIApp, api: FastAPI) -> None:
        self._app = app
        self._api = api
        self._around: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or say why not."""
        state = getattr(self._api.state, "server", None)
        if scope["type"] not in ("http", "websocket") or state is None:
            await self._app(scope, receive, send)
            return
        if self._around is None:
            self._around = _with_cors(_Guard(self._app, state.settings, self._api.routes), state.settings.cors_origins)
        await self._around(scope, receive, send)


class _Guard:
    def __init__(self, app: ASGIApp, settings: Settings, routes: Sequence[BaseRoute]) -> None:
        self._app = app
        self._routes = routes
        self._keys = [
            (sent, f"key {number}")
            for number, key in enumerate(settings.api_keys, 1)
            for sent in _as_sent(key.get_secret_value())
        ]
        self._wrong_keys = WrongKeys()
        self._open = settings.open
        self._hosts = LOCAL_NAMES | {name.lower() for name in settings.hosts}
        self._origins = frozenset(settings.cors_origins)
        self._any_host = (bool(self._keys) or settings.open) and not settings.hosts
        self._largest = int(settings.max_body_mb * 1_000_000)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        refused = await self._slowed(scope, headers) or self._refusal(scope, headers)
        if refused is None and self._leads_nowhere(scope):
            refused = 404, error_body(404, "not_found", f"there is nothing at {scope['path'][:80]!r}"), {}
        if refused is not None:
            await _refuse(refused, scope, receive, send)
            return
        if scope["type"] == "http":
            limit = self._largest if scope["path"] in IMAGE_PATHS else min(self._largest, PLAIN_BYTES)
            sent = headers.get("content-length", "0")
            if sent.isdigit() and int(sent) > limit:
                status, body, _ = error_response(_too_large(limit))
                await _refuse((status, body, {"Connection": "close"}), scope, receive, send)
                return
            receive = _counted(receive, limit)
            if scope["method"] == "HEAD":
                scope, receive, send = _answering_head(scope, send)
        with contextlib.suppress(ClientDisconnect):  # in Gradio's own routes; there is nothing to answer any more
            await self._app(scope, receive, send)

    async def _slowed(self, scope: Scope, headers: Headers) -> Refused | None:
        """Wait where this address sent many wrong keys; refuse where many requests wait already."""
        key = _key(headers)
        if not self._keys or not key or _is_probe(scope) or await self._wrong_keys.turn(_address(scope), key):
            return None
        told = (
            "many wrong keys came from this address, so that its keys are looked at one by one; try again in a moment"
        )
        return 429, error_body(429, "too_many_wrong_keys", told), {"Retry-After": "10"}

    def _refusal(self, scope: Scope, headers: Headers) -> Refused | None:
        if _is_probe(scope):
            return None
        if self._is_foreign(scope, headers):
            told = "a page of another site asks this; KINEMA_CORS_ORIGINS names the origins whose pages may"
            return 403, error_body(403, "origin_not_allowed", told), {}
        name = _host_name(headers.get("host", ""))
        if not self._any_host and name not in self._hosts:
            told = f"this server is not called {name[:80]!r}; KINEMA_HOSTS names what else it is called"
            return 403, error_body(403, "host_not_allowed", told), {}
        if not self._keys and not self._open and not _is_near(scope, headers):
            told = "without a key only this machine is answered, and no proxy; set KINEMA_API_KEYS, or KINEMA_OPEN=true"
            return 403, error_body(403, "address_not_allowed", told), {}
        caller = self._known(headers) if self._keys else _address(scope)
        if caller is not None:
            scope[CALLER] = caller
            if self._keys:
                self._wrong_keys.accept(_address(scope), _key(headers))
            return None
        if key := _key(headers):
            self._wrong_keys.add(_address(scope), key)
        told = "a key is asked for: send it as Authorization: Bearer …, or as X-API-Key, or as a password"
        # Basic alone: Chromium asks for no password where another scheme stands in the same header.
        return 401, error_body(401, "unknown_key", told), {"WWW-Authenticate": 'Basic realm="Kinema", charset="UTF-8"'}

    def _leads_nowhere(self, scope: Scope) -> bool:
        """Whether no route of the API knows this address; BentoML would say so in another shape."""
        if scope["type"] != "http" or not scope["path"].startswith("/v1/"):
            return False
        # Routes match a line break, but what BentoML mounts them in does not.
        return "\n" in scope["path"] or all(route.matches(scope)[0] is Match.NONE for route in self._routes)

    def _is_foreign(self, scope: Scope, headers: Headers) -> bool:
        """Whether a browser asks for a change, or opens a socket, because a page of another site told it to."""
        if scope["type"] == "http" and scope["method"] in SAFE:
            return False
        origin = headers.get("origin")
        if origin in self._origins or "*" in self._origins:
            return False
        if headers.get("sec-fetch-site") == "cross-site":
            return True
        return origin is not None and origin.partition("://")[2].lower() != headers.get("host", "").lower()

    def _known(self, headers: Headers) -> str | None:
        """Which key comes with it; every one is compared, each in constant time."""
        given = _key(headers)
        found = [name for key, name in self._keys if hmac.compare_digest(given, key)]
        return found[0] if found else None


def _answering_head(scope: Scope, send: Send) -> tuple[Scope, Receive, Send]:
    """A HEAD request as the GET that it stands for, whose answer ends with its header."""
    ended = asyncio.Event()
    asked = False

    async def receive() -> Message:
        nonlocal asked
        if not asked:
            asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await ended.wait()
        return {"type": "http.disconnect"}  # which ends streams

    async def send_header(message: Message) -> None:
        if message["type"] == "http.response.start" and not ended.is_set():
            await send(message)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            ended.set()

    return {**scope, "method": "GET"}, receive, send_header


def _too_large(limit: int) -> RequestTooLarge:
    if limit == PLAIN_BYTES:
        return RequestTooLarge(
            "the body is larger than 128 KB, which is the most at an address that takes no image: send less"
        )
    return RequestTooLarge(f"the body is larger than {limit / 1_000_000:g} MB (KINEMA_MAX_BODY_MB): shrink the still")


def _counted(receive: Receive, limit: int) -> Receive:
    """The same body, until it turns out to be larger than was said."""
    read = 0

    async def counted() -> Message:
        nonlocal read
        message = await receive()
        if message["type"] == "http.request":
            read += len(message.get("body", b""))
            if read > limit:
                raise _too_large(limit)
        return message

    return counted


async def _refuse(refused: Refused, scope: Scope, receive: Receive, send: Send) -> None:
    status, body, headers = refused
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1008, "reason": body["error"]["message"][:120]})
        return
    await JSONResponse(body, status, headers=headers)(scope, receive, send)


def _key(headers: Headers) -> bytes:
    """The key that was sent: as a bearer's, in a header of its own, or as the password that a browser asked for."""
    kind, _, value = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        return value.strip().encode("latin-1")  # as it came: that is how Starlette decodes headers
    if kind.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            return b""
    return headers.get("x-api-key", "").encode("latin-1")


def _as_sent(key: str) -> set[bytes]:
    """A key as clients send it: in UTF-8, or in Latin-1 as HTTP once had it."""
    sent = {key.encode(errors="surrogateescape")}  # bytes of the environment that are no UTF-8 stay as they are
    with contextlib.suppress(UnicodeEncodeError):
        sent.add(key.encode("latin-1"))
    return sent


def _is_probe(scope: Scope) -> bool:
    return scope["type"] == "http" and scope["method"] in ("GET", "HEAD") and scope["path"] in PROBES


def _address(scope: Scope) -> str:
    client = scope.get("client")
    return client[0] if client else "a local socket"


def _host_name(host: str) -> str:
    """A Host header without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()


def _is_near(scope: Scope, headers: Headers) -> bool:
    """Whether this machine asks, and not for another as a proxy does."""
    client = scope.get("client")
    passed_on = any(name.startswith(PROXIES) for name in headers)
    return not passed_on and (client is None or _is_local(client[0]))


def _is_local(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:  # a socket that is no address of a network
        return True


def _with_cors(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    if not origins:
        return app
    from starlette.middleware.cors import CORSMiddleware

    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=["GET", "POST", "DELETE"],
        allow_headers=["Authorization", "Content-Type", "Idempotency-Key", "X-API-Key"],
        expose_headers=["openai-poll-after-ms", "Retry-After", "X-Kinema-Job", "X-Kinema-Seed", "X-Kinema-Model"],
    )
