"""A worker: a process on one device that is restarted when it dies and killed when it hangs.

A failed start is retried without limit. A worker process does not outlive the server: on Linux the kernel kills it when
the thread that started it ends; on every system it exits when its socket closes.
"""

from __future__ import annotations

import itertools
import logging
import time
from contextlib import suppress
from threading import Condition
from typing import TYPE_CHECKING, Any, Literal, Protocol

from kinema.jobs.local_worker import LocalWorker
from kinema.jobs.run_ends import Requeued, WorkerLost, raise_end
from kinema.jobs.supervisor import Supervisor
from kinema.jobs.worker_run import POLL_SECONDS, Run
from kinema.jobs.worker_state import WorkerState
from kinema.messages import Message

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from kinema.jobs.job import DeviceState, Task
    from kinema.jobs.run_ends import NextAction

log = logging.getLogger(__name__)

# A worker process that is not ready after this time is killed. Importing the work takes some seconds.
READY_SECONDS = 600.0
# A job is requeued if its worker process can't be started within this time.
START_SECONDS = 5.0


class WorkerProcess(Protocol):
    """A process of `kinema.jobs.worker_process`, on this machine (`LocalWorker`) or on another (`RemoteWorker`)."""

    @property
    def pid(self) -> int | None:
        """The process id; None on another machine."""

    @property
    def place(self) -> str | None:
        """The device, or the host name of a cluster's node; None if the process chooses the device, or has no node."""

    @property
    def node_id(self) -> str | None:
        """Ray's id of the node; None on this machine."""

    @property
    def gpus(self) -> int | None:
        """The number of GPUs that Ray gave to it; None on this machine."""

    @property
    def ended_by_itself(self) -> bool:
        """Once it has ended: whether the process ended, not its node or the connection to it."""

    def send(self, message: tuple[Any, ...], /) -> None:
        """Send a message, or raise OSError."""

    def receive(self) -> tuple[Any, ...]:
        """Wait for a message; EOFError or OSError if the process has ended."""

    def wait_for_message(self, seconds: float, /) -> bool:
        """Wait for a message; return whether there is one, or the process has ended."""

    def kill(self) -> None:
        """Kill the process."""

    def wait(self) -> str:
        """Wait until the process has ended, and return how."""


class StartFailed(Exception):
    """A worker process was not ready in time, or ended before that without reporting a reason."""


class Worker:
    """A worker process on one device. It is restarted whenever it ends, and computes one run at a time.

    Args:
        work: Import path of the work, as "package.module:attribute".
        device: Device of the process; "auto" leaves the choice to the settings.
        step_timeout: Seconds without a report after which the process counts as hung.
        on_ready: Called when the process is ready.
        launch: Starts a process, given work and device.
        is_remote: Whether the process runs on a cluster. Then a job whose process ended runs on another worker.
    """

    def __init__(
        self,
        work: str,
        device: str,
        step_timeout: float,
        on_ready: Callable[[], None],
        launch: Callable[[str, str], WorkerProcess] = LocalWorker,
        *,
        is_remote: bool = False,
    ) -> None:
        self.model: str | None = None  # model of the latest task, which is probably loaded when the next one starts
        self.device = device
        self._name = "the worker" if device == "auto" else f"the worker on {device}"  # in messages
        self._work = work
        self.step_timeout = step_timeout
        self._on_ready = on_ready
        self._launch, self._is_remote = launch, is_remote
        self._state = Condition()
        self._process: WorkerProcess | None = None
        self._ready: WorkerProcess | None = None  # the same, while it is ready
        self._numbers = itertools.count(1)
        self._device_state: DeviceState | None = None  # of the process that is ready, if its work reports it
        self._runs: dict[int, Run] = {}  # of the process that is ready, by number
        self._problem: str | None = None  # why no process is ready
        self._down_since: float | None = None  # time of the first of consecutive failed starts
        self._load_error: str | None = None  # why the latest process could not load the work
        self._kill_reason: str | None = None  # why this class killed the process
        self._latest_end = "it closed its socket"
        # The process ends with the thread that started it (see worker_process.exit_with_parent), so this thread lasts
        # as long as the worker.
        self._supervisor = Supervisor("kinema-worker-supervisor", self._run_process, self._report_failed_start)

    @property
    def pid(self) -> int | None:
        """The process id, or None unless the process is ready."""
        with self._state:
            return None if self._ready is None else self._ready.pid

    @property
    def is_ready(self) -> bool:
        """Whether a process is ready."""
        return self._ready is not None

    @property
    def state(self) -> WorkerState:
        """What it does now."""
        with self._state:
            jobs = tuple(run.job for run in self._runs.values())
            is_ready, process = self._ready is not None, self._ready or self._process
            device, problem, model = self._device_state, self._problem, self.model
            failed = self._down_since is not None or self._load_error is not None
        place, node_id, gpus = None, None, None
        if process is not None:
            place, node_id, gpus = process.place, process.node_id, process.gpus
        if device is not None:
            model = device.model
            if not self._is_remote:
                place, gpus = device.device, device.gpus
        status: Literal["starting", "idle", "busy"] = "starting" if not is_ready else "busy" if jobs else "idle"
        return WorkerState(place, status, model, jobs, problem, node_id, gpus, failed)

    @property
    def problem(self) -> str | None:
        """Why no process is ready, or what it is doing before that; None if one is ready."""
        return self._problem

    @property
    def is_down(self) -> bool:
        """Whether the latest start failed. The worker gets no jobs until a start succeeds."""
        return self._down_since is not None

    def start(self) -> None:
        """Start the process. It is ready once it has imported the work."""
        self._supervisor.start()

    def close(self) -> None:
        """Kill the process."""
        self._supervisor.stopping.set()
        with self._state:
            process, self._ready = self._process, None
            self._state.notify_all()
        if process is not None:
            process.kill()
        self._supervisor.join()

    def submit(self, tasks: tuple[Task, ...], folder: Path, next_action: Callable[[], NextAction]) -> Run:
        """Send consecutive parts of a job to the process; it runs them after those that it has already got.

        Args:
            tasks: The parts, in order.
            folder: The job's folder, for the output files.
            next_action: Called at least every POLL_SECONDS while no process is ready.

        Raises:
            WorkCancelled: `next_action` returned "cancel".
            Requeued: `next_action` returned "requeue", or no process can be started.
            WorkerLost: the process could not load the work.
        """
        process = self._wait_until_ready(next_action)
        with self._state:
            self.model = tasks[0].request.model
            number = next(self._numbers)
            run = Run(self, tasks[0].job, tuple(task.part for task in tasks))
            if self._ready is process:
                self._runs[number] = run
                run.number = number
                with suppress(OSError):  # the end of the process is reported to the run
                    process.send(("run", number, tasks, folder))
            else:
                run.reports.put(("ended", self._latest_end, True))
        return run

    def cancel(self, run: Run) -> None:
        """Tell the process to stop a run within a step."""
        with self._state, suppress(OSError):
            if run.number in self._runs and self._ready is not None:
                self._ready.send(("cancel", run.number))

    def forget(self, run: Run) -> None:
        """Ignore all further reports of a run."""
        with self._state:
            self._runs.pop(run.number, None)

    def kill(self, run: Run, reason: str) -> None:
        """Kill the process of this run, unless it has already ended."""
        with self._state:
            if self._runs.pop(run.number, None) is None or self._process is None:
                return
            process, self._ready = self._process, None  # no run gets this process again
            self._kill_reason = reason
        process.kill()

    def _wait_until_ready(self, next_action: Callable[[], NextAction]) -> WorkerProcess:
        """Return the process once it is ready."""
        while True:
            raise_end(next_action())
            with self._state:
                if self._ready is not None:
                    return self._ready
                if self._is_remote and self._load_error is None:
                    raise Requeued
                if self._load_error is not None:
                    load_error, self._load_error = self._load_error, None
                    raise WorkerLost("worker_died", f"the worker could not start: {load_error}")
                if self._down_since is not None and time.monotonic() - self._down_since > START_SECONDS:
                    raise Requeued
                self._state.wait(POLL_SECONDS)

    def _run_process(self) -> None:
        """Start a process and wait until it ends.

        Raises:
            OSError, StartFailed: the process could not be started.
        """
        process = self._launch(self._work, self.device)
        try:
            with self._state:
                self._process, self._kill_reason = process, None
            if not self._supervisor.stopping.is_set():
                self._wait_for_end(process)
        finally:
            process.kill()
            process.wait()
            with self._state:
                self._process = None

    def _wait_for_end(self, process: WorkerProcess) -> None:
        load_error = self._wait_for_start(process)
        with self._state:
            self._load_error = None
            self.model = None if self._device_state is None else self._device_state.model
            if load_error is None:
                self._ready = process
                self._problem = self._down_since = None
            elif load_error:
                self._problem = Message(
                    "worker_not_loaded", "{label} can't load its work (see the log)", label=self._name
                )
                self._down_since = None
            self._state.notify_all()
        if load_error is None:
            log.info("worker %s on %s is ready", process.pid or "process", self.state.place or self.device)
        self._on_ready()
        self._dispatch_reports(process)
        if load_error is None:
            process.kill()  # it can't receive tasks any more
        how = process.wait()
        with self._state:
            kill_reason = self._kill_reason
            end = self._latest_end = kill_reason or how
            self._ready = self._device_state = None
            self._load_error = load_error or None
            runs, self._runs = self._runs, {}
            self._state.notify_all()
        for run in runs.values():
            run.reports.put(("ended", end, kill_reason is not None or not process.ended_by_itself))
        if self._supervisor.stopping.is_set():
            return
        if load_error == "":
            raise StartFailed(f"it ended at once: {end}")
        level = logging.WARNING if kill_reason is None else logging.INFO
        place = process.place or self.device
        log.log(level, "worker %s on %s ended: %s", process.pid or "process", place, end)

    def _wait_for_start(self, process: WorkerProcess) -> str | None:
        """Return None if the process is ready, else why it could not load the work; "" if it ended without a reason.

        Raises:
            StartFailed: it is not ready within READY_SECONDS.
        """
        deadline, status = time.monotonic() + READY_SECONDS, "starting"
        while True:
            if self._down_since is None:
                self._problem = Message("worker_starting", "{label} is {message}", label=self._name, message=status)
            if not process.wait_for_message(deadline - time.monotonic()):
                raise StartFailed(f"it was not ready within {READY_SECONDS:g} seconds")
            try:
                match process.receive():
                    case ("status", text):
                        status = text
                    case ("load_failed", reason):
                        return str(reason)
                    case ("ready", device_state):
                        self._device_state = device_state
                        return None
            except (EOFError, OSError):
                return ""

    def _report_failed_start(self, error: Exception, pause: float) -> None:
        """Store and log why no process could be started."""
        expected = isinstance(error, OSError | StartFailed)
        reason = (getattr(error, "strerror", None) or str(error)) if expected else None
        with self._state:
            self._problem = Message(
                "worker_not_started",
                "{label} can't be started: {reason}",
                label=self._name,
                reason=reason or type(error).__name__,
            )
            if self._down_since is None:
                self._down_since = time.monotonic()
            self._state.notify_all()
        log.warning(
            "%s can't be started: %s; next attempt in %.1f seconds",
            self._name, error, pause, exc_info=None if expected else error,
        )  # fmt: skip

    def _dispatch_reports(self, process: WorkerProcess) -> None:
        """Pass each report to its run until the process ends."""
        with suppress(EOFError, OSError):
            while True:
                number, *report = process.receive()
                with self._state:
                    if number == "device":
                        (self._device_state,) = report
                    run = self._runs.get(number)
                if run is not None:
                    run.reports.put(tuple(report))
