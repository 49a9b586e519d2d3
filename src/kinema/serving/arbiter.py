"""BentoML's arbiter, which starts the server's process and starts it again, without a port that others can reach."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

MAX_SOCKET_PATH = 100  # of the 104 bytes that macOS allows, 108 on Linux


def close_control_ports() -> None:
    """Have every arbiter of this process take commands in a folder of its own that only its user can enter.

    BentoML gives it TCP ports on 127.0.0.1, which ask for no credential and run any command for whoever connects.
    """
    from bentoml._internal.utils.circus import Arbiter

    init = Arbiter.__init__

    def init_privately(self: Arbiter, *args: Any, **kwargs: Any) -> None:
        folder = _private_folder()
        kwargs |= {"endpoint": f"ipc://{folder}/control", "pubsub_endpoint": f"ipc://{folder}/events"}
        init(self, *args, **kwargs)
        self.exit_stack.callback(shutil.rmtree, folder, ignore_errors=True)

    Arbiter.__init__ = init_privately  # type: ignore[method-assign]


def _private_folder() -> Path:
    """A new folder with mode 0700 whose path is short enough for a socket's."""
    too_long = len(tempfile.gettempdir()) > MAX_SOCKET_PATH - len("/kinema-12345678/control")
    return Path(tempfile.mkdtemp(prefix="kinema-", dir="/tmp" if too_long else None))  # noqa: S108 - mkdtemp is safe there
