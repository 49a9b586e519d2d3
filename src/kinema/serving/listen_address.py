"""Where this server listens, as BentoML's arbiter hands its socket to the process that serves."""

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


def own_address(arguments: Sequence[str] | None = None) -> str | None:
    """The server's address for a browser of this machine; None where no arbiter started this process.

    Args:
        arguments: The process's command line, which names the socket (`--fd`) and the certificate.
    """
    given = sys.argv if arguments is None else arguments
    options = dict(itertools.pairwise(given))
    with contextlib.suppress(KeyError, ValueError, OSError), socket.socket(fileno=os.dup(int(options["--fd"]))) as own:
        if own.family in (socket.AF_INET, socket.AF_INET6):
            host, port = own.getsockname()[:2]
            scheme = "https" if "--ssl-certfile" in options else "http"
            return f"{scheme}://{_name(host)}:{port}"
    return None


def _name(host: str) -> str:
    address = ipaddress.ip_address(host)
    if address.is_loopback or address.is_unspecified:
        return "localhost"
    return f"[{host}]" if address.version == 6 else host
