"""The worker process: runs tasks one at a time, reports each step, and exits when its parent does.

`kinema.jobs.worker_pool` starts it as `python -m kinema.jobs.worker_process DESCRIPTOR WORK PARENT`. Both sides send
(kind, …) tuples through one socket.
"""

from __future__ import annotations

import ctypes
import inspect
import os
import signal
import sys
import time
import traceback
from contextlib import suppress
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Thread
from typing import TYPE_CHECKING, cast

from kinema.errors import KinemaError
from kinema.jobs.job import PART_FILES
from kinema.jobs.job_files import atomic_file
from kinema.steps import drive

if TYPE_CHECKING:
    from kinema.jobs.job import Task, TaskResult, Work
    from kinema.steps import Step

PREVIEW_SECONDS = 2.0
_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Run tasks until the parent process closes the socket or exits."""
    descriptor, import_path, parent = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    exit_with_parent(parent)
    os.umask(0o077)  # output files are readable by the server's user only
    with suppress(OSError):  # if memory runs out, the kernel kills this process before the server
        Path("/proc/self/oom_score_adj").write_text("500", encoding="ascii")
    # Ctrl-C and service managers signal all processes; the server decides when its worker processes end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    connection = Connection(descriptor)
    tasks: SimpleQueue[tuple[Task, Path]] = SimpleQueue()
    cancelled = Event()
    # Start before the import of the work, which may take long, so that the end of the parent is noticed meanwhile.
    Thread(target=_listen, args=(connection, tasks, cancelled), daemon=True).start()
    try:
        work = import_work(import_path)
    except Exception as error:  # noqa: BLE001 - any error is reported to the waiting job
        traceback.print_exc()
        connection.send(("load_failed", f"{import_path} can't be loaded: {type(error).__name__}: {error}"))
        sys.exit(1)
    connection.send(("ready",))
    while True:
        task, folder = tasks.get()
        if not _run_task(work, task, folder, connection, cancelled):
            sys.exit(1)


def import_work(import_path: str) -> Work:
    """Import the callable "package.module:attribute". Of a class, return an instance."""
    module, _, attribute = import_path.partition(":")
    value = getattr(import_module(module), attribute)
    return cast("Work", value() if inspect.isclass(value) else value)


def exit_with_parent(parent: int) -> None:
    """Have the kernel kill this process when the thread that started it ends (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent died before the call
        os._exit(1)


def _listen(connection: Connection, tasks: SimpleQueue[tuple[Task, Path]], cancelled: Event) -> None:
    """Receive messages of the parent while the main thread works.

    The end of this thread ends the process, since the process could not receive tasks any more.
    """
    try:
        while True:
            kind, *arguments = connection.recv()
            if kind == "run":
                cancelled.clear()
                tasks.put((arguments[0], arguments[1]))
            else:
                cancelled.set()
    except (EOFError, OSError):
        pass
    except Exception:  # noqa: BLE001 - printed; the process ends
        traceback.print_exc()
    os._exit(1)


def _run_task(work: Work, task: Task, folder: Path, connection: Connection, cancelled: Event) -> bool:
    """Run one task and report the outcome; return whether this process can run another task."""
    connection.send(("started",))
    try:
        output = _run_work(work, task, connection, cancelled)
        if output is None:
            connection.send(("cancelled",))
            return True
        with atomic_file(folder / PART_FILES[task.part]) as partial:
            output.save(partial)
    except KinemaError as error:
        connection.send(("failed", error.code, str(error)))
    except Exception as error:  # noqa: BLE001 - an internal error fails its job only
        traceback.print_exc()
        connection.send(("failed", "internal_error", f"{type(error).__name__}: {error}"))
        return False  # the state of the work is unknown
    else:
        connection.send(("done",))
    return True


class _Cancelled(Exception):
    """The task was cancelled."""


def _run_work(work: Work, task: Task, connection: Connection, cancelled: Event) -> TaskResult | None:
    """Run the work and return its output, or None once it is cancelled."""
    next_preview = time.monotonic() + PREVIEW_SECONDS

    def send_preview(state: Step | TaskResult) -> None:
        nonlocal next_preview
        if time.monotonic() >= next_preview and (preview := work.preview(state)) is not None:
            connection.send(("preview", preview))
            next_preview = time.monotonic() + PREVIEW_SECONDS

    def on_step(step: Step) -> None:
        if cancelled.is_set():
            raise _Cancelled
        connection.send(("step", step.stage, step.step, step.total))
        send_preview(step)

    try:
        output = drive(work(task), on_step)
    except _Cancelled:
        return None
    if cancelled.is_set():
        return None
    send_preview(output)
    return output


if __name__ == "__main__":
    main()
