"""How a run of a job's parts on a worker can end, if not with its output, and what the job's thread can ask for."""

from __future__ import annotations

from typing import Literal

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


class WorkerReplaced(Exception):
    """The worker process ended because of another run or before this one began; it is replaced."""


class Requeued(BaseException):
    """The job can't go on now, because the queue closes or no worker is available. It goes back to the queue.

    It is not an `Exception`, so that DBOS does not store it as the outcome of the workflow.
    """


def raise_end(action: NextAction) -> None:
    """End a run as the job's thread asks.

    Raises:
        WorkCancelled, Requeued: `action` is "cancel" or "requeue".
    """
    match action:
        case "requeue":
            raise Requeued
        case "cancel":
            raise WorkCancelled
