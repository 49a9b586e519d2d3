"""Durable jobs: a queue that loses nothing, the files it keeps, and the processes in which the work is done.

The work itself is a callable, named by where it can be imported from; nothing here knows a model, torch or HTTP.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kinema.jobs.queue import Queue as Queue
    from kinema.jobs.values import Failure as Failure
    from kinema.jobs.values import Job as Job
    from kinema.jobs.values import Page as Page
    from kinema.jobs.values import Preview as Preview
    from kinema.jobs.values import Task as Task

_HOMES = {
    "Failure": "kinema.jobs.values",
    "Job": "kinema.jobs.values",
    "Page": "kinema.jobs.values",
    "Preview": "kinema.jobs.values",
    "Queue": "kinema.jobs.queue",
    "Task": "kinema.jobs.values",
}

__all__ = ["Failure", "Job", "Page", "Preview", "Queue", "Task"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'kinema.jobs' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
