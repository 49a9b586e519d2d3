"""Where work is done: one process for each device, started again when it dies, killed when it hangs.

A worker can't outlive the server: the kernel kills it when the thread that started it ends (Linux), and the end of
the socket between them tells it everywhere.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Condition, Event, Thread
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kinema.jobs.values import Task
    from kinema.settings import Settings

log = logging.getLogger(__name__)

# A step that lasts longer than this after a cancel is not waited for: the worker is replaced.
CANCEL_SECONDS = 1.5
LISTEN_SECONDS = 0.1
MAX_PAUSE_SECONDS = 10.0

Wish = Literal["go on", "cancel", "put back"]


class WorkerLost(Exception):
    """A worker died or hung over a task. `code` is "worker_died" or "worker_hung"."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class WorkFailed(Exception):
    """The work said why it can't be done."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class WorkCancelled(Exception):
    """The work was stopped because it was no longer wanted."""


class PutBack(BaseException):
    """The queue is closing, and the work will go on when it is open again.

    No `Exception`, so that nothing on the way takes it for the job's failure and writes that down.
    """


def devices_for(settings: Settings) -> tuple[str, ...]:
    """The device of each worker, told without loading torch: each GPU, or what the settings say."""
    if settings.device != "auto":
        return (settings.device,) * (settings.workers or 1)
    gpus = count_gpus()
    count = settings.workers or max(1, gpus)
    return tuple(f"cuda:{i % gpus}" for i in range(count)) if gpus > 1 else ("auto",) * count


def count_gpus() -> int:
    """How many GPUs processes of this environment may use, told without loading torch."""
    gpus = len([path for path in Path("/dev").glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name)])
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return gpus if visible is None else min(gpus, len([name for name in visible.split(",") if name.strip()]))


class Worker:
    """One process on one device, replaced whenever it ends. Its tasks are done one at a time.

    `work` names the callable as "package.module:attribute"; `patience` is how many seconds a step may take.
    """

    def __init__(self, work: str, device: str, patience: float) -> None:
        self.model: str | None = None  # of its latest task: what it most likely has loaded
        self.device = device
        self._work = work
        self._patience = patience
        self._closing = Event()
        self._state = Condition()
        self._process: subprocess.Popen[bytes] | None = None
        self._link: Connection | None = None  # there while the process is ready
        self._epitaph: str | None = None  # why the latest process could not even begin
        self._latest_end = "it closed its socket"
        # Its end would be the process's too (see working.end_with), so it lasts as long as the worker.
        self._keeper = Thread(target=self._keep, name="kinema-worker-keeper", daemon=True)

    @property
    def pid(self) -> int | None:
        """The process's id, while it is ready for tasks."""
        with self._state:
            return None if self._link is None or self._process is None else self._process.pid

    def start(self) -> None:
        """Start the process; it is ready when the work is imported."""
        self._keeper.start()

    def close(self) -> None:
        """End the process, whatever it does."""
        self._closing.set()
        self._kill()
        with self._state:
            self._state.notify_all()
        self._keeper.join()

    def perform(self, task: Task, folder: Path, heard: Callable[[Any], None], wish: Callable[[], Wish]) -> None:
        """Do a task: its product appears in `folder`.

        `heard` is told ("step", stage, step, total) and ("preview", jpeg); `wish` is asked often whether to go on.

        Raises:
            WorkFailed, WorkCancelled: as they say; the worker is there for the next task.
            WorkerLost: the process died or hung; another one is on its way.
            PutBack: as wished.
        """
        link = self._ready(wish)
        self.model = task.request.model
        try:
            link.send(("do", task, folder))
            self._hear_out(link, heard, wish)
        except (EOFError, OSError):
            match wish():  # it may have been ended because of that
                case "put back":
                    raise PutBack from None
                case "cancel":
                    raise WorkCancelled from None
            raise WorkerLost("worker_died", f"the worker died: {self._cause_of_death(link)}") from None

    def _hear_out(self, link: Connection, heard: Callable[[Any], None], wish: Callable[[], Wish]) -> None:
        sign = time.monotonic()
        deadline: float | None = None
        while True:
            if link.poll(LISTEN_SECONDS):
                sign = time.monotonic()
                match link.recv():
                    case ("done",):
                        return
                    case ("cancelled",):
                        raise WorkCancelled
                    case ("failed", code, message):
                        raise WorkFailed(code, message)
                    case told:
                        heard(told)
            now = time.monotonic()
            match wish():
                case "put back":
                    self._kill()
                    raise PutBack
                case "cancel" if deadline is None:
                    link.send(("cancel",))
                    deadline = now + CANCEL_SECONDS
                case "cancel" if deadline is not None and now > deadline:
                    self._kill()
                    raise WorkCancelled
            if now - sign > self._patience:
                self._kill()
                raise WorkerLost("worker_hung", f"no step for {self._patience:g} seconds (KINEMA_STEP_TIMEOUT)")

    def _ready(self, wish: Callable[[], Wish]) -> Connection:
        """The link to a process that is ready, as soon as there is one."""
        while True:
            match wish():
                case "put back":
                    raise PutBack
                case "cancel":
                    raise WorkCancelled
            with self._state:
                if self._link is not None:
                    return self._link
                if self._epitaph is not None:
                    epitaph, self._epitaph = self._epitaph, None
                    raise WorkerLost("worker_died", f"the worker could not begin: {epitaph}")
                self._state.wait(LISTEN_SECONDS)

    def _keep(self) -> None:
        """Start the process, wait for its end, start it again; after quick ends, with growing pauses."""
        quick_ends = 0
        while not self._closing.is_set():
            born = time.monotonic()
            process, link = self._spawn()
            with self._state:
                self._process = process
            if self._closing.is_set():
                process.kill()
            epitaph = _first_words(link)
            with self._state:
                self._link = link if epitaph is None else None
                self._epitaph = None
                self.model = None
                self._state.notify_all()
            process.wait()
            end = _ending(process.returncode)
            with self._state:
                self._link, self._latest_end = None, end
                if epitaph is not None:
                    self._epitaph = epitaph or end
                self._state.notify_all()
            if not self._closing.is_set():
                log.warning("worker %d on %s ended: %s", process.pid, self.device, end)
            quick_ends = quick_ends + 1 if time.monotonic() - born < MAX_PAUSE_SECONDS else 0
            # The first end is most often one job's doing; several in a row are the machine's, and would only heat it.
            self._closing.wait(min(MAX_PAUSE_SECONDS, 0.05 * 2**quick_ends) if quick_ends > 1 else 0)

    def _spawn(self) -> tuple[subprocess.Popen[bytes], Connection]:
        ours, theirs = socket.socketpair()
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        if self.device != "auto":
            environment["KINEMA_DEVICE"] = self.device
        with theirs:
            # -P: the current folder holds no modules of ours, though it may hold some of the same names.
            process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                [sys.executable, "-P", "-m", "kinema.jobs.working", str(theirs.fileno()), self._work, str(os.getpid())],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=2,  # what the server prints is its own
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        return process, Connection(ours.detach())

    def _kill(self) -> None:
        with self._state:
            process, self._link = self._process, None  # never handed out again
        if process is not None:
            process.kill()

    def _cause_of_death(self, link: Connection) -> str:
        with self._state:
            self._state.wait_for(lambda: self._link is not link, timeout=5)
            return self._latest_end


def _first_words(link: Connection) -> str | None:
    """None once the process is ready; else why it never will be, "" where it did not say."""
    try:
        match link.recv():
            case ("broken", why):
                return str(why)
        return None
    except (EOFError, OSError):
        return ""


def _ending(code: int) -> str:
    """How a process ended, as a person reads it."""
    if code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name
    return f"killed by {name}" + (", perhaps for want of memory" if -code == signal.SIGKILL else "")


class Pool:
    """All workers, each either free or lent to one job."""

    def __init__(self, work: str, devices: Sequence[str], patience: float, freed: Callable[[], None]) -> None:
        self.workers = tuple(Worker(work, device, patience) for device in devices)
        self._free = list(self.workers)
        self._state = Condition()
        self._waiting = 0
        self._freed = freed

    def start(self) -> None:
        """Start all processes."""
        for worker in self.workers:
            worker.start()

    def close(self) -> None:
        """End all processes."""
        for worker in self.workers:
            worker.close()

    def free_models(self) -> list[str | None]:
        """What each free worker has loaded; none while someone waits in `wait_for`, who goes first."""
        with self._state:
            return [] if self._waiting else [worker.model for worker in self._free]

    def take(self, model: str) -> Worker | None:
        """A free worker, best one with this model, else one with none."""
        with self._state:
            if not self._free:
                return None
            best = min(self._free, key=lambda worker: (worker.model != model, worker.model is not None))
            self._free.remove(best)
            return best

    def wait_for(self, model: str, wish: Callable[[], Wish]) -> Worker:
        """As `take`, as soon as one is free.

        Raises:
            WorkCancelled, PutBack: as wished.
        """
        with self._state:
            self._waiting += 1
            try:
                while (worker := self.take(model)) is None:
                    self._state.wait(LISTEN_SECONDS)
                    match wish():
                        case "put back":
                            raise PutBack
                        case "cancel":
                            raise WorkCancelled
                return worker
            finally:
                self._waiting -= 1

    def give_back(self, worker: Worker) -> None:
        """This worker is free for the next job."""
        with self._state:
            self._free.append(worker)
            self._state.notify()
        self._freed()
