"""uvicorn's HTTP/1.1 connection with a limit on connections, time-outs, fast shutdown and interim responses."""

from __future__ import annotations

import json
import logging
import math
import resource
from dataclasses import dataclass
from functools import partial
from heapq import nlargest
from typing import TYPE_CHECKING, ClassVar, Self

import h11
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from kinema.serving.schemas import error_body

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from starlette.types import Scope
    from uvicorn._types import HTTPScope
    from uvicorn.protocols.http.h11_impl import RequestResponseCycle

log = logging.getLogger(__name__)

# The name of the ASGI extension in a request's scope.
INTERIM = "kinema.interim_response"
# HTTP/1.1 clients must accept any number of interim responses (RFC 9110, 15.2), but some fail: Node's fetch at the
# first, Go's client after five. The clients listed here accept them; most of them time out without data.
PATIENT_CLIENTS = (
    b"bentoml",
    b"python-httpx",
    b"python-requests",
    b"python-urllib",
    b"aiohttp",
    b"openai/python",
    b"curl",
    b"java",
    b"mozilla",
)
# File descriptors for databases, workers, temporary files and so on, not for connections.
RESERVED_DESCRIPTORS = 256
WARN_SECONDS = 60.0
ACCEPTED_AT_ONCE = 2048  # BentoML's backlog; asyncio accepts all of it before it processes any connection


@dataclass(frozen=True, slots=True)
class Limits:
    """The maximum number of connections, and time-outs in seconds."""

    connections: int = 1000
    header: float = 20.0
    body: float = 30.0
    """How long a body may be silent or slower than `body_rate`. A faster start is no credit for later."""
    body_rate: float = 1000.0
    """The minimum rate of a body in bytes per second."""
    response: float = 60.0
    """How long a client may read nothing of its response."""
    shutdown: int = 4
    """How long responses may still be sent during shutdown."""

    @classmethod
    def within_descriptors(cls, connections: int) -> Self:
        """Return limits with at most `connections`, and at most half the file descriptors of this process.

        The soft limit on descriptors is raised as far as the hard limit allows.
        """
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = 2 * connections + RESERVED_DESCRIPTORS + ACCEPTED_AT_ONCE
        if resource.RLIM_INFINITY != soft < wanted:
            soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        if soft != resource.RLIM_INFINITY:
            connections = min(connections, max(1, (soft - RESERVED_DESCRIPTORS) // 2))
        return cls(connections=connections)


class Connection(H11Protocol):
    """A client connection of the server process.

    A client that is too slow to send its header or body or to read its response is dropped.

    Above `limits.connections`, silent connections (whose client sends nothing) are dropped, those silent for longest
    first: connections without a complete header if there are any, else those without a complete body. If there are
    none, the new one is rejected.
    """

    limits: ClassVar[Limits] = Limits()
    _warned: ClassVar[float] = -math.inf

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept the connection, or reject it if there are too many."""
        super().connection_made(transport)
        if self.config.timeout_graceful_shutdown is None:  # the default waits for requests without a limit
            self.config.timeout_graceful_shutdown = self.limits.shutdown + 2
        self._since = self.loop.time()  # when the wait for the client began
        self._unsent, self._read = 0, self._since  # buffered bytes of the response, time of their last change
        self._checks = self.loop.call_later(self._interval, self._check)
        if len(self.connections) > self.limits.connections and not self._admit():
            self._reject(503, "too_many_connections", "too many connections are open; try again in a moment")

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the checks."""
        self._checks.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Receive data and update the wait."""
        if self._is_between_requests:  # the next request begins
            self._begin_wait()
        elif self.awaits_body:
            self._since = min(self.loop.time(), self._since + len(data) / self.limits.body_rate)
        super().data_received(data)

    def handle_events(self) -> None:
        """Process the data; add the interim-response extension to the scope of a new request."""
        before = self.cycle
        super().handle_events()
        if self.cycle is before:
            return
        self._begin_wait()
        # The request's task is created but has not started, so it sees the extension.
        if _accepts_interim_responses(self.scope):
            self.scope["extensions"] = {INTERIM: {"send": partial(self._send_interim, self.cycle)}}

    def on_response_complete(self) -> None:
        """Start the wait for the next request."""
        self._begin_wait()
        super().on_response_complete()

    def shutdown(self) -> None:
        """Close the connection: immediately if the server waits for the client, else after the response."""
        if self.awaits_header or self.awaits_body:
            self._reject(503, "queue_unavailable", "the server is shutting down; try again after it restarts")
        else:
            super().shutdown()
            self.loop.call_later(self.limits.shutdown, self.transport.abort)

    @property
    def waiting_seconds(self) -> float:
        """Seconds since the wait for the client began."""
        return self.loop.time() - self._since

    @property
    def _is_between_requests(self) -> bool:
        """Whether a response is sent and no byte of the next request is received."""
        return self.awaits_header and self.timeout_keep_alive_task is not None

    @property
    def awaits_header(self) -> bool:
        """Whether the next request's header is incomplete; the rest of a rejected body counts as part of it."""
        return self.cycle is None or (self.cycle.response_complete and not self.transport.get_write_buffer_size())

    @property
    def awaits_body(self) -> bool:
        """Whether the server waits for the rest of the body."""
        return not self.awaits_header and self.cycle.more_body and not self.flow.read_paused

    @property
    def _interval(self) -> float:
        return min(5.0, self.limits.header / 4, self.limits.body / 4, self.limits.response / 4)

    def _begin_wait(self) -> None:
        self._since = self.loop.time()

    def _admit(self) -> bool:
        """Return whether this connection may stay, after dropping connections whose client sends nothing."""
        others = [c for c in self.connections if c is not self and not c.transport.is_closing()]
        if len(others) < self.limits.connections:
            return True
        if self.loop.time() - self._warned > WARN_SECONDS:
            Connection._warned = self.loop.time()
            log.warning("the maximum of %d connections is reached; silent connections are dropped", len(others))
        ours = [other for other in others if isinstance(other, Connection)]
        silent = [other for other in ours if other.awaits_header] or [other for other in ours if other.awaits_body]
        if not silent:
            return False
        for other in nlargest(max(1, self.limits.connections // 50), silent, key=lambda other: other.waiting_seconds):
            other.drop()
        return True

    def _check(self) -> None:
        """Drop the connection if its client is too slow, and schedule the next check."""
        if self not in self.connections:  # it is closed, or was upgraded to a WebSocket
            return
        if self.flow.read_paused:  # the client waits for the server
            self._begin_wait()
        limits = self.limits
        if self._is_response_stalled():
            self.drop()
        elif self.transport.is_closing():
            pass
        elif self.awaits_header and not self._is_between_requests and self.waiting_seconds > limits.header:
            self._reject(408, "request_timeout", f"no complete request was received within {limits.header:g} seconds")
        elif self.awaits_body and self.waiting_seconds > limits.body:
            reason = f"the body was slower than {limits.body_rate:g} bytes per second for {limits.body:g} seconds"
            self._reject(408, "request_timeout", f"{reason}; send it faster, or send less")
        self._checks = self.loop.call_later(self._interval, self._check)

    def _is_response_stalled(self) -> bool:
        unsent = self.transport.get_write_buffer_size()
        if unsent != self._unsent or not unsent:
            self._unsent, self._read = unsent, self.loop.time()
        return self.loop.time() - self._read > self.limits.response

    def _reject(self, status: int, code: str, message: str) -> None:
        """Send an error response, unless a response has begun, and close the connection."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            if self.cycle is not None:
                self.cycle.disconnected = True
            body = json.dumps(error_body(status, code, message)).encode()
            headers = [
                (b"Content-Type", b"application/json"),
                (b"Content-Length", b"%d" % len(body)),
                (b"Connection", b"close"),
            ]
            response = h11.Response(status_code=status, headers=headers, reason=STATUS_PHRASES[status])
            for event in (response, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.drop()

    def drop(self) -> None:
        """Close the connection, by force after one second."""
        self.transport.close()
        self.loop.call_later(1.0, self.transport.abort)  # if the client does not read the response

    def _send_interim(self, cycle: RequestResponseCycle) -> None:
        """Send `100 Continue`, to prevent a time-out in the client or a proxy."""
        if cycle.response_started or cycle.disconnected or self.transport.is_closing():
            return
        # nginx applies this header to the final response, which it would buffer otherwise.
        headers = [(b"X-Accel-Buffering", b"no")]
        interim = h11.InformationalResponse(status_code=100, headers=headers, reason=b"Continue")
        self.transport.write(self.conn.send(interim))


def interim_sender(scope: Scope) -> Callable[[], None] | None:
    """Return a function that sends an interim response; None if the client may not support it."""
    send: Callable[[], None] | None = scope.get("extensions", {}).get(INTERIM, {}).get("send")
    return send


def _accepts_interim_responses(scope: HTTPScope) -> bool:
    """Return whether the client uses HTTP/1.1 and is known to accept interim responses."""
    agent = dict(scope["headers"]).get(b"user-agent", b"").lower()
    return scope["http_version"] == "1.1" and any(name in agent for name in PATIENT_CLIENTS)
