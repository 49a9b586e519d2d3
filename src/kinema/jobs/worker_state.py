"""What each worker does, for the API, the page and the other servers of the database."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Literal, Self


@dataclass(frozen=True, slots=True)
class WorkerState:
    """What a worker does.

    Attributes:
        place: Its device, such as "cuda:0", or the host name of its node; None until that is known.
        status: "starting" while it has no process that is ready.
        model: The model that it has loaded, or None.
        jobs: Ids of the job that it runs, and of the next one if it has got that already.
        problem: Why it is not ready.
        node_id: Ray's id of its node; None on the server's machine.
        gpus: The number of its GPUs, which make each video together; 0 on a CPU, None until that is known.
        failed: Whether its latest start failed, so that `problem` is not only what it does before it is ready.
    """

    place: str | None
    status: Literal["starting", "idle", "busy"]
    model: str | None
    jobs: tuple[str, ...]
    problem: str | None
    node_id: str | None = None
    gpus: int | None = None
    failed: bool = False


@dataclass(frozen=True, slots=True)
class PoolState:
    """What all workers do, and why no worker can be started, such as a cluster that does not respond."""

    workers: tuple[WorkerState, ...] = ()
    problems: tuple[str, ...] = ()

    def to_json(self) -> str:
        """Return the state for other processes."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the state that `to_json` wrote in another process, perhaps of another version."""
        found = json.loads(text)
        if isinstance(found, list):  # of a version that stored workers only
            found = {"workers": found}
        known = {field.name for field in dataclasses.fields(WorkerState)}
        workers = ({name: value for name, value in each.items() if name in known} for each in found.get("workers", ()))
        return cls(
            tuple(WorkerState(**each | {"jobs": tuple(each["jobs"])}) for each in workers),
            tuple(found.get("problems", ())),
        )
