"""The URL of this server, from the socket that BentoML's arbiter passes to the server process."""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import os
import socket
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def own_url(arguments: Sequence[str] | None = None) -> str | None:
    """Return the server's URL for a browser on this machine; None if no arbiter started this process.

    Args:
        arguments: The command line, with the socket (`--fd`) and the certificate; default: `sys.argv`.
    """
    options = dict(itertools.pairwise(sys.argv if arguments is None else arguments))
    with (
        contextlib.suppress(KeyError, ValueError, OSError),
        socket.socket(fileno=os.dup(int(options["--fd"]))) as listener,
    ):
        if listener.family in (socket.AF_INET, socket.AF_INET6):
            host, port = listener.getsockname()[:2]
            scheme = "https" if "--ssl-certfile" in options else "http"
            return f"{scheme}://{_url_host(host)}:{port}"
    return None


def _url_host(host: str) -> str:
    address = ipaddress.ip_address(host)
    if address.is_loopback or address.is_unspecified:
        return "localhost"
    return f"[{host}]" if address.version == 6 else host
