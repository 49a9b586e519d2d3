"""Progress and ETA of a job, estimated from stage durations of completed jobs on this machine."""

from __future__ import annotations

import time
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kinema.jobs.job import Job
    from kinema.values import VideoRequest, Workload

# Each stage's share of the job time, used until a job of the model has completed.
_DEFAULT_SHARES = {
    "text_to_image": 25.0,
    "encode": 5.0,
    "denoise": 70.0,
    "decode": 25.0,
    "interpolate": 25.0,
    "upscale": 50.0,
}
# Seconds per unit of work of a stage that no job of the model has run, relative to those of denoising. Measured on one
# thread of a CPU: 2.7 and 1.4 beside a model in bfloat16, 1.8 and 0.9 in float32. A job does not name its device, so
# GPUs get the same factors, and the first estimate is too low there: 121 and 14 were measured on an H200, where that is
# 0.4 seconds per stage for 25 frames of svd-xt (bench/results/svd-xt-capabilities-h200.json).
_SLOWER = {"interpolate": 2.5, "upscale": 1.3}
# Weight of a new measurement in the moving average.
_SMOOTHING = 0.3


def stages_of(request: VideoRequest, *, text_to_image: bool) -> tuple[str, ...]:
    """Return the stages of a job in order."""
    stages = ("encode", "denoise", "decode", *request.finishing)
    return ("text_to_image", *stages) if text_to_image else stages


@dataclass(frozen=True, slots=True)
class JobSize:
    """What the duration of a job's stages depends on.

    Attributes:
        request: The request.
        workload: The work of its stages.
        has_last_image: Whether the video ends at an image.
    """

    request: VideoRequest
    workload: Workload
    has_last_image: bool = False

    @classmethod
    def of(cls, job: Job) -> JobSize:
        """Return the size of a job."""
        return cls(job.request, job.workload, job.last_image is not None and job.extend is None)

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages in order."""
        return stages_of(self.request, text_to_image=self.request.prompt is not None)

    def units(self, stage: str) -> float:
        """Return the amount of work of a stage. Only comparable within one stage and model."""
        pixels = self.request.width * self.request.height
        match stage:
            case "denoise":
                return self.workload.denoise * (1 + self.request.guided)
            case "decode":
                return float(pixels * self._decoded_frames)
            case "interpolate" | "upscale":
                return self.workload.finishing.get(stage, 0.0)
            case "text_to_image":
                return float(pixels * (self.request.image_num_inference_steps or 25))
            case _:
                return float(pixels * (1 + self.has_last_image))

    @property
    def _decoded_frames(self) -> int:
        """The most frames to decode: all, but of a video that is extended only those that its new windows predict."""
        request = self.request
        predicted = self.workload.denoise * 1_000_000 / (request.width * request.height * request.num_inference_steps)
        # No work: of a job that was stored before its work was counted.
        return min(request.num_frames, round(predicted) or request.num_frames)


class StageSpeeds:
    """Seconds per unit of work for each model and stage: an exponential moving average over completed jobs.

    `completed` is sorted newest first.
    """

    def __init__(self, completed: Sequence[Job] = ()) -> None:
        self._lock = Lock()
        self._seconds: dict[tuple[str, str], float] = {}
        for job in reversed(completed):
            self.learn(job)

    def learn(self, job: Job) -> None:
        """Add the stage durations of a completed job."""
        size = JobSize.of(job)
        with self._lock:
            for stage, seconds in job.stage_durations.items():
                if not (units := size.units(stage)):  # of a job that was stored before its work was counted
                    continue
                key = (size.request.model, stage)
                new = seconds / units
                old = self._seconds.get(key, new)
                self._seconds[key] = old + _SMOOTHING * (new - old)

    def estimate_stage(self, stage: str, size: JobSize) -> float | None:
        """Return the expected seconds of a stage, or None if no job of the model has run it."""
        with self._lock:
            per_unit = self._seconds.get((size.request.model, stage))
            denoise = self._seconds.get((size.request.model, "denoise"))
            if per_unit is None and stage in _SLOWER and denoise is not None:  # units are of as many operations
                per_unit = denoise * _SLOWER[stage]
        return None if per_unit is None else per_unit * size.units(stage)

    def estimate_job(self, size: JobSize) -> float | None:
        """Return the expected seconds of a job, or None if a stage has no measurement."""
        stages = [self.estimate_stage(stage, size) for stage in size.stages]
        return None if None in stages else sum(seconds for seconds in stages if seconds is not None)

    def shares(self, size: JobSize) -> Mapping[str, float]:
        """Return the relative duration of each stage, in any unit."""
        estimates = {stage: self.estimate_stage(stage, size) for stage in size.stages}
        if all(estimates.values()):
            return {stage: seconds for stage, seconds in estimates.items() if seconds is not None}
        return {stage: _DEFAULT_SHARES[stage] for stage in size.stages}


class JobEta:
    """Progress, stage durations and ETA of one running job, updated at each step."""

    def __init__(self, size: JobSize, speeds: StageSpeeds, durations: Mapping[str, float]) -> None:
        self._size = size
        self._speeds = speeds
        self._stages = size.stages
        self.durations = dict(durations)
        self.stage: str | None = None
        self.step = self.total = 0
        self.percent = 0
        self._last_step_at = self._stage_started_at = time.monotonic()
        self._first_step_seconds = 0.0

    def start_part(self) -> None:
        """Restart the clock: a part starts, and time since the last step does not count."""
        self._last_step_at = self._stage_started_at = time.monotonic()

    def record_step(self, stage: str, step: int, total: int) -> None:
        """Record a finished step."""
        now = time.monotonic()
        if stage != self.stage or step <= self.step:
            self._stage_started_at, self._first_step_seconds = self._last_step_at, now - self._last_step_at
            # A stage that runs again after a crash counts from zero.
            if stage != self.stage:
                self.durations[stage] = 0.0
        self.durations[stage] = self.durations.get(stage, 0.0) + now - self._last_step_at
        self.stage, self.step, self.total, self._last_step_at = stage, step, total, now
        self.percent = self._percent()

    def _percent(self) -> int:
        shares = self._speeds.shares(self._size)
        if self.stage is None or self.stage not in shares:
            return self.percent
        before = sum(shares[stage] for stage in self._stages[: self._stages.index(self.stage)])
        done = before + shares[self.stage] * min(1.0, self.step / max(1, self.total))
        # 100 means completed: after the last step the file still has to be written.
        return min(99, int(100 * done / sum(shares.values())))

    def eta(self) -> float | None:
        """Return the seconds until the job completes, or None if unknown."""
        if self.stage not in self._stages:
            return self._speeds.estimate_job(self._size)
        later = [
            self._speeds.estimate_stage(stage, self._size)
            for stage in self._stages[self._stages.index(self.stage) + 1 :]
        ]
        if None in later:
            return None
        current = self._rest_of_stage()
        return None if current is None else max(0.0, current + sum(seconds for seconds in later if seconds is not None))

    def _rest_of_stage(self) -> float | None:
        """Return the remaining seconds of the current stage.

        Extrapolate from this job's steps, without the first, which may include loading the model; before the second
        step use other jobs' durations.
        """
        now = time.monotonic()
        if self.step >= self.total:
            return 0.0
        if self.step > 1:
            per_step = (self._last_step_at - self._stage_started_at - self._first_step_seconds) / (self.step - 1)
            return per_step * (self.total - self.step) - (now - self._last_step_at)
        estimate = self._speeds.estimate_stage(str(self.stage), self._size)
        return None if estimate is None else estimate - (now - self._stage_started_at)
