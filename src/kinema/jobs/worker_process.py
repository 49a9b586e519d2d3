"""The worker process: runs jobs one at a time, reports each step, and exits when its parent does.

`kinema.jobs.local_worker` starts it as `python -m kinema.jobs.worker_process DESCRIPTOR WORK PARENT`. Both sides send
tuples through one socket. The parent sends ("run", number, tasks, folder) and ("cancel", number). This process sends
("status", text), and ("ready", device_state) or ("load_failed", reason); then (number, kind, …) for the run with that
number, and ("device", device_state) when another model is loaded. With the further argument "spare" it first imports
the libraries, sends ("spare",) and waits for ("begin", device).

The device must not wait for files: outputs are saved, previews encoded and the next run's inputs read in threads, while
the main thread computes.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from threading import Lock, Semaphore, Thread
from typing import TYPE_CHECKING, Any, cast

import psutil

from kinema.errors import DeviceLost, KinemaError
from kinema.jobs.job import PART_FILES
from kinema.jobs.job_files import atomic_file
from kinema.steps import drive

if TYPE_CHECKING:
    from collections.abc import Callable

    from kinema.jobs.job import DeviceState, Part, Task, TaskResult, Work
    from kinema.steps import Step

PREVIEW_SECONDS = 2.0
# Outputs in memory. The work waits while more are unsaved, and with less free memory than this, while any is unsaved.
MAX_UNSAVED = 2
MIN_FREE_BYTES = 2 * 10**9
_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Run tasks until the parent process closes the socket or exits."""
    descriptor, import_path, parent = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    exit_with_parent(parent)
    os.umask(0o077)  # output files are readable by the server's user only
    is_spare = sys.argv[4:] == ["spare"]
    _set_oom_score(1000 if is_spare else 500)
    # Ctrl-C and service managers signal all processes; the server decides when its worker processes end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    runner = Runner(Connection(descriptor))
    # Start before the import of the work, which may take long, so that the end of the parent is noticed meanwhile.
    Thread(target=runner.listen, daemon=True).start()
    try:
        make_work = import_work(import_path)
        if is_spare:
            runner.wait_as_spare(make_work)
            _set_oom_score(500)
        work = make_work()
        device_state = work.start(partial(runner.send, "status"))
    except Exception as error:  # noqa: BLE001 - any error is reported to the waiting job
        traceback.print_exc()
        runner.send("load_failed", f"{import_path} can't be loaded: {type(error).__name__}: {error}")
        sys.exit(1)
    runner.run_all(work, device_state)
    sys.exit(1)


def import_work(import_path: str) -> type[Work]:
    """Return the class "package.module:Class"."""
    module, _, name = import_path.partition(":")
    return cast("type[Work]", getattr(import_module(module), name))


def _set_oom_score(adjustment: int) -> None:
    """Have the kernel kill this process before the server if memory runs out, and a spare before a worker."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(adjustment), encoding="ascii")


def exit_with_parent(parent: int) -> None:
    """Have the kernel kill this process when the thread that started it ends (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent died before the call
        os._exit(1)


@dataclass(frozen=True, slots=True)
class Assignment:
    """Consecutive parts of one job, and the folder for their outputs."""

    number: int
    tasks: tuple[Task, ...]
    folder: Path


class Cancelled(Exception):
    """The run was cancelled, or one of its outputs could not be saved."""


class Runner:
    """Runs the assignments that the parent sends."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._sending = Lock()
        self._begun: SimpleQueue[str | None] = SimpleQueue()  # the device, of a spare
        self._arrived: SimpleQueue[Assignment] = SimpleQueue()
        self._prepared: SimpleQueue[Assignment] = SimpleQueue()
        self._to_save: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._to_preview: SimpleQueue[tuple[int, Step | TaskResult]] = SimpleQueue()
        self._next_preview = 0.0  # the earliest time of the next preview
        self._number = 0  # of the run whose states can be previewed
        self._previewing = Lock()
        self._unsaved = Semaphore(MAX_UNSAVED)
        self._cancelled: set[int] = set()
        self._device_state: DeviceState | None = None
        self._reported_model: str | None = None

    def send(self, *message: object) -> None:
        """Send a message to the parent."""
        with self._sending:
            self._connection.send(message)

    def add(self, assignment: Assignment) -> None:
        """Run an assignment after those that were added before."""
        self._arrived.put(assignment)

    def listen(self) -> None:
        """Receive the parent's messages while the main thread works.

        The end of this thread ends the process, since the process could not receive tasks any more.
        """
        try:
            while True:
                kind, *arguments = self._connection.recv()
                if kind == "run":
                    self.add(Assignment(*arguments))
                elif kind == "begin":
                    self._begun.put(arguments[0])
                else:
                    self._cancelled.add(arguments[0])
        except (EOFError, OSError):
            pass
        except Exception:  # noqa: BLE001 - printed; the process ends
            traceback.print_exc()
        os._exit(1)

    def wait_as_spare(self, make_work: type[Work]) -> None:
        """Import the libraries of the work, and wait until the parent gives this process a device."""
        make_work.import_libraries()
        self.send("spare")
        device = self._begun.get()
        if device is not None:
            os.environ["KINEMA_DEVICE"] = device

    def run_all(self, work: Work, device_state: DeviceState | None) -> None:
        """Report that the process is ready; run assignments in order until the state of the work is unknown."""
        self._device_state = device_state
        self._reported_model = None if device_state is None else device_state.model
        self.send("ready", device_state)
        for loop in (self._prepare, self._preview):
            Thread(target=loop, args=(work,), daemon=True).start()
        Thread(target=self._save, daemon=True).start()
        is_usable = True
        while is_usable:
            is_usable = self._run(work, self._prepared.get())
            self._report_model()
        self._wait_until_saved()

    # The main thread

    def _run(self, work: Work, assignment: Assignment) -> bool:
        """Run an assignment and report its outcome; return whether this process can run another one."""
        number = assignment.number
        with self._previewing:  # a preview of the run before uses its model
            self._number = number
        try:
            output = None
            for task in assignment.tasks:
                output = self._run_task(work, number, task, output)
                self._save_later(assignment, task.part, output)
        except Cancelled:
            self._to_save.put(partial(self.send, number, "cancelled"))
        except DeviceLost:  # this process ends too, so that the job runs again on a new one
            traceback.print_exc()
            return False
        except KinemaError as error:
            self._to_save.put(partial(self.send, number, "failed", error.code, str(error)))
        except Exception as error:  # noqa: BLE001 - an internal error fails its job only
            traceback.print_exc()
            message = f"{type(error).__name__}: {error}"
            self._to_save.put(partial(self.send, number, "failed", "internal_error", message))
            return False
        return True

    def _run_task(self, work: Work, number: int, task: Task, previous: TaskResult | None) -> TaskResult:
        """Run one part and return its output.

        Raises:
            Cancelled: the run was cancelled.
        """
        self._check(number)
        self.send(number, "started", task.part)
        self._next_preview = time.monotonic() + PREVIEW_SECONDS

        def on_step(step: Step) -> None:
            self._check(number)
            self._report_model()
            self.send(number, "step", step.stage, step.step, step.total)
            self._preview_later(number, step)

        output = drive(work(task, previous), on_step)
        self._check(number)
        self._preview_later(number, output)
        return output

    def _check(self, number: int) -> None:
        if number in self._cancelled:
            raise Cancelled

    def _report_model(self) -> None:
        """Report the device's state if another model is loaded than at the last report."""
        state = self._device_state
        if state is not None and state.model != self._reported_model:
            self._reported_model = state.model
            self.send("device", replace(state))

    def _preview_later(self, number: int, state: Step | TaskResult) -> None:
        if time.monotonic() >= self._next_preview and self._to_preview.empty():
            self._to_preview.put((number, state))

    def _save_later(self, assignment: Assignment, part: Part, output: TaskResult) -> None:
        """Have the output saved; wait for that if memory is short."""
        self._unsaved.acquire()
        self._to_save.put(partial(self._save_output, assignment, part, output))
        self.send(assignment.number, "computed", part)
        if psutil.virtual_memory().available < MIN_FREE_BYTES:
            self._wait_until_saved()

    def _wait_until_saved(self) -> None:
        saved: SimpleQueue[None] = SimpleQueue()
        self._to_save.put(partial(saved.put, None))
        saved.get()

    # Other threads

    def _prepare(self, work: Work) -> None:
        while True:
            assignment = self._arrived.get()
            if assignment.number not in self._cancelled:
                with suppress(Exception):  # the task meets the same error when it runs
                    work.prepare(assignment.tasks[0])
            self._prepared.put(assignment)

    def _preview(self, work: Work) -> None:
        while True:
            number, state = self._to_preview.get()
            with self._previewing:
                try:
                    preview = work.preview(state) if number == self._number else None
                except Exception:  # noqa: BLE001 - a missing preview does not fail the job
                    traceback.print_exc()
                    continue
            if preview is not None:
                self.send(number, "preview", preview)
                self._next_preview = time.monotonic() + PREVIEW_SECONDS

    def _save(self) -> None:
        while True:
            self._to_save.get()()

    def _save_output(self, assignment: Assignment, part: Part, output: TaskResult) -> None:
        number = assignment.number
        report: tuple[Any, ...] = ("saved", part)
        try:
            self._check(number)
            with atomic_file(assignment.folder / PART_FILES[part]) as path:
                output.save(path)
                self._check(number)
        except Cancelled:
            report = ("cancelled",)
        except KinemaError as error:
            report = ("failed", error.code, str(error))
        except Exception as error:  # noqa: BLE001 - an error of one output fails its job only
            traceback.print_exc()
            report = ("failed", "internal_error", f"{type(error).__name__}: {error}")
        if report[0] != "saved":
            self._cancelled.add(number)
        self._unsaved.release()
        self.send(number, *report)


if __name__ == "__main__":
    main()
