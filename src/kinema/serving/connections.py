"""A client's connection: uvicorn's, with interim responses for calls that wait for their video."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import Scope
    from uvicorn._types import HTTPScope
    from uvicorn.protocols.http.h11_impl import RequestResponseCycle

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


class Connection(H11Protocol):
    """One connection of the server's process."""

    def handle_events(self) -> None:
        """Read what came; a new request learns how to send interim responses."""
        before = self.cycle
        super().handle_events()
        # The request's task is made by now, and has not begun: it will find this in its scope.
        if self.cycle is not before and _goes_on_waiting(self.scope):
            self.scope["extensions"] = {INTERIM: {"send": partial(self._send_interim, self.cycle)}}

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
