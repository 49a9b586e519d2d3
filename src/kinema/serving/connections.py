"""A client's connection: uvicorn's, with a bound on how many there are, time-outs, an end, and interim responses."""

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

# The name of the extension in a request's scope.
INTERIM = "kinema.interim_response"
# HTTP/1.1 asks every client to read any number of interim responses (RFC 9110, 15.2), and some fail at them: Node's
# fetch at the first, Go's client after five. These were seen to wait on, and most of them give up after a silence.
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
# Descriptors that no connection takes: for databases, workers, files that are being written, and so on.
RESERVED_DESCRIPTORS = 256
WARN_SECONDS = 60.0
ACCEPTED_AT_ONCE = 2048  # BentoML's backlog, of which asyncio accepts all before it looks at any


@dataclass(frozen=True, slots=True)
class Limits:
    """How many clients there may be, and how long each may take, in seconds."""

    connections: int = 1000
    header: float = 20.0
    body: float = 30.0
    """For which a body may be behind: in silence, or slower than `body_rate`. What comes ahead of it is no credit."""
    body_rate: float = 1000.0
    """Bytes a second, the least of a body that comes."""
    reading: float = 60.0
    """For a client that reads nothing of its response."""
    ending: int = 4
    """For responses that are being sent when the server ends."""

    @classmethod
    def within_descriptors(cls, connections: int) -> Self:
        """At most so many connections, and no more than this process may have descriptors for: two for each.

        The soft bound on descriptors is raised so far as the hard one lets it.
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
    """One connection of the server's process.

    A client that takes too long is dropped, whether it sends its header or its body or reads its response.

    Where there are more than `limits.connections`, one makes room whose client keeps the server waiting, the longest
    waiting first: without a complete header if there is one, else without a complete body. Where no client keeps the
    server waiting, the newest is refused.
    """

    limits: ClassVar[Limits] = Limits()
    _warned: ClassVar[float] = -math.inf

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin, where there is room."""
        super().connection_made(transport)
        if self.config.timeout_graceful_shutdown is None:  # then a request would be waited for, however long it takes
            self.config.timeout_graceful_shutdown = self.limits.ending + 2
        self._since = self.loop.time()  # when the client was last known to do what is expected of it
        self._unsent, self._read = 0, self._since  # bytes of a response that wait, and when they last changed
        self._checks = self.loop.call_later(self._interval, self._check)
        if len(self.connections) > self.limits.connections and not self._find_room():
            self._give_up(503, "too_many_connections", "too many connections are open; try again in a moment")

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._checks.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what came."""
        if self._is_idle:  # a next request begins
            self._begin_wait()
        elif self.awaits_body:
            self._since = min(self.loop.time(), self._since + len(data) / self.limits.body_rate)
        super().data_received(data)

    def handle_events(self) -> None:
        """Read what came; a new request learns how to send interim responses."""
        before = self.cycle
        super().handle_events()
        if self.cycle is before:
            return
        self._begin_wait()
        # The request's task is made by now, and has not begun: it will find this in its scope.
        if _goes_on_waiting(self.scope):
            self.scope["extensions"] = {INTERIM: {"send": partial(self._send_interim, self.cycle)}}

    def on_response_complete(self) -> None:
        """Go on to the next request."""
        self._begin_wait()
        super().on_response_complete()

    def shutdown(self) -> None:
        """Begin to end with the server: at once where the client keeps it waiting, else once the response is sent."""
        if self.awaits_header or self.awaits_body:
            self._give_up(503, "queue_unavailable", "the server is ending; try again when it is back")
        else:
            super().shutdown()
            self.loop.call_later(self.limits.ending, self.transport.abort)

    @property
    def waited(self) -> float:
        """Seconds for which the client keeps the server waiting, or would if the server had nothing to do."""
        return self.loop.time() - self._since

    @property
    def _is_idle(self) -> bool:
        """Whether a response is sent, and no byte of a next request is here."""
        return self.awaits_header and self.timeout_keep_alive_task is not None

    @property
    def awaits_header(self) -> bool:
        """Whether the next request's header is not complete; what is left of a refused body counts as its beginning."""
        return self.cycle is None or (self.cycle.response_complete and not self.transport.get_write_buffer_size())

    @property
    def awaits_body(self) -> bool:
        """Whether the rest of the body is waited for."""
        return not self.awaits_header and self.cycle.more_body and not self.flow.read_paused

    @property
    def _interval(self) -> float:
        return min(5.0, self.limits.header / 4, self.limits.body / 4, self.limits.reading / 4)

    def _begin_wait(self) -> None:
        self._since = self.loop.time()

    def _find_room(self) -> bool:
        """Whether there is room for this one, if need be because others, some at once, were dropped."""
        others = [c for c in self.connections if c is not self and not c.transport.is_closing()]
        if len(others) < self.limits.connections:
            return True
        if self.loop.time() - self._warned > WARN_SECONDS:
            Connection._warned = self.loop.time()
            log.warning("%d connections are open, as many as may be: those that keep silent are dropped", len(others))
        ours = [other for other in others if isinstance(other, Connection)]
        silent = [other for other in ours if other.awaits_header] or [other for other in ours if other.awaits_body]
        if not silent:
            return False
        for other in nlargest(max(1, self.limits.connections // 50), silent, key=lambda other: other.waited):
            other.drop()
        return True

    def _check(self) -> None:
        """Drop the connection where its client takes too long; else look again later."""
        if self not in self.connections:  # it is gone, or a websocket's by now
            return
        if self.flow.read_paused:  # it is the server that takes its time
            self._begin_wait()
        limits = self.limits
        if self._reads_nothing():
            self.drop()
        elif self.transport.is_closing():
            pass
        elif self.awaits_header and not self._is_idle and self.waited > limits.header:
            self._give_up(408, "request_timeout", f"no complete request came within {limits.header:g} seconds")
        elif self.awaits_body and self.waited > limits.body:
            slow = f"the body came slower than {limits.body_rate:g} bytes a second for {limits.body:g} seconds"
            self._give_up(408, "request_timeout", f"{slow}; send it faster, or less")
        self._checks = self.loop.call_later(self._interval, self._check)

    def _reads_nothing(self) -> bool:
        unsent = self.transport.get_write_buffer_size()
        if unsent != self._unsent or not unsent:
            self._unsent, self._read = unsent, self.loop.time()
        return self.loop.time() - self._read > self.limits.reading

    def _give_up(self, status: int, code: str, message: str) -> None:
        """Say why, and close."""
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
        """Close, whatever the client does."""
        self.transport.close()
        self.loop.call_later(1.0, self.transport.abort)  # where it does not read what was said

    def _send_interim(self, cycle: RequestResponseCycle) -> None:
        """Send `100 Continue`, so that neither the client nor a proxy takes the silence for the end."""
        if cycle.response_started or cycle.disconnected or self.transport.is_closing():
            return
        # nginx takes this response's header for the final one, and would otherwise collect what follows.
        headers = [(b"X-Accel-Buffering", b"no")]
        interim = h11.InformationalResponse(status_code=100, headers=headers, reason=b"Continue")
        self.transport.write(self.conn.send(interim))


def interim_sender(scope: Scope) -> Callable[[], None] | None:
    """What sends an interim response to a request's client; None where it may not understand one."""
    send: Callable[[], None] | None = scope.get("extensions", {}).get(INTERIM, {}).get("send")
    return send


def _goes_on_waiting(scope: HTTPScope) -> bool:
    """Whether the client is known to go on waiting after interim responses, and speaks HTTP/1.1."""
    agent = dict(scope["headers"]).get(b"user-agent", b"").lower()
    return scope["http_version"] == "1.1" and any(name in agent for name in PATIENT_CLIENTS)
