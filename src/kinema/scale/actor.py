"""The actor: runs a worker process on a node of the cluster, with files in place of the bytes that travel."""

from __future__ import annotations

import os
import shutil
import socket
import time
from dataclasses import replace
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

import psutil
import ray

from kinema.jobs.job import PART_FILES
from kinema.jobs.local_worker import LocalWorker
from kinema.scale.scratch_folder import ScratchFolder
from kinema.version import own_version

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

# An actor that the bridge has not pinged for this long ends, so that a frozen or unreachable server keeps no GPU. The
# bridge counts an actor as lost after 8 seconds.
ABANDONED_SECONDS = 12.0


class WorkerActor:
    """One worker process on the node; `kinema.scale.bridge` makes a Ray actor of it.

    Args:
        version: Kinema's version on the server; the node must have the same.
        environment: The server's settings.
    """

    def __init__(self, version: str, environment: Mapping[str, str]) -> None:
        self._version = version
        if "OMP_NUM_THREADS" not in psutil.Process().environ():  # Ray has set it to 1 after the start of this process
            os.environ.pop("OMP_NUM_THREADS", None)
        os.environ.update(environment)
        self._scratch = ScratchFolder("kinema-worker-")
        self._folder = self._scratch.path
        self._worker: LocalWorker | None = None
        self._started = Event()
        self._pinged_at = time.monotonic()
        Thread(target=self._end_if_abandoned, daemon=True).start()

    @ray.method(num_returns="streaming")
    def run(self, work: str) -> Iterator[tuple[tuple[Any, ...], bytes | None]]:
        """Start the worker process; yield each of its messages, with the output that was saved."""
        name = socket.gethostname()
        yield ("node", name, ray.get_runtime_context().get_node_id()), None
        if own_version() != self._version:
            yield ("load_failed", f"{name} has Kinema {own_version()}, and the server {self._version}"), None
            return
        try:
            self._worker = LocalWorker(work, "auto")
            self._started.set()
            while True:
                message = self._worker.receive()
                yield message, self._output(message)
        except (EOFError, OSError):
            pass
        finally:
            end = "it could not be started"
            if self._worker is not None:
                self._worker.kill()
                end = self._worker.wait()
            self._scratch.delete()
        yield ("ended", end), None

    @ray.method(concurrency_group="control")
    def send(self, message: tuple[Any, ...], files: Mapping[str, bytes]) -> None:
        """Pass a message of the scheduler on, with the files that its first task reads."""
        if message[0] == "run":
            _, number, tasks, _ = message
            folder = self._folder / str(number)
            folder.mkdir()
            for name, data in files.items():
                (folder / name).write_bytes(data)
            names = ("image", "last_image", "source_video")
            image, last_image, source = (folder / name if name in files else None for name in names)
            local = tuple(
                replace(
                    task,
                    image=None if task.part == "image" else image,
                    latents=_latents(folder, files) if task.part == "video" else None,
                    last_image=None if task.part == "image" else last_image,
                    source_video=source,
                )
                for task in tasks
            )
            message = ("run", number, local, folder)
        self._started.wait()
        assert self._worker is not None
        self._worker.send(message)

    @ray.method(concurrency_group="heartbeat")
    def ping(self) -> None:
        """Answer, to show that the node is alive."""
        self._pinged_at = time.monotonic()

    def _end_if_abandoned(self) -> None:
        """End this process, and with it the worker process, once the bridge has sent no ping for ABANDONED_SECONDS."""
        while time.monotonic() - self._pinged_at < ABANDONED_SECONDS:
            time.sleep(1)
        self._scratch.delete()
        os._exit(1)

    def _output(self, message: tuple[Any, ...]) -> bytes | None:
        """Return the output that a message says was saved, and delete files that are not needed any more."""
        match message:
            case (int() as number, "saved", part):
                data = (self._folder / str(number) / PART_FILES[part]).read_bytes()
                if part != "latents":
                    self._delete_files(number)
                return data
            case (int() as number, "failed" | "cancelled", *_):
                self._delete_files(number)
        return None

    def _delete_files(self, number: int) -> None:
        shutil.rmtree(self._folder / str(number), ignore_errors=True)


def _latents(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Return the path of the latents: of those that came along, or of those that the task before saves."""
    return folder / ("latents" if "latents" in files else PART_FILES["latents"])
