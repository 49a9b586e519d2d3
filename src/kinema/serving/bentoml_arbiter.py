"""BentoML's arbiter, which starts the server's process and starts it again: the sockets that it opens."""

from __future__ import annotations

import errno
import shutil
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

from kinema.errors import InvalidRequest

MAX_SOCKET_PATH = 100  # of the 104 bytes that macOS allows, 108 on Linux


def check_port(host: str, port: int) -> None:
    """Refuse an address at which the server could not listen.

    Raises:
        InvalidRequest: naming the port, and what to do.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server will
        try:
            trial.bind((host, port))
        except OSError as error:
            raise InvalidRequest(*_unusable(error, host, port)) from None


def _unusable(error: OSError, host: str, port: int) -> tuple[str, str]:
    """What is wrong with an address, and which part of it."""
    match error.errno:
        case errno.EADDRINUSE:
            return f"port {port} is in use by another program; stop it, or choose another port with --port", "port"
        case errno.EACCES:
            return f"port {port} is for root alone; choose one above 1023 with --port", "port"
        case errno.EADDRNOTAVAIL:
            return f"host {host} is no address of this machine; use 127.0.0.1, or 0.0.0.0 for all of them", "host"
    return f"the server can't listen at {host}, port {port}: {error.strerror}; choose another with --port", "port"


def close_control_ports() -> None:
    """Have every arbiter of this process take commands in a folder of its own that only its user can enter.

    BentoML gives it TCP ports on 127.0.0.1, which ask for no credential and run any command for whoever connects.
    """
    from bentoml._internal.utils.circus import Arbiter

    init = Arbiter.__init__

    def init_privately(self: Arbiter, *args: Any, **kwargs: Any) -> None:
        for one in kwargs.get("sockets", ()):
            if not one.is_unix:
                _end_unless_free(one.host, one.port)
        folder = _private_folder()
        kwargs |= {"endpoint": f"ipc://{folder}/control", "pubsub_endpoint": f"ipc://{folder}/events"}
        init(self, *args, **kwargs)
        self.exit_stack.callback(shutil.rmtree, folder, ignore_errors=True)

    Arbiter.__init__ = init_privately  # type: ignore[method-assign]


def _end_unless_free(host: str, port: int) -> None:
    try:
        check_port(host, port)
    except InvalidRequest as error:
        sys.stderr.write(f"kinema: {error}\n")
        raise SystemExit(2) from None


def _private_folder() -> Path:
    """A new folder with mode 0700 whose path is short enough for a socket's."""
    too_long = len(tempfile.gettempdir()) > MAX_SOCKET_PATH - len("/kinema-12345678/control")
    return Path(tempfile.mkdtemp(prefix="kinema-", dir="/tmp" if too_long else None))  # noqa: S108 - mkdtemp is safe there
