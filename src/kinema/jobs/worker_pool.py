"""All workers: those of this machine, or as many as a Ray cluster has GPUs for. Each is free or assigned to one job."""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING

from kinema.jobs.local_worker import LocalWorker
from kinema.jobs.spare_worker import SpareWorker
from kinema.jobs.worker import Worker
from kinema.jobs.worker_state import PoolState

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kinema.jobs.cluster import Cluster


class WorkerPool:
    """All workers. Each is free or assigned to one job.

    Args:
        work: Import path of the work.
        devices: The devices of this machine's workers, one for each.
        step_timeout: As for `Worker`.
        on_free: Called when a worker is free.
        cluster: Where workers run instead, as many as it has GPUs for.
        maximum: Maximum number of workers on the cluster.
        has_spare: Whether there is a spare process for a worker of this machine that ends.
    """

    def __init__(
        self,
        work: str,
        devices: Sequence[str],
        step_timeout: float,
        on_free: Callable[[], None],
        cluster: Cluster | None = None,
        maximum: int | None = None,
        *,
        has_spare: bool = False,
    ) -> None:
        self._work, self._step_timeout = work, step_timeout
        self.cluster, self._maximum = cluster, maximum
        self.spare = SpareWorker(work, lambda: self.is_ready) if has_spare else None
        launch = LocalWorker if self.spare is None else self.spare.launch
        self.workers = tuple(Worker(work, device, step_timeout, on_free, launch) for device in devices)
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
        if self.spare is not None:
            self.spare.start()

    def close(self) -> None:
        """Kill all processes."""
        for worker in self.workers:
            worker.close()
        if self.spare is not None:
            self.spare.close()
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
