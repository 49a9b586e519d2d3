"""Workers on a Ray cluster, as the scheduler sees them. Ray itself runs in a process of its own, the bridge.

Ray's driver ends its process when the cluster's head is gone for a minute, so it must not be in the server's process.
The bridge (`kinema.scale.bridge`) listens on a socket. Its first connection gets messages about the cluster. Each later
connection is a worker process on some node, and speaks the protocol of `kinema.jobs.worker_process`.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

from kinema.errors import InvalidRequest
from kinema.extras import install_remedy
from kinema.jobs.local_worker import describe_exit
from kinema.jobs.supervisor import Supervisor
from kinema.messages import Message

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

# After this time without a connection, the problem names what to check.
CONNECTING_SECONDS = 15.0
BRIDGE = "kinema.scale.bridge"
# Ray's driver connects to a cluster, or reports that it can't, within this time.
CONNECT_SECONDS = 60.0
# The bridge reports the cluster's nodes every 2 seconds; without a report for this long, the head does not respond.
SILENCE_SECONDS = 10.0
# A bridge that has closed its socket ends within this time.
END_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Node:
    """A node of the cluster."""

    name: str
    gpus: int


def check_installed() -> None:
    """Check that ray is installed.

    Raises:
        InvalidRequest: with the command that installs it.
    """
    if find_spec("ray") is None:
        raise InvalidRequest("KINEMA_RAY_ADDRESS needs ray; " + install_remedy("scale"), "ray_address")


class Cluster:
    """The bridge to a Ray cluster; it is restarted when it ends.

    Args:
        address: Of the cluster's head, as for `ray.init`.
        gpus_per_worker: GPUs of each worker; they are on one node.
        on_change: Called when nodes have joined or left.
    """

    def __init__(self, address: str, gpus_per_worker: int, on_change: Callable[[], None]) -> None:
        self.nodes: tuple[Node, ...] = ()
        self._address, self._gpus_per_worker, self._on_change = address, gpus_per_worker, on_change
        self._problem: str | None = Message(
            "cluster_connecting", "the connection to the Ray cluster is being established"
        )
        self._last_report = time.monotonic()
        self._connecting_since: float | None = None  # start of the bridge, until it is connected
        self._folder = Path()
        self._process: subprocess.Popen[bytes] | None = None
        self._is_connected = Event()
        self._supervisor = Supervisor("kinema-bridge", self._run_bridge, self._report_failure)

    @property
    def slots(self) -> int:
        """How many workers the nodes have GPUs for."""
        return sum(node.gpus // self._gpus_per_worker for node in self.nodes)

    @property
    def problem(self) -> str | None:
        """Why no workers can be started, or None."""
        since = self._connecting_since
        if since is not None and (seconds := time.monotonic() - since) > CONNECTING_SECONDS:
            return Message(  # Ray tries again without an error, for example with a wrong token
                "cluster_not_answering",
                "the Ray cluster at {address} has not answered for {seconds:.0f} seconds; check RAY_AUTH_TOKEN and "
                "RAY_AUTH_MODE",
                address=self._address,
                seconds=seconds,
            )
        if self._problem is None and time.monotonic() - self._last_report > SILENCE_SECONDS:
            return Message(
                "cluster_silent",
                "the head of the Ray cluster at {address} does not respond; running jobs continue",
                address=self._address,
            )
        if self._problem is None and not self.slots:
            return Message(
                "cluster_without_gpus",
                "no node of the Ray cluster at {address} has {gpus} free GPUs",
                address=self._address,
                gpus=self._gpus_per_worker,
            )
        return self._problem

    def start(self) -> None:
        """Start the bridge."""
        self._supervisor.start()

    def close(self) -> None:
        """End the bridge, and with it all workers."""
        self._supervisor.stopping.set()
        if self._process is not None:
            self._process.kill()
        self._supervisor.join()

    def launch(self, work: str, _device: str) -> RemoteWorker:
        """Start a worker process on a node.

        Raises:
            OSError: there is no connection to the cluster.
        """
        if not self._is_connected.is_set():
            raise ConnectionError(self._problem or "there is no connection to the Ray cluster")
        return RemoteWorker(self._folder / "socket", work, self._gpus_per_worker)

    def _run_bridge(self) -> None:
        """Run the bridge until it ends."""
        self._folder = Path(tempfile.mkdtemp(prefix="kinema-bridge-"))
        self._connecting_since = time.monotonic()
        command = [sys.executable, "-P", "-m", BRIDGE, str(self._folder / "socket"), str(os.getpid())]
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                [*command, self._address, str(self._gpus_per_worker)],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                stdin=subprocess.DEVNULL,
                stdout=2,
                start_new_session=True,
            )
            with self._connect() as connection:
                self._follow(connection)
        finally:
            self._is_connected.clear()
            if self._process is not None:
                self._process.kill()
                self._process.wait()
            shutil.rmtree(self._folder, ignore_errors=True)

    def _connect(self) -> Connection:
        """Return a connection to the bridge, which opens its socket soon after its start."""
        assert self._process is not None
        deadline = time.monotonic() + CONNECT_SECONDS
        while True:
            try:
                return Connection(_connected(self._folder / "socket").detach())
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise self._ended() from None
                time.sleep(0.05)

    def _follow(self, connection: Connection) -> None:
        """Follow the reports of the bridge until it ends.

        Raises:
            ConnectionError: it ended.
        """
        reported = None
        with suppress(EOFError, OSError):
            while not self._supervisor.stopping.is_set():
                match connection.recv():
                    case ("nodes", nodes):
                        self._last_report = time.monotonic()
                        self._connecting_since = None
                        self._is_connected.set()
                        self._problem = None
                        found = tuple(Node(*node) for node in nodes)
                        if found != self.nodes:
                            gpus = ", ".join(f"{node.name} with {node.gpus} GPUs" for node in found)
                            log.info("nodes of the Ray cluster: %s", gpus or "none")
                            self.nodes = found
                            self._on_change()
                    case ("problem", text):
                        self._connecting_since = None
                        self._problem = reported = text
        if not self._supervisor.stopping.is_set():
            raise ConnectionError(reported) if reported else self._ended()

    def _ended(self) -> ConnectionError:
        """Return the error of a bridge that ended without a reason."""
        assert self._process is not None
        try:
            end = describe_exit(self._process.wait(END_SECONDS))
        except subprocess.TimeoutExpired:
            end = "it does not respond"
        return ConnectionError(f"the bridge to the Ray cluster at {self._address} ended: {end}; see the server's log")

    def _report_failure(self, error: Exception, pause: float) -> None:
        self._problem = str(error)
        log.warning("%s; next attempt in %.1f seconds", self._problem, pause, extra={"repeats": True})


class RemoteWorker:
    """A worker process on a node of the cluster (`kinema.jobs.worker.WorkerProcess`).

    Args:
        bridge: The socket of the bridge.
        work: Import path of the work.
        gpus: The number of GPUs that the worker gets.

    Raises:
        OSError: the bridge has ended.
    """

    pid = None

    def __init__(self, bridge: Path, work: str, gpus: int) -> None:
        self._socket = _connected(bridge)
        self._connection = Connection(os.dup(self._socket.fileno()))
        self._connection.send(("worker", work))
        self.place: str | None = None
        self.node_id: str | None = None
        self.gpus = gpus
        self.ended_by_itself = False  # unless the bridge says so: it may have ended too
        self._end = "the connection to the Ray cluster was closed"
        self._has_ended = False

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
        if self._has_ended:  # the bridge keeps the connection open until this side closes it
            raise EOFError
        message: tuple[Any, ...] = self._connection.recv()
        if message[0] == "ended":
            _, self._end, self.ended_by_itself = message
            self._has_ended = True
            raise EOFError
        if message[0] == "node":
            _, self.place, self.node_id = message
            return ("status", f"starting on {self.place}")
        return message

    def wait_for_message(self, seconds: float) -> bool:
        """Wait for a message; return whether there is one, or the process has ended."""
        return self._connection.poll(seconds)

    def kill(self) -> None:
        """Close the connection; the bridge then kills the process."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def wait(self) -> str:
        """Return how the process ended; call it after `kill` or after `receive` raised."""
        self._connection.close()
        self._socket.close()
        return self._end


def _connected(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(str(path))
    except OSError:
        connection.close()
        raise
    return connection
