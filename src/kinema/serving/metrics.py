"""Prometheus metrics: the state of the queue, and the durations of jobs that finished on this server.

The values are plain numbers, because prometheus_client's multiprocess mode stores its metrics in shared files.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from collections import Counter, defaultdict
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.core import Metric

    from kinema.jobs import Job, Queue

CACHE_SECONDS = 0.25  # limits the cost of frequent requests
_BOUNDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)


class _Histogram:
    """Counts of durations in seconds, by label."""

    def __init__(self) -> None:
        self.counts: dict[str, list[int]] = defaultdict(lambda: [0] * (len(_BOUNDS) + 1))
        self.sums: dict[str, float] = defaultdict(float)

    def observe(self, label: str, seconds: float) -> None:
        self.counts[label][bisect_left(_BOUNDS, seconds)] += 1
        self.sums[label] += seconds

    def buckets(self, label: str) -> list[tuple[str, float]]:
        """Return Prometheus's cumulative buckets: upper bound and count."""
        total, buckets = 0, []
        for bound, count in zip([*map(str, _BOUNDS), "+Inf"], self.counts[label], strict=True):
            total += count
            buckets.append((bound, float(total)))
        return buckets


class Metrics:
    """The metrics of one server process."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._text_lock, self._text, self._text_time = Lock(), "", -math.inf
        self._ended: Counter[tuple[str, str]] = Counter()
        self._waits = _Histogram()
        self._stages = _Histogram()
        self._steps = _Histogram()

    def observe(self, job: Job) -> None:
        """Record a finished job."""
        code = "" if job.error is None else job.error.code
        with self._lock:
            self._ended[job.status, code] += 1
            if job.started_at is not None:
                self._waits.observe(job.request.model, max(0.0, job.started_at - job.created_at))
            if job.status != "completed":
                return
            for stage, seconds in job.stage_durations.items():
                self._stages.observe(stage, seconds)
            if "denoise" in job.stage_durations:
                step = job.stage_durations["denoise"] / job.request.num_inference_steps
                self._steps.observe(job.request.model, step)

    def text(self, queue: Queue) -> str:
        """Return all metrics in Prometheus's text format, cached for CACHE_SECONDS."""
        from prometheus_client import CollectorRegistry, generate_latest

        with self._text_lock:
            if time.monotonic() - self._text_time > CACHE_SECONDS:
                registry = CollectorRegistry(auto_describe=False)
                registry.register(_Collector(self, queue))
                self._text, self._text_time = generate_latest(registry).decode(), time.monotonic()
            return self._text

    def collect(self, queue: Queue) -> Iterator[Metric]:
        """Yield each metric with its current value."""
        import psutil
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        yield GaugeMetricFamily("kinema_jobs_waiting", "Queued jobs.", queue.waiting())
        yield GaugeMetricFamily("kinema_jobs_running", "Running jobs.", queue.running())
        yield GaugeMetricFamily("kinema_workers_ready", "Ready worker processes.", queue.ready_workers)
        if (cluster_ready := queue.cluster_ready) is not None:
            description = "1 if the head of the Ray cluster responds and a node has GPUs, else 0."
            yield GaugeMetricFamily("kinema_cluster_ready", description, int(cluster_ready))
        yield GaugeMetricFamily(
            "kinema_unknown_files", "Entries of the data folder without a record in the database.", queue.unknown_files
        )
        batches, webhooks = len(queue.batches.unfinished()), queue.webhooks.count()
        yield GaugeMetricFamily("kinema_unfinished_batches", "Batches that have not ended.", batches)
        yield GaugeMetricFamily(
            "kinema_undelivered_webhooks", "Webhooks that are not delivered, also of unfinished jobs.", webhooks
        )
        memory = GaugeMetricFamily("kinema_resident_bytes", "Resident memory of the processes.", labels=["process"])
        memory.add_metric(["server"], psutil.Process().memory_info().rss)
        for index, pid in enumerate(queue.worker_pids):
            memory.add_metric([f"worker-{index}"], _resident_bytes(pid))
        yield memory
        with self._lock:
            ended = CounterMetricFamily(
                "kinema_jobs", "Finished jobs, by status and error code.", labels=["status", "code"]
            )
            for labels, count in self._ended.items():
                ended.add_metric(list(labels), count)
            yield ended
            for name, description, label, histogram in (
                ("kinema_wait_seconds", "Time in the queue, in seconds.", "model", self._waits),
                ("kinema_stage_seconds", "Duration of each stage of completed jobs.", "stage", self._stages),
                ("kinema_step_seconds", "Mean duration of a denoising step of completed jobs.", "model", self._steps),
            ):
                family = HistogramMetricFamily(name, description, labels=[label])
                for value in list(histogram.counts):
                    family.add_metric([value], histogram.buckets(value), histogram.sums[value])
                yield family


class _Collector:
    def __init__(self, metrics: Metrics, queue: Queue) -> None:
        self._metrics, self._queue = metrics, queue

    def collect(self) -> Iterator[Metric]:
        yield from self._metrics.collect(self._queue)


def _resident_bytes(pid: int | None) -> int:
    import psutil

    try:
        return 0 if pid is None else int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:  # the process has just ended
        return 0
