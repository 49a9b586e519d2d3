"""How far a job is and how long it will take, judged from those that went before it on this machine."""

from __future__ import annotations

import time
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kinema.jobs.job import Job
    from kinema.values import VideoRequest

# Each stage's share of a job's time, while no job of the model was seen to its end.
_SHARES = {"text_to_image": 25.0, "encode": 5.0, "denoise": 70.0, "decode": 25.0}
# A new measurement counts this much against all before it.
_RECENT = 0.3
# A job's time, while none of its model was seen.
_UNKNOWN_SECONDS = 60.0


def stages_of(*, text_to_image: bool) -> tuple[str, ...]:
    """The stages that a job goes through, in order."""
    return ("text_to_image", "encode", "denoise", "decode") if text_to_image else ("encode", "denoise", "decode")


def _work(stage: str, request: VideoRequest) -> float:
    """How much a stage has to do, in numbers that compare within the stage and model."""
    pixels = request.width * request.height
    match stage:
        case "denoise":
            return float(pixels * request.num_frames * request.num_inference_steps * (1 + request.guided))
        case "decode":
            return float(pixels * request.num_frames)
        case "text_to_image":
            return float(pixels * (request.image_num_inference_steps or 25))
        case _:
            return float(pixels)


class StageSpeeds:
    """Seconds for a unit of each stage's work, by model; learnt from completed jobs, the latest most."""

    def __init__(self, completed: Sequence[Job] = ()) -> None:
        self._lock = Lock()
        self._seconds: dict[tuple[str, str], float] = {}
        for job in reversed(completed):
            self.learn(job)

    def learn(self, job: Job) -> None:
        """Take a completed job's durations into account."""
        with self._lock:
            for stage, seconds in job.stage_durations.items():
                key = (job.request.model, stage)
                new = seconds / _work(stage, job.request)
                old = self._seconds.get(key, new)
                self._seconds[key] = old + _RECENT * (new - old)

    def stage_seconds(self, stage: str, request: VideoRequest) -> float | None:
        """How long a stage should take, None where it was not seen yet."""
        with self._lock:
            unit = self._seconds.get((request.model, stage))
        return None if unit is None else unit * _work(stage, request)

    def seconds(self, request: VideoRequest, *, text_to_image: bool) -> float | None:
        """How long a job should take, None where the model was not seen yet."""
        known = [self.stage_seconds(stage, request) for stage in stages_of(text_to_image=text_to_image)]
        return None if None in known else sum(seconds for seconds in known if seconds is not None)

    def guess(self, request: VideoRequest, *, text_to_image: bool) -> float:
        """As `seconds`, with a guess where no one can know."""
        return self.seconds(request, text_to_image=text_to_image) or _UNKNOWN_SECONDS

    def shares(self, request: VideoRequest, stages: Sequence[str]) -> Mapping[str, float]:
        """Each stage's share of the job, in any unit."""
        known = {stage: self.stage_seconds(stage, request) for stage in stages}
        if all(known.values()):
            return {stage: seconds for stage, seconds in known.items() if seconds is not None}
        return {stage: _SHARES[stage] for stage in stages}


class JobEta:
    """One running job's progress: told each step, it knows stage durations, percent and the time that is left."""

    def __init__(
        self, request: VideoRequest, speeds: StageSpeeds, durations: Mapping[str, float], *, text_to_image: bool
    ) -> None:
        self._request = request
        self._speeds = speeds
        self._stages = stages_of(text_to_image=text_to_image)
        self.durations = dict(durations)
        self.stage: str | None = None
        self.step = self.total = 0
        self.percent = 0
        self._mark = self._stage_began = time.monotonic()
        self._first_seconds = 0.0

    def begin(self) -> None:
        """A part begins, maybe again: what was spent since the last step was spent on nothing."""
        self._mark = self._stage_began = time.monotonic()

    def tell(self, stage: str, step: int, total: int) -> None:
        """Another step is done."""
        now = time.monotonic()
        if stage != self.stage or step <= self.step:
            self._stage_began, self._first_seconds = self._mark, now - self._mark
            # Done again after a crash, it took what it takes now.
            if stage != self.stage:
                self.durations[stage] = 0.0
        self.durations[stage] = self.durations.get(stage, 0.0) + now - self._mark
        self.stage, self.step, self.total, self._mark = stage, step, total, now
        self.percent = self._percent()

    def _percent(self) -> int:
        shares = self._speeds.shares(self._request, self._stages)
        if self.stage is None or self.stage not in shares:
            return self.percent
        before = sum(shares[stage] for stage in self._stages[: self._stages.index(self.stage)])
        done = before + shares[self.stage] * min(1.0, self.step / max(1, self.total))
        # 100 is for what is completed: until then there is a file to be written.
        return min(99, int(100 * done / sum(shares.values())))

    def eta(self) -> float | None:
        """Seconds until the job is done, None while no one can know."""
        if self.stage not in self._stages:
            return self._speeds.seconds(self._request, text_to_image="text_to_image" in self._stages)
        later = [
            self._speeds.stage_seconds(stage, self._request)
            for stage in self._stages[self._stages.index(self.stage) + 1 :]
        ]
        if None in later:
            return None
        here = self._left_of_stage()
        return None if here is None else max(0.0, here + sum(seconds for seconds in later if seconds is not None))

    def _left_of_stage(self) -> float | None:
        """By the steps so far, without the first, which may have loaded the model; else by other jobs'."""
        now = time.monotonic()
        if self.step >= self.total:
            return 0.0
        if self.step > 1:
            a_step = (self._mark - self._stage_began - self._first_seconds) / (self.step - 1)
            return a_step * (self.total - self.step) - (now - self._mark)
        whole = self._speeds.stage_seconds(str(self.stage), self._request)
        return None if whole is None else whole - (now - self._stage_began)
