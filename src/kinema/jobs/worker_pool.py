"""Where work is done: one process for each device, started again when it dies, killed when it hangs.

Where a process can't be started, that is tried again for ever: what was missing may come back. A worker can't outlive
the server: the kernel kills it when the thread that started it ends (Linux), and the end of the socket between them
tells it everywhere.
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
from threading import Condition, Lock
from typing import TYPE_CHECKING, Any, Literal

from kinema.jobs.supervisor import Supervisor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kinema.jobs.job import Task
    from kinema.settings import Settings

log = logging.getLogger(__name__)

# A step that lasts longer than this after a cancel is not waited for: the worker is replaced.
CANCEL_SECONDS = 1.5
LISTEN_SECONDS = 0.1
# Importing the work takes some seconds; a process that takes so long hangs, and is replaced.
READY_SECONDS = 600.0
# A job whose worker can't be started waits so long for it, then goes back to the queue.
START_SECONDS = 5.0

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


class StartFailed(Exception):
    """A worker's process was not ready in time, or ended before that and did not say why."""


class Requeued(BaseException):
    """The queue is closing, or there is no worker for the work: it goes on when there is.

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

    `work` names the callable as "package.module:attribute"; `patience` is how many seconds a step may take;
    `changed` is called when the process is ready.
    """

    def __init__(self, work: str, device: str, patience: float, changed: Callable[[], None]) -> None:
        self.model: str | None = None  # of its latest task: what it most likely has loaded
        self.device = device
        self._work = work
        self._patience = patience
        self._changed = changed
        self._state = Condition()
        self._process: subprocess.Popen[bytes] | None = None
        self._link: Connection | None = None  # there while the process is ready
        self._problem: str | None = None  # why there is no process that is ready
        self._down_since: float | None = None  # when the first of several attempts to start it failed
        self._epitaph: str | None = None  # why the latest process can't do any work
        self._killed_for: str | None = None  # why we ended the process
        self._latest_end = "it closed its socket"
        # Its end would be the process's too (see working.end_with), so it lasts as long as the worker.
        self._keeper = Supervisor("kinema-worker-keeper", self._live, self._not_started)

    @property
    def pid(self) -> int | None:
        """The process's id, while it is ready for tasks."""
        with self._state:
            return None if self._link is None or self._process is None else self._process.pid

    @property
    def problem(self) -> str | None:
        """Why no process is ready, where more than a moment's start is missing."""
        return self._problem

    @property
    def down(self) -> bool:
        """Whether no process can be started for now, so that no job should be given to this worker."""
        return self._down_since is not None

    def start(self) -> None:
        """Start the process; it is ready when the work is imported."""
        self._keeper.start()

    def close(self) -> None:
        """End the process, whatever it does."""
        self._keeper.stopping.set()
        with self._state:
            process, self._link = self._process, None
            self._state.notify_all()
        if process is not None:
            process.kill()
        self._keeper.join()

    def perform(self, task: Task, folder: Path, heard: Callable[[Any], None], wish: Callable[[], Wish]) -> None:
        """Do a task: its product appears in `folder`.

        `heard` is told ("step", stage, step, total) and ("preview", jpeg); `wish` is asked often whether to go on.

        Raises:
            WorkFailed, WorkCancelled: as they say; the worker is there for the next task.
            WorkerLost: the process died or hung; another one is on its way.
            Requeued: as wished, or no process can be started.
        """
        link = self._ready(wish)
        self.model = task.request.model
        try:
            link.send(("do", task, folder))
            self._hear_out(link, heard, wish)
        except (EOFError, OSError):
            match wish():  # it may have been ended because of that
                case "put back":
                    raise Requeued from None
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
                    self._kill(link, "the queue is closing")
                    raise Requeued
                case "cancel" if deadline is None:
                    link.send(("cancel",))
                    deadline = now + CANCEL_SECONDS
                case "cancel" if deadline is not None and now > deadline:
                    self._kill(link, f"its job was cancelled, and a step did not end within {CANCEL_SECONDS:g} seconds")
                    raise WorkCancelled
            if now - sign > self._patience:
                hung = f"no step for {self._patience:g} seconds (KINEMA_STEP_TIMEOUT)"
                self._kill(link, hung)
                raise WorkerLost("worker_hung", hung)

    def _ready(self, wish: Callable[[], Wish]) -> Connection:
        """The link to a process that is ready, as soon as there is one."""
        while True:
            match wish():
                case "put back":
                    raise Requeued
                case "cancel":
                    raise WorkCancelled
            with self._state:
                if self._link is not None:
                    return self._link
                if self._epitaph is not None:
                    epitaph, self._epitaph = self._epitaph, None
                    raise WorkerLost("worker_died", f"the worker could not begin: {epitaph}")
                if self._down_since is not None and time.monotonic() - self._down_since > START_SECONDS:
                    raise Requeued
                self._state.wait(LISTEN_SECONDS)

    def _live(self) -> None:
        """One process, from its start to its end.

        Raises:
            OSError, StartFailed: there is none.
        """
        process, link = self._spawn()
        try:
            with self._state:
                self._process, self._killed_for = process, None
            if not self._keeper.stopping.is_set():
                self._follow(process, link)
        finally:
            process.kill()
            process.wait()

    def _follow(self, process: subprocess.Popen[bytes], link: Connection) -> None:
        if not link.poll(READY_SECONDS):
            raise StartFailed(f"it was not ready within {READY_SECONDS:g} seconds")
        broken = _first_words(link)
        with self._state:
            self._epitaph = self.model = None
            if broken is None:
                self._link = link
                self._problem = self._down_since = None
            elif broken:
                self._problem = f"the worker on {self.device} can't load its work (see the log)"
                self._down_since = None
            self._state.notify_all()
        self._changed()
        process.wait()
        with self._state:
            killed_for = self._killed_for
            end = self._latest_end = killed_for or _ending(process.returncode)
            self._link = None
            self._epitaph = broken or None
            self._state.notify_all()
        if self._keeper.stopping.is_set():
            return
        if broken == "":
            raise StartFailed(f"it ended at once: {end}")
        level = logging.WARNING if killed_for is None else logging.INFO
        log.log(level, "worker %d on %s ended: %s", process.pid, self.device, end)

    def _not_started(self, error: Exception, pause: float) -> None:
        """There is no process: say so wherever it is asked for, until there is one."""
        expected = isinstance(error, OSError | StartFailed)
        reason = str(error) if isinstance(error, StartFailed) else getattr(error, "strerror", None)
        with self._state:
            self._problem = f"the worker on {self.device} can't be started: {reason or type(error).__name__}"
            if self._down_since is None:
                self._down_since = time.monotonic()
            self._state.notify_all()
        log.warning(
            "the worker on %s can't be started: %s; next attempt in %.1f seconds",
            self.device, error, pause, exc_info=None if expected else error,
        )  # fmt: skip

    def _spawn(self) -> tuple[subprocess.Popen[bytes], Connection]:
        ours, theirs = socket.socketpair()
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        if self.device != "auto":
            environment["KINEMA_DEVICE"] = self.device
        # -P: the current folder holds no modules of ours, though it may hold some of the same names.
        command = [
            sys.executable,
            "-P",
            "-m",
            "kinema.jobs.worker_process",
            str(theirs.fileno()),
            self._work,
            str(os.getpid()),
        ]
        with theirs:
            try:
                process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                    [*command, str(theirs.fileno()), self._work, str(os.getpid())],
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=2,  # what the server prints is its own
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                )
            except BaseException:
                ours.close()
                raise
        return process, Connection(ours.detach())

    def _kill(self, link: Connection, why: str) -> None:
        """End the process at the other end of this link, unless it has ended."""
        with self._state:
            if self._link is not link or self._process is None:
                return
            process, self._link = self._process, None  # never handed out again
            self._killed_for = why
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


class WorkerPool:
    """All workers, each either free or lent to one job."""

    def __init__(self, work: str, devices: Sequence[str], patience: float, freed: Callable[[], None]) -> None:
        self.workers = tuple(Worker(work, device, patience, freed) for device in devices)
        self._free = list(self.workers)
        self._lock = Lock()
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
        """What each free worker has loaded."""
        with self._lock:
            return [worker.model for worker in self._free if not worker.down]

    def take(self, model: str) -> Worker | None:
        """A free worker, best one with this model, else one with none; None where there is none."""
        with self._lock:
            able = [worker for worker in self._free if not worker.down]
            if not able:
                return None
            best = min(able, key=lambda worker: (worker.model != model, worker.model is not None))
            self._free.remove(best)
            return best

    def give_back(self, worker: Worker) -> None:
        """This worker is free for the next job."""
        with self._lock:
            self._free.append(worker)
        self._freed()
