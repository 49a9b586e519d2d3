"""Figures for Prometheus: how the queue stands, and what the jobs that ended here took.

They are kept as plain numbers: prometheus_client's own would go through files that its users share between processes.
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

TEXT_SECONDS = 0.25  # so that asking often costs no more, whoever does it
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
        """As Prometheus has them: each with all below it."""
        total, told = 0, []
        for bound, count in zip([*map(str, _BOUNDS), "+Inf"], self.counts[label], strict=True):
            total += count
            told.append((bound, float(total)))
        return told


class Metrics:
    """What one server process has seen."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._writing, self._text, self._written = Lock(), "", -math.inf
        self._ended: Counter[tuple[str, str]] = Counter()
        self._waits = _Histogram()
        self._stages = _Histogram()
        self._steps = _Histogram()

    def observe(self, job: Job) -> None:
        """A job that was run here is finished."""
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
        """Everything in Prometheus's text format; who asks within a quarter of a second gets the same."""
        from prometheus_client import CollectorRegistry, generate_latest

        with self._writing:
            if time.monotonic() - self._written > TEXT_SECONDS:
                registry = CollectorRegistry(auto_describe=False)
                registry.register(_Collector(self, queue))
                self._text, self._written = generate_latest(registry).decode(), time.monotonic()
            return self._text

    def collect(self, queue: Queue) -> Iterator[Metric]:
        """Each figure as it is now."""
        import psutil
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        yield GaugeMetricFamily("kinema_queue_depth", "Jobs that wait.", queue.waiting())
        yield GaugeMetricFamily("kinema_running_jobs", "Jobs that are being run.", queue.running())
        yield GaugeMetricFamily("kinema_workers_ready", "Workers that are ready.", _ready_workers(queue))
        yield GaugeMetricFamily(
            "kinema_unknown_files", "Entries of the data folder that no record names.", queue.unknown_files
        )
        memory = GaugeMetricFamily("kinema_resident_bytes", "Memory of the processes.", labels=["process"])
        memory.add_metric(["server"], psutil.Process().memory_info().rss)
        for place, pid in enumerate(queue.workers):
            memory.add_metric([f"worker-{place}"], _resident(pid))
        yield memory
        with self._lock:
            ended = CounterMetricFamily("kinema_jobs", "Jobs that ended, by why.", labels=["status", "code"])
            for labels, count in self._ended.items():
                ended.add_metric(list(labels), count)
            yield ended
            for name, told, label, histogram in (
                ("kinema_wait_seconds", "Time in the queue.", "model", self._waits),
                ("kinema_stage_seconds", "Time of each stage of completed jobs.", "stage", self._stages),
                ("kinema_step_seconds", "Mean time of a denoising step of completed jobs.", "model", self._steps),
            ):
                family = HistogramMetricFamily(name, told, labels=[label])
                for value in list(histogram.counts):
                    family.add_metric([value], histogram.buckets(value), histogram.sums[value])
                yield family


class _Collector:
    def __init__(self, metrics: Metrics, queue: Queue) -> None:
        self._metrics, self._queue = metrics, queue

    def collect(self) -> Iterator[Metric]:
        yield from self._metrics.collect(self._queue)


def _ready_workers(queue: Queue) -> int:
    return sum(pid is not None for pid in queue.workers)


def _resident(pid: int | None) -> int:
    import psutil

    try:
        return 0 if pid is None else int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:  # it ended in this moment
        return 0
