"""Access control before routing: API keys, client addresses, Host and Origin headers, and body sizes."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hashlib
import hmac
import ipaddress
import math
from typing import TYPE_CHECKING, Any, TypeAlias

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.routing import Match

from kinema.errors import RequestTooLarge
from kinema.serving.rate_limits import CALLER, RequestRate, WrongKeys
from kinema.serving.schemas import error_body, error_response

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastapi import FastAPI
    from starlette.routing import BaseRoute
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from kinema.settings import Settings

ErrorParts: TypeAlias = "tuple[int, dict[str, Any], dict[str, str]]"  # status, body, headers

# The certificate that those who verify videos need, wherever they are.
CA_PATH = "/.well-known/kinema-ca.pem"
# These answer without authentication, from any address and with any Host header: they contain no secrets.
PROBES = frozenset({"/livez", "/readyz", CA_PATH})
# The page sends many small requests by itself.
PAGE = "/studio/"
FILES_PATH = "/v1/files"
VERIFY_PATH, VERIFY_PAGE = "/v1/verify", "/studio/verify"
# Paths that accept an image or a video. Other bodies are small, as they are parsed in the event loop.
IMAGE_PATHS = frozenset({"/generate", "/v1/videos", "/v1/videos/sync", VERIFY_PATH, VERIFY_PAGE, "/studio/images"})
PLAIN_BYTES = 128 * 1024
# Methods without side effects, and headers (or their prefixes) that proxies add.
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
# Key of a request's scope: the request was HEAD.
WAS_HEAD = "kinema.was_head"
PROXY_HEADERS = ("forwarded", "x-forwarded-", "x-real-ip", "via")
LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


class AccessControl:
    """ASGI middleware around the whole server. Without API keys it accepts only local clients and local Host names.

    `fastapi_app` is the app whose `state.server` has the settings once the server has started.
    """

    def __init__(self, app: ASGIApp, fastapi_app: FastAPI) -> None:
        self._app = app
        self._fastapi_app = fastapi_app
        self._guard: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on a request, or send an error."""
        state = getattr(self._fastapi_app.state, "server", None)
        if scope["type"] not in ("http", "websocket") or state is None:
            await self._app(scope, receive, send)
            return
        if self._guard is None:
            self._guard = _with_cors(
                _Guard(self._app, state.settings, self._fastapi_app.routes), state.settings.cors_origins
            )
        await self._guard(scope, receive, send)


class _Guard:
    def __init__(self, app: ASGIApp, settings: Settings, routes: Sequence[BaseRoute]) -> None:
        self._app = app
        self._routes = routes
        keys = [key.get_secret_value() for key in settings.api_keys]
        self._keys = [(sent, _caller_of(key)) for key in keys for sent in _as_sent(key)]
        self._wrong_keys = WrongKeys()
        self._rate = RequestRate(settings.key_requests_per_minute)
        self._allow_unauthenticated = settings.allow_unauthenticated
        self._hosts = LOCAL_NAMES | {name.lower() for name in settings.hosts}
        self._origins = frozenset(settings.cors_origins)
        self._any_host = (bool(self._keys) or settings.allow_unauthenticated) and not settings.hosts
        self._max_bytes = int(settings.max_body_mb * 1_000_000)
        self._max_file_bytes = int(settings.max_batch_file_mb * 1_000_000) + PLAIN_BYTES

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        error = await self._throttle(scope, headers) or self._check_access(scope, headers) or self._check_rate(scope)
        if error is None and self._is_unknown_path(scope):
            error = 404, error_body(404, "not_found", f"{scope['path'][:80]!r} does not exist"), {}
        if error is not None:
            await _send_error(error, scope, receive, send)
            return
        if scope["type"] == "http":
            limit = self._limit(scope["path"])
            sent = headers.get("content-length", "0")
            if sent.isdigit() and int(sent) > limit:
                status, body, _ = error_response(_too_large(limit, scope["path"]))
                await _send_error((status, body, {"Connection": "close"}), scope, receive, send)
                return
            receive = _with_limit(receive, limit, scope["path"])
            if scope["method"] == "HEAD":
                scope, receive, send = _head_as_get(scope, send)
        with contextlib.suppress(ClientDisconnect):  # raised in Gradio's routes; no client is left to respond to
            await self._app(scope, receive, send)

    def _limit(self, path: str) -> int:
        """Return the maximum number of bytes of a body."""
        if path == FILES_PATH:
            return self._max_file_bytes
        return self._max_bytes if path in IMAGE_PATHS else min(self._max_bytes, PLAIN_BYTES)

    async def _throttle(self, scope: Scope, headers: Headers) -> ErrorParts | None:
        """Delay a request from an address that sent many wrong keys; return an error if too many are delayed."""
        key = _key(headers)
        if not self._keys or not key or _is_probe(scope) or await self._wrong_keys.turn(_address(scope), key):
            return None
        message = "too many wrong API keys from this address; try again in 10 seconds"
        return 429, error_body(429, "too_many_wrong_keys", message), {"Retry-After": "10"}

    def _check_access(self, scope: Scope, headers: Headers) -> ErrorParts | None:
        if _is_probe(scope):
            return None
        if self._is_cross_site(scope, headers):
            message = "requests from pages of this origin are not allowed; add the origin to KINEMA_CORS_ORIGINS"
            return 403, error_body(403, "origin_not_allowed", message), {}
        name = _host_name(headers.get("host", ""))
        if not self._any_host and name not in self._hosts:
            message = f"Host {name[:80]!r} is not allowed; add it to KINEMA_HOSTS"
            return 403, error_body(403, "host_not_allowed", message), {}
        if not self._keys and not self._allow_unauthenticated and not _is_local_client(scope, headers):
            message = (
                "without API keys only local clients are allowed, and no proxies; "
                "set KINEMA_API_KEYS or KINEMA_ALLOW_UNAUTHENTICATED=true"
            )
            return 403, error_body(403, "address_not_allowed", message), {}
        caller = self._find_key(headers) if self._keys else _address(scope)
        if caller is not None:
            scope[CALLER] = caller
            if self._keys:
                self._wrong_keys.accept(_address(scope), _key(headers))
            return None
        if key := _key(headers):
            self._wrong_keys.add(_address(scope), key)
        message = (
            "a valid API key is required; send it as Authorization: Bearer …, as X-API-Key or as the password of HTTP "
            "Basic authentication (any user name)"
        )
        # Basic alone: Chromium shows no password dialog if the header names another scheme too.
        return (
            401,
            error_body(401, "unknown_key", message),
            {"WWW-Authenticate": 'Basic realm="Kinema", charset="UTF-8"'},
        )

    def _check_rate(self, scope: Scope) -> ErrorParts | None:
        """Return an error if the API key sends too many requests. The page's own requests do not count."""
        if CALLER not in scope or scope["path"].startswith(PAGE) or not (wait := self._rate.take(scope[CALLER])):
            return None
        seconds = math.ceil(wait)
        message = (
            f"this API key may send {self._rate.per_minute} requests per minute (KINEMA_KEY_REQUESTS_PER_MINUTE); try "
            f"again in {seconds} seconds"
        )
        return 429, error_body(429, "too_many_requests", message), {"Retry-After": str(seconds)}

    def _is_unknown_path(self, scope: Scope) -> bool:
        """Return whether no route of the API matches; BentoML's 404 has another format."""
        if scope["type"] != "http" or not scope["path"].startswith("/v1/"):
            return False
        # Routes match a line break, but BentoML's mount does not.
        return "\n" in scope["path"] or all(route.matches(scope)[0] is Match.NONE for route in self._routes)

    def _is_cross_site(self, scope: Scope, headers: Headers) -> bool:
        """Return whether a page of another site sends a request with side effects or opens a WebSocket."""
        if scope["type"] == "http" and scope["method"] in SAFE_METHODS:
            return False
        origin = headers.get("origin")
        if origin in self._origins or "*" in self._origins:
            return False
        if headers.get("sec-fetch-site") == "cross-site":
            return True
        return origin is not None and origin.partition("://")[2].lower() != headers.get("host", "").lower()

    def _find_key(self, headers: Headers) -> str | None:
        """Return the name of the request's key, or None; compares with every key, each in constant time."""
        sent = _key(headers)
        names = [name for key, name in self._keys if hmac.compare_digest(sent, key)]
        return names[0] if names else None


def _head_as_get(scope: Scope, send: Send) -> tuple[Scope, Receive, Send]:
    """Turn a HEAD request into a GET whose response ends after the headers."""
    ended = asyncio.Event()
    received = False

    async def receive() -> Message:
        nonlocal received
        if not received:
            received = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await ended.wait()
        return {"type": "http.disconnect"}  # ends event streams

    async def send_headers(message: Message) -> None:
        if message["type"] == "http.response.start" and not ended.is_set():
            await send(message)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            ended.set()

    return {**scope, "method": "GET", WAS_HEAD: True}, receive, send_headers


def _too_large(limit: int, path: str) -> RequestTooLarge:
    if path == FILES_PATH:
        return RequestTooLarge(
            f"the file is larger than {(limit - PLAIN_BYTES) / 1_000_000:g} MB (KINEMA_MAX_BATCH_FILE_MB); divide it "
            "into several files"
        )
    if limit == PLAIN_BYTES:
        return RequestTooLarge(
            "the body is larger than 128 KB, the maximum for a path that accepts no image; send less"
        )
    remedy = (
        "check the file with the command: kinema verify FILE"
        if path in (VERIFY_PATH, VERIFY_PAGE)
        else "shrink the image"
    )
    return RequestTooLarge(f"the body is larger than {limit / 1_000_000:g} MB (KINEMA_MAX_BODY_MB); {remedy}")


def _with_limit(receive: Receive, limit: int, path: str) -> Receive:
    """Wrap `receive` so that it raises RequestTooLarge after `limit` bytes, whatever Content-Length says."""
    read = 0

    async def limited() -> Message:
        nonlocal read
        message = await receive()
        if message["type"] == "http.request":
            read += len(message.get("body", b""))
            if read > limit:
                raise _too_large(limit, path)
        return message

    return limited


async def _send_error(error: ErrorParts, scope: Scope, receive: Receive, send: Send) -> None:
    status, body, headers = error
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1008, "reason": body["error"]["message"][:120]})
        return
    await JSONResponse(body, status, headers=headers)(scope, receive, send)


def _key(headers: Headers) -> bytes:
    """Return the key of a Bearer token, of X-API-Key, or of the password of Basic authentication; else b""."""
    kind, _, value = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        return value.strip().encode("latin-1")  # the original bytes: Starlette decodes headers as Latin-1
    if kind.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            return b""
    return headers.get("x-api-key", "").encode("latin-1")


def _caller_of(key: str) -> str:
    """Return the name of a key's owner: the same on all servers and at any place in the list of keys."""
    return f"key-{hashlib.sha256(b'kinema ' + key.encode(errors='surrogateescape')).hexdigest()[:16]}"


def _as_sent(key: str) -> set[bytes]:
    """Return the bytes that clients may send for a key: UTF-8, or Latin-1 as in older HTTP."""
    sent = {key.encode(errors="surrogateescape")}  # keeps bytes of the environment that are not UTF-8
    with contextlib.suppress(UnicodeEncodeError):
        sent.add(key.encode("latin-1"))
    return sent


def _is_probe(scope: Scope) -> bool:
    return scope["type"] == "http" and scope["method"] in ("GET", "HEAD") and scope["path"] in PROBES


def _address(scope: Scope) -> str:
    client = scope.get("client")
    return client[0] if client else "a local socket"


def _host_name(host: str) -> str:
    """Return a Host header without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()


def _is_local_client(scope: Scope, headers: Headers) -> bool:
    """Return whether the client is on this machine and is not a proxy."""
    client = scope.get("client")
    is_proxied = any(name.startswith(PROXY_HEADERS) for name in headers)
    return not is_proxied and (client is None or _is_local(client[0]))


def _is_local(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:  # a Unix socket
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
