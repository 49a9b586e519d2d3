"""Worker processes: one for each worker of the pool, restarted when it dies and killed when it hangs.

A failed start is retried without limit. A worker process does not outlive the server: on Linux the kernel kills it when
the thread that started it ends; on every system it exits when its socket closes.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
import time
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Condition, Lock
from typing import TYPE_CHECKING, Any, Literal, Protocol

from kinema.errors import InvalidRequest
from kinema.jobs.local_worker import LocalWorker
from kinema.jobs.supervisor import Supervisor
from kinema.jobs.worker_state import PoolState, WorkerState
from kinema.messages import Message

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kinema.jobs.cluster import Cluster
    from kinema.jobs.job import DeviceState, Part, Task
    from kinema.settings import Settings

log = logging.getLogger(__name__)

# A worker process whose step takes longer than this after a cancel is killed.
CANCEL_SECONDS = 1.5
POLL_SECONDS = 0.1
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


NextAction = Literal["continue", "cancel", "requeue"]


class WorkerLost(Exception):
    """A worker process died or hung during a task. `code` is "worker_died" or "worker_hung"."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class WorkFailed(Exception):
    """The work raised an error. `code` is the code of a Failure."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class WorkCancelled(Exception):
    """The job was cancelled or deleted, and its work has stopped."""


class StartFailed(Exception):
    """A worker process was not ready in time, or ended before that without reporting a reason."""


class WorkerReplaced(Exception):
    """The worker process ended because of another run or before this one began; it is replaced."""


class Requeued(BaseException):
    """The job can't go on now, because the queue closes or no worker is available. It goes back to the queue.

    It is not an `Exception`, so that DBOS does not store it as the outcome of the workflow.
    """


def devices_for(settings: Settings) -> tuple[str, ...]:
    """Return the device of each worker: that of the settings, or one per GPU or group of GPUs. Does not import torch.

    Raises:
        InvalidRequest: a group has more GPUs than the machine.
    """
    if settings.device != "auto":
        return (settings.device,) * (settings.workers or 1)
    gpus, size = count_gpus(), settings.gpus_per_video
    if size > max(gpus, 1):
        raise InvalidRequest(f"KINEMA_GPUS_PER_VIDEO is {size}, but this machine has {gpus} GPUs", "gpus_per_video")
    groups = gpus // size
    count = settings.workers or max(1, groups)
    return tuple(f"cuda:{size * (i % groups)}" for i in range(count)) if gpus > 1 else ("auto",) * count


def count_gpus() -> int:
    """Return how many GPUs are visible to processes of this environment. Does not import torch."""
    gpus = len([path for path in Path("/dev").glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name)])
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return gpus if visible is None else min(gpus, len([name for name in visible.split(",") if name.strip()]))


class Run:
    """Consecutive parts of a job on a worker process, in the view of the job's thread."""

    def __init__(self, job: str, parts: tuple[Part, ...]) -> None:
        self.job, self.parts = job, parts
        self.number = 0
        self.reports: SimpleQueue[tuple[Any, ...]] = SimpleQueue()
        self.last_report = time.monotonic()
        self.computing: Part | None = None
        self.computed: list[Part] = []  # their outputs are saved, or will be
        self.saved: set[Part] = set()

    @property
    def is_active(self) -> bool:
        """Whether the process has begun with it; before that, it waits for the run before."""
        return self.computing is not None or bool(self.computed)


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
        self._step_timeout = step_timeout
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
            run = Run(tasks[0].job, tuple(task.part for task in tasks))
            if self._ready is process:
                self._runs[number] = run
                run.number = number
                with suppress(OSError):  # the end of the process is reported to the run
                    process.send(("run", number, tasks, folder))
            else:
                run.reports.put(("ended", self._latest_end, True))
        return run

    def wait_for(
        self, run: Run, part: Part, on_report: Callable[[Any], None], next_action: Callable[[], NextAction]
    ) -> None:
        """Wait until a part's output is saved.

        Args:
            run: From `submit`.
            part: One of its parts.
            on_report: Called with ("started", part), ("step", stage, step, total) and ("preview", jpeg).
            next_action: Called at least every POLL_SECONDS.

        Raises:
            WorkFailed, WorkCancelled: the run ended; the process is ready for another.
            WorkerLost: the process died or hung, and is replaced.
            WorkerReplaced: the process ended for another reason than this run, which has to be submitted again.
            Requeued: `next_action` returned "requeue".
        """
        cancel_deadline: float | None = None
        while part not in run.saved:
            with suppress(Empty):
                self._handle(run, run.reports.get(timeout=POLL_SECONDS), on_report, next_action)
            now = time.monotonic()
            match next_action():
                case "requeue":
                    self._kill(run, "the queue is closing")
                    raise Requeued
                case "cancel" if cancel_deadline is None:
                    self._send_cancel(run)
                    if not run.is_active:  # the process skips it
                        self._forget(run)
                        raise WorkCancelled
                    cancel_deadline = now + CANCEL_SECONDS
                case "cancel" if run.computing and cancel_deadline is not None and now > cancel_deadline:
                    reason = f"its job was cancelled, and the step took longer than {CANCEL_SECONDS:g} seconds"
                    self._kill(run, reason)
                    raise WorkCancelled
            if run.is_active and now - run.last_report > self._step_timeout:
                reason = f"no step finished in {self._step_timeout:g} seconds (KINEMA_STEP_TIMEOUT)"
                self._kill(run, reason)
                raise WorkerLost("worker_hung", reason)

    def _handle(
        self,
        run: Run,
        report: tuple[Any, ...],
        on_report: Callable[[Any], None],
        next_action: Callable[[], NextAction],
    ) -> None:
        """Handle a report of the process."""
        run.last_report = time.monotonic()
        match report:
            case ("computed", part):
                run.computing = None
                run.computed.append(part)
            case ("saved", part):
                run.saved.add(part)
                if part == run.parts[-1]:
                    self._forget(run)
            case ("cancelled",):
                self._forget(run)
                raise WorkCancelled
            case ("failed", code, message):
                self._forget(run)
                raise WorkFailed(code, message)
            case ("ended", end, is_other_reason):
                _raise_end(next_action())  # the process may have been killed for that reason
                if is_other_reason or not run.is_active:
                    raise WorkerReplaced(end)
                raise WorkerLost("worker_died", f"the worker died: {end}")
            case _:
                if report[0] == "started":
                    run.computing = report[1]
                on_report(report)

    def _send_cancel(self, run: Run) -> None:
        with self._state, suppress(OSError):
            if run.number in self._runs and self._ready is not None:
                self._ready.send(("cancel", run.number))

    def _wait_until_ready(self, next_action: Callable[[], NextAction]) -> WorkerProcess:
        """Return the process once it is ready."""
        while True:
            _raise_end(next_action())
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

    def _forget(self, run: Run) -> None:
        """Ignore all further reports of a run."""
        with self._state:
            self._runs.pop(run.number, None)

    def _kill(self, run: Run, reason: str) -> None:
        """Kill the process of this run, unless it has already ended."""
        with self._state:
            if self._runs.pop(run.number, None) is None or self._process is None:
                return
            process, self._ready = self._process, None  # no run gets this process again
            self._kill_reason = reason
        process.kill()


def _raise_end(action: NextAction) -> None:
    match action:
        case "requeue":
            raise Requeued
        case "cancel":
            raise WorkCancelled


class WorkerPool:
    """All workers. Each is free or assigned to one job.

    Args:
        work: Import path of the work.
        devices: The devices of this machine's workers, one for each.
        step_timeout: As for `Worker`.
        on_free: Called when a worker is free.
        cluster: Where workers run instead, as many as it has GPUs for.
        maximum: Maximum number of workers on the cluster.
    """

    def __init__(
        self,
        work: str,
        devices: Sequence[str],
        step_timeout: float,
        on_free: Callable[[], None],
        cluster: Cluster | None = None,
        maximum: int | None = None,
    ) -> None:
        self._work, self._step_timeout = work, step_timeout
        self.cluster, self._maximum = cluster, maximum
        self.workers = tuple(Worker(work, device, step_timeout, on_free) for device in devices)
        self._free = list(self.workers)
        self._lock = Lock()
        self._on_free = on_free

    @property
    def is_ready(self) -> bool:
        """Whether all workers of this machine are ready, or any on the cluster."""
        ready = [worker.is_ready for worker in self.workers]
        return all(ready) if self.cluster is None else self.cluster.problem is None and any(ready)

    @property
    def state(self) -> PoolState:
        """What each worker does, and why none can be started on the cluster."""
        problem = None if self.cluster is None else self.cluster.problem
        return PoolState(tuple(worker.state for worker in self.workers), () if problem is None else (problem,))

    def state_as_json(self) -> str:
        """Return `state` for other processes."""
        return self.state.to_json()

    def start(self) -> None:
        """Start all processes."""
        if self.cluster is not None:
            self.cluster.start()
        for worker in self.workers:
            worker.start()

    def close(self) -> None:
        """Kill all processes."""
        for worker in self.workers:
            worker.close()
        if self.cluster is not None:
            self.cluster.close()

    def follow_cluster(self) -> None:
        """Have one worker for each slot of the cluster; remove a worker only while it is free and has no process."""
        if self.cluster is None:
            return
        wanted = min(self.cluster.slots, self._maximum or self.cluster.slots)
        while len(self.workers) < wanted:
            worker = Worker(
                self._work, "a node", self._step_timeout, self._on_free, self.cluster.launch, is_remote=True
            )
            worker.start()
            with self._lock:
                self.workers += (worker,)
                self._free.append(worker)
        with self._lock:
            idle = [worker for worker in self._free if not worker.is_ready]
            removed = idle[: max(0, len(self.workers) - wanted)]
            self.workers = tuple(worker for worker in self.workers if worker not in removed)
            self._free = [worker for worker in self._free if worker not in removed]
        for worker in removed:
            worker.close()

    def free_models(self) -> list[str | None]:
        """Return the loaded model of each free worker; None for a worker without a model."""
        with self._lock:
            return [worker.model for worker in self._available()]

    def acquire(self, model: str) -> Worker | None:
        """Take a free worker, preferably one with this model loaded, else one with none; None if no worker is free."""
        with self._lock:
            available = self._available()
            if not available:
                return None
            best = min(available, key=lambda worker: (worker.model != model, worker.model is not None))
            self._free.remove(best)
            return best

    def _available(self) -> list[Worker]:
        """Return the free workers that can get a job; one on a cluster only if its process is ready."""
        return [worker for worker in self._free if not worker.is_down and (self.cluster is None or worker.is_ready)]

    def release(self, worker: Worker) -> None:
        """Mark a worker as free."""
        with self._lock:
            self._free.append(worker)
        self._on_free()
