"""BentoML's arbiter, the process that starts and restarts the server process: its sockets and its exit status."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any, NoReturn

from kinema.errors import InvalidRequest, KinemaError

REFUSAL = signal.SIGUSR2  # sent to the arbiter by a server process that refuses to start
MAX_SOCKET_PATH = 100  # of the 104 bytes that macOS allows, 108 on Linux


def check_port(host: str, port: int) -> None:
    """Check that the server can listen on this host and port.

    Raises:
        InvalidRequest: it can't.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
        try:
            probe.bind((host, port))
        except OSError as error:
            raise InvalidRequest(*_explain(error, host, port)) from None


def _explain(error: OSError, host: str, port: int) -> tuple[str, str]:
    """Return the error message and the name of the invalid parameter."""
    match error.errno:
        case errno.EADDRINUSE:
            return f"port {port} is in use by another program; stop it, or choose another port with --port", "port"
        case errno.EACCES:
            return f"port {port} requires root privileges; choose one above 1023 with --port", "port"
        case errno.EADDRNOTAVAIL:
            return f"host {host} is not an address of this machine; use 127.0.0.1, or 0.0.0.0 for all addresses", "host"
    return f"the server can't listen on {host} port {port}: {error.strerror}; choose another port with --port", "port"


def close_control_ports() -> None:
    """Make every arbiter of this process use Unix sockets in a private folder for its commands.

    By default it listens on TCP ports of 127.0.0.1 without authentication: any local user could run commands.
    """
    from bentoml._internal.utils.circus import Arbiter

    init = Arbiter.__init__

    def init_with_private_sockets(self: Arbiter, *args: Any, **kwargs: Any) -> None:
        for listener in kwargs.get("sockets", ()):
            if not listener.is_unix:
                _exit_unless_free(listener.host, listener.port)
        folder = _private_folder()
        kwargs |= {"endpoint": f"ipc://{folder}/control", "pubsub_endpoint": f"ipc://{folder}/events"}
        init(self, *args, **kwargs)
        self.exit_stack.callback(shutil.rmtree, folder, ignore_errors=True)

    Arbiter.__init__ = init_with_private_sockets  # type: ignore[method-assign]


def exit_on_refusal() -> None:
    """Make an arbiter of this process end with status 2 if its server process refuses to start."""
    from bentoml._internal.utils.circus import Arbiter

    start, refusals = Arbiter.start, []

    def stop(*_: object) -> None:
        refusals.append(REFUSAL)
        os.kill(os.getpid(), signal.SIGTERM)

    def start_and_exit(self: Arbiter, *args: Any, **kwargs: Any) -> None:
        signal.signal(REFUSAL, stop)
        start(self, *args, **kwargs)
        if refusals:
            raise SystemExit(2)

    Arbiter.start = start_and_exit  # type: ignore[method-assign]


def refuse_to_start(error: KinemaError) -> NoReturn:
    """End this server process and its arbiter, with status 2: a restarted process would fail for the same reason."""
    sys.stderr.write(f"kinema: {error}\n")
    sys.stderr.flush()
    os.kill(os.getppid(), REFUSAL)
    os._exit(2)


def _exit_unless_free(host: str, port: int) -> None:
    try:
        check_port(host, port)
    except InvalidRequest as error:
        sys.stderr.write(f"kinema: {error}\n")
        raise SystemExit(2) from None


def _private_folder() -> Path:
    """Create a folder with mode 0700 whose path is short enough for Unix sockets."""
    too_long = len(tempfile.gettempdir()) > MAX_SOCKET_PATH - len("/kinema-12345678/control")
    return Path(tempfile.mkdtemp(prefix="kinema-", dir="/tmp" if too_long else None))  # noqa: S108 - mkdtemp is safe there
