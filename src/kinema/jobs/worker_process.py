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
from kinema.jobs.job import PRODUCTS, Preview
from kinema.jobs.job_files import appearing
from kinema.values import Step

if TYPE_CHECKING:
    from kinema.jobs.job import Task, TaskResult, Work

PREVIEW_SECONDS = 2.0
_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Work until the parent says no more, or is gone."""
    descriptor, name, parent = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    end_with(parent)
    os.umask(0o077)  # what it writes is for the server's user alone
    with suppress(OSError):  # where memory runs out, this process goes before the server
        Path("/proc/self/oom_score_adj").write_text("500", encoding="ascii")
    # What ends the server is the server's to judge: Ctrl-C and a service manager signal all processes at once.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    link = Connection(descriptor)
    tasks: SimpleQueue[tuple[Task, Path]] = SimpleQueue()
    cancelled = Event()
    # Before the work is imported, which may take long: a parent that dies meanwhile is noticed.
    Thread(target=_listen, args=(link, tasks, cancelled), daemon=True).start()
    try:
        work = find_work(name)
    except Exception as error:  # noqa: BLE001 - whatever importing raises is told to who waits
        traceback.print_exc()
        link.send(("broken", f"{name} can't be loaded: {type(error).__name__}: {error}"))
        sys.exit(1)
    link.send(("ready",))
    while True:
        task, folder = tasks.get()
        if not _do(work, task, folder, link, cancelled):
            sys.exit(1)


def find_work(name: str) -> Work:
    """The callable named "package.module:attribute"; of a class, an instance."""
    module, _, attribute = name.partition(":")
    found = getattr(import_module(module), attribute)
    return cast("Work", found() if inspect.isclass(found) else found)


def end_with(parent: int) -> None:
    """Be killed when the thread that started this process ends, as it does when its process dies, however it dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before that
        os._exit(1)


def _listen(link: Connection, tasks: SimpleQueue[tuple[Task, Path]], cancelled: Event) -> None:
    """Hear the parent while the main thread works; the socket's end is the parent's.

    A process that hears nothing is of no use: whatever ends this thread ends it.
    """
    try:
        while True:
            kind, *rest = link.recv()
            if kind == "do":
                cancelled.clear()
                tasks.put((rest[0], rest[1]))
            else:
                cancelled.set()
    except (EOFError, OSError):
        pass
    except Exception:  # noqa: BLE001 - told, and the end all the same
        traceback.print_exc()
    os._exit(1)


def _do(work: Work, task: Task, folder: Path, link: Connection, cancelled: Event) -> bool:
    """Do one task and tell how it went; whether this process is fit for another."""
    link.send(("begun",))
    try:
        product = _follow(work, task, link, cancelled)
        if product is None:
            link.send(("cancelled",))
            return True
        with appearing(folder / PRODUCTS[task.part]) as aside:
            product.save(aside)
    except KinemaError as error:
        link.send(("failed", error.code, str(error)))
    except Exception as error:  # noqa: BLE001 - a defect fails its job, not the server
        traceback.print_exc()
        link.send(("failed", "internal_error", f"{type(error).__name__}: {error}"))
        return False  # there is no telling what it left behind
    else:
        link.send(("done",))
    return True


def _follow(work: Work, task: Task, link: Connection, cancelled: Event) -> TaskResult | None:
    """Iterate over the work to its product, or None as soon as it is cancelled."""
    steps = work(task)
    due = time.monotonic() + PREVIEW_SECONDS
    product: TaskResult | None = None
    try:
        for result in steps:
            if cancelled.is_set():
                return None
            if isinstance(result, Step):
                link.send(("step", result.stage, result.step, result.total))
            elif isinstance(result, Preview):
                if time.monotonic() >= due:
                    link.send(("preview", result.make()))
                    due = time.monotonic() + PREVIEW_SECONDS
            else:
                product = result
    finally:
        close = getattr(steps, "close", None)
        if close is not None:
            close()
    if product is None:
        raise TypeError(f"the work ended its part {task.part!r} without a product")
    return product


if __name__ == "__main__":
    main()
