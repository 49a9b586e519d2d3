"""Consecutive parts of a job on a worker process, in the view of the job's thread, which waits for their outputs."""

from __future__ import annotations

import time
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol

from kinema.jobs.run_ends import Requeued, WorkCancelled, WorkerLost, WorkerReplaced, WorkFailed, raise_end

if TYPE_CHECKING:
    from collections.abc import Callable

    from kinema.jobs.job import Part
    from kinema.jobs.run_ends import NextAction

# A worker process whose step takes longer than this after a cancel is killed.
CANCEL_SECONDS = 1.5
POLL_SECONDS = 0.1


class RunControl(Protocol):
    """What a run needs of its worker."""

    step_timeout: float

    def cancel(self, run: Run, /) -> None:
        """Tell the process to stop the run within a step."""

    def forget(self, run: Run, /) -> None:
        """Ignore all further reports of the run."""

    def kill(self, run: Run, reason: str, /) -> None:
        """Kill the process of the run, unless it has already ended."""


class Run:
    """Consecutive parts of a job on the process of a worker.

    Attributes:
        number: Identifies the run to the process.
        reports: What the process has said about it.
    """

    def __init__(self, worker: RunControl, job: str, parts: tuple[Part, ...]) -> None:
        self._worker = worker
        self.job, self.parts = job, parts
        self.number = 0
        self.reports: SimpleQueue[tuple[Any, ...]] = SimpleQueue()
        self._last_report = time.monotonic()
        self._computing: Part | None = None
        self._computed: list[Part] = []  # their outputs are saved, or will be
        self._saved: set[Part] = set()

    @property
    def is_active(self) -> bool:
        """Whether the process has begun with it; before that, it waits for the run before."""
        return self._computing is not None or bool(self._computed)

    def wait_for(self, part: Part, on_report: Callable[[Any], None], next_action: Callable[[], NextAction]) -> None:
        """Wait until a part's output is saved.

        Args:
            part: One of the run's parts.
            on_report: Called with ("started", part), ("step", stage, step, total) and ("preview", jpeg).
            next_action: Called at least every POLL_SECONDS.

        Raises:
            WorkFailed, WorkCancelled: the run ended; the process is ready for another.
            WorkerLost: the process died or hung, and is replaced.
            WorkerReplaced: the process ended for another reason than this run, which has to be submitted again.
            Requeued: `next_action` returned "requeue".
        """
        cancel_deadline: float | None = None
        while part not in self._saved:
            with suppress(Empty):
                self._handle(self.reports.get(timeout=POLL_SECONDS), on_report, next_action)
            now = time.monotonic()
            match next_action():
                case "requeue":
                    self._worker.kill(self, "the queue is closing")
                    raise Requeued
                case "cancel" if cancel_deadline is None:
                    self._worker.cancel(self)
                    if not self.is_active:  # the process skips it
                        self._worker.forget(self)
                        raise WorkCancelled
                    cancel_deadline = now + CANCEL_SECONDS
                case "cancel" if self._computing and cancel_deadline is not None and now > cancel_deadline:
                    reason = f"its job was cancelled, and the step took longer than {CANCEL_SECONDS:g} seconds"
                    self._worker.kill(self, reason)
                    raise WorkCancelled
            if self.is_active and now - self._last_report > self._worker.step_timeout:
                reason = f"no step finished in {self._worker.step_timeout:g} seconds (KINEMA_STEP_TIMEOUT)"
                self._worker.kill(self, reason)
                raise WorkerLost("worker_hung", reason)

    def _handle(
        self,
        report: tuple[Any, ...],
        on_report: Callable[[Any], None],
        next_action: Callable[[], NextAction],
    ) -> None:
        """Handle a report of the process."""
        self._last_report = time.monotonic()
        match report:
            case ("computed", part):
                self._computing = None
                self._computed.append(part)
            case ("saved", part):
                self._saved.add(part)
                if part == self.parts[-1]:
                    self._worker.forget(self)
            case ("cancelled",):
                self._worker.forget(self)
                raise WorkCancelled
            case ("failed", code, message):
                self._worker.forget(self)
                raise WorkFailed(code, message)
            case ("ended", end, is_other_reason):
                raise_end(next_action())  # the process may have been killed for that reason
                if is_other_reason or not self.is_active:
                    raise WorkerReplaced(end)
                raise WorkerLost("worker_died", f"the worker died: {end}")
            case _:
                if report[0] == "started":
                    self._computing = report[1]
                on_report(report)
