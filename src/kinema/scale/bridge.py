"""The bridge: the process that holds Ray's driver, between the server's scheduler and the workers on the nodes.

`kinema.jobs.cluster` starts it as `python -m kinema.scale.bridge SOCKET PARENT ADDRESS GPUS_PER_WORKER`. The first
connection gets ("nodes", …) and ("problem", text). A further connection begins with ("worker", work); from then on it
speaks the protocol of `kinema.jobs.worker_process`. Paths become bytes on the way to a node, and files on the way back.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import time
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Listener
from pathlib import Path
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayError

from kinema.errors import KinemaError
from kinema.jobs.job import PART_FILES
from kinema.jobs.job_files import write_atomically
from kinema.jobs.worker_process import exit_with_parent
from kinema.scale.actor import WorkerActor
from kinema.scale.cluster_check import explain
from kinema.settings import SECRETS
from kinema.version import own_version

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from kinema.jobs.job import Task

CONNECT_SECONDS = 5.0
HEARTBEAT_SECONDS = 2.0
# A node that does not answer for this long is lost. Ray itself takes a minute to notice that.
LOST_SECONDS = 8.0
# An actor without a node after this time is given up, and asked for again: its node may have died meanwhile.
PLACE_SECONDS = 20.0
# A lost actor is not restarted by Ray, and no call is repeated: the queue decides. In a group, calls stay in order.
ACTOR: Any = ray.remote(  # type: ignore[call-overload]
    num_cpus=0, max_restarts=0, max_task_retries=0, concurrency_groups={"control": 1, "heartbeat": 1}
)(WorkerActor)
TASK_FILES = ("image", "latents", "last_image", "source_video")
NOT_FOR_NODES = frozenset(f"KINEMA_{name.upper()}" for name in (*SECRETS, "data_dir", "ray_address"))


def main() -> None:
    """Connect to the cluster, report its nodes, and serve workers until the parent ends."""
    path, parent, address, gpus = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    exit_with_parent(parent)
    with Listener(path, family="AF_UNIX") as listener:
        control = listener.accept()
        Thread(target=_end_with, args=(control,), daemon=True).start()
        try:
            _check_reachable(address)  # Ray would try for minutes
            ray.init(address, namespace="kinema", log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:  # noqa: BLE001 - Ray raises errors of many kinds
            control.send(("problem", explain(error, address)))
            sys.exit(1)
        for number in (signal.SIGTERM, signal.SIGINT):  # the server decides when it ends; Ray would end at once
            signal.signal(number, signal.SIG_IGN)
        Thread(target=_report_nodes, args=(control,), daemon=True).start()
        while True:
            connection = listener.accept()
            Thread(target=Relay(connection, gpus).run, daemon=True).start()


def _check_reachable(address: str) -> None:
    """Connect to the head and disconnect; raise OSError if that fails within CONNECT_SECONDS."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS):
        pass


def _end_with(control: Connection) -> None:
    with suppress(EOFError, OSError):
        control.recv()
    os._exit(0)


def _report_nodes(control: Connection) -> None:
    """Report the nodes that are alive, every HEARTBEAT_SECONDS while the head answers."""
    while True:
        with suppress(Exception):  # Ray raises errors of many kinds while the head is away
            nodes = sorted(
                (str(node["NodeManagerHostname"]) + ":" + node["NodeID"][:6], int(node["Resources"].get("GPU", 0)))
                for node in ray.nodes()  # type: ignore[no-untyped-call]
                if node["Alive"]
            )
            control.send(("nodes", nodes))
        time.sleep(HEARTBEAT_SECONDS)


class Relay:
    """Connects one worker of the scheduler with an actor on a node."""

    def __init__(self, connection: Connection, gpus: int) -> None:
        self._connection = connection
        self._gpus = gpus
        self._sending = Lock()
        self._folders: dict[int, Path] = {}
        self._placed, self._ended = Event(), Event()
        self._actor: Any = None

    def run(self) -> None:
        """Start an actor and pass its messages on until it ends."""
        try:
            _, work = self._connection.recv()
        except (EOFError, OSError):
            return
        self._actor = ACTOR.options(num_gpus=self._gpus).remote(own_version(), settings_for_nodes())
        for work_of_thread in (self._pass_on_messages, self._watch):
            Thread(target=work_of_thread, daemon=True).start()
        try:
            for reference in self._actor.run.remote(work):
                self._placed.set()
                self._handle(*ray.get(reference))
            self._end("its actor ended")
        except RayError as error:
            self._end(str(error).strip().partition("\n")[0] or type(error).__name__)
        except OSError:  # the scheduler has closed the connection
            self._end("it was closed")

    def _handle(self, message: tuple[Any, ...], output: bytes | None) -> None:
        """Pass a message of the worker process on; store the output that comes with it before."""
        if message[0] == "ended":
            self._end(message[1], by_itself=True)
            return
        if output is not None:
            message = self._stored(message, output)
        self._send(message)

    def _stored(self, message: tuple[Any, ...], output: bytes) -> tuple[Any, ...]:
        """Store an output in the job's folder; return the message, or in its place why that failed."""
        number, _, part = message
        try:
            write_atomically(self._folders[number] / PART_FILES[part], output)
        except KinemaError as error:
            return (number, "failed", error.code, str(error))
        except OSError as error:  # for example, the job was deleted
            return (number, "failed", "internal_error", f"{type(error).__name__}: {error}")
        return message

    def _send(self, message: tuple[Any, ...]) -> None:
        with self._sending:
            self._connection.send(message)

    def _pass_on_messages(self) -> None:
        """Pass the scheduler's messages on to the actor; kill it when the scheduler closes the connection."""
        with suppress(EOFError, OSError):
            while True:
                message = self._connection.recv()
                files: dict[str, bytes] = {}
                if message[0] == "run":
                    _, number, tasks, folder = message
                    self._folders[number] = Path(folder)
                    files, tasks = _with_bytes(tasks)
                    message = ("run", number, tasks, None)
                self._actor.send.remote(message, files)
        self._end("it was closed")

    def _watch(self) -> None:
        """End the relay if the actor gets no node, or its node does not answer."""
        if not self._placed.wait(PLACE_SECONDS):
            self._end(f"no node had free GPUs for it in {PLACE_SECONDS:g} seconds")
        while not self._ended.wait(HEARTBEAT_SECONDS):
            answered, _ = ray.wait([self._actor.ping.remote()], timeout=LOST_SECONDS)
            if not answered:
                self._end(f"its node did not answer for {LOST_SECONDS:g} seconds")

    def _end(self, reason: str, *, by_itself: bool = False) -> None:
        """Kill the actor and tell the scheduler why; only the first call counts.

        `by_itself`: the worker process ended, not its node or the connection; only that counts as an attempt of a job.
        """
        with self._sending:
            if self._ended.is_set():
                return
            self._ended.set()
            with suppress(OSError):
                self._connection.send(("ended", reason, by_itself))
            with suppress(OSError):
                self._connection.close()
        ray.kill(self._actor, no_restart=True)


def settings_for_nodes() -> dict[str, str]:
    """Return the server's settings that apply to nodes: no secrets, and no number of a GPU, which Ray chooses."""
    settings = {name: value for name, value in os.environ.items() if name.startswith("KINEMA_")}
    if settings.get("KINEMA_DEVICE", "").startswith("cuda"):
        del settings["KINEMA_DEVICE"]
    return {name: value for name, value in settings.items() if name not in NOT_FOR_NODES}


def _with_bytes(tasks: tuple[Task, ...]) -> tuple[dict[str, bytes], tuple[Task, ...]]:
    """Return the files that the first task reads, and the tasks without paths."""
    first = tasks[0]
    paths = {name: getattr(first, name) for name in TASK_FILES}
    files = {name: path.read_bytes() for name, path in paths.items() if path is not None and path.exists()}
    nothing: dict[str, Any] = dict.fromkeys(TASK_FILES)
    return files, tuple(replace(task, **nothing) for task in tasks)


if __name__ == "__main__":
    main()
