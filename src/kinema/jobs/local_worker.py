"""A worker process on this machine: its start, its socket and its end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from multiprocessing.connection import Connection
from typing import Any


class LocalWorker:
    """A running `kinema.jobs.worker_process`.

    Args:
        work: Import path of the work, as "package.module:attribute".
        device: Device of the process; "auto" leaves the choice to the settings. None starts a spare, which imports the
            libraries and then waits for `begin`.

    Raises:
        OSError: the process could not be started.
    """

    ended_by_itself = True
    node_id = gpus = None

    def __init__(self, work: str, device: str | None) -> None:
        ours, theirs = socket.socketpair()
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        if device not in (None, "auto"):
            environment["KINEMA_DEVICE"] = device
        # -P: do not import modules from the current folder.
        command = [sys.executable, "-P", "-m", "kinema.jobs.worker_process"]
        with theirs:
            try:
                self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                    [*command, str(theirs.fileno()), work, str(os.getpid()), *(["spare"] if device is None else [])],
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=2,  # stdout belongs to the server
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                )
            except BaseException:
                ours.close()
                raise
        self._connection = Connection(ours.detach())
        self.place = None if device == "auto" else device

    def begin(self, device: str) -> None:
        """Have a spare begin as the worker of a device.

        Raises:
            OSError: the process has ended.
        """
        self.place = None if device == "auto" else device
        self.send(("begin", self.place))

    @property
    def pid(self) -> int | None:
        """The process id."""
        return self._process.pid

    def send(self, message: tuple[Any, ...]) -> None:
        """Send a message.

        Raises:
            OSError: the process has ended.
        """
        self._connection.send(message)

    def receive(self) -> tuple[Any, ...]:
        """Wait for a message.

        Raises:
            EOFError, OSError: the process has ended.
        """
        message: tuple[Any, ...] = self._connection.recv()
        return message

    def wait_for_message(self, seconds: float) -> bool:
        """Wait for a message; return whether there is one, or the process has ended."""
        return self._connection.poll(seconds)

    def kill(self) -> None:
        """Kill the process."""
        self._process.kill()

    def wait(self) -> str:
        """Wait until the process has ended, and return how."""
        return describe_exit(self._process.wait())


def describe_exit(code: int) -> str:
    """Return how a process ended, given its return code as `subprocess` has it."""
    if code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name
    return f"killed by {name}" + (" (perhaps out of memory)" if -code == signal.SIGKILL else "")
