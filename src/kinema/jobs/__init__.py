"""Durable job queue: job table, files, scheduler and worker processes.

The work is a callable, given by its import path. This package depends on no model, not on torch and not on HTTP.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kinema.jobs.job import Failure as Failure
    from kinema.jobs.job import Job as Job
    from kinema.jobs.job import JobPage as JobPage
    from kinema.jobs.job import Task as Task
    from kinema.jobs.new_job import NewJob as NewJob
    from kinema.jobs.queue import Queue as Queue

_MODULES = {
    "Failure": "kinema.jobs.job",
    "Job": "kinema.jobs.job",
    "JobPage": "kinema.jobs.job",
    "NewJob": "kinema.jobs.new_job",
    "Queue": "kinema.jobs.queue",
    "Task": "kinema.jobs.job",
}

__all__ = ["Failure", "Job", "JobPage", "NewJob", "Queue", "Task"]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module 'kinema.jobs' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__
