"""Kinema's side: the engine, with the time of each stage."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kinema.benchmark.stopwatch import Stopwatch, TimedRun
from kinema.engine import generate
from kinema.models.loading import load
from kinema.settings import read_settings
from kinema.steps import Step, drive

if TYPE_CHECKING:
    import torch

    from kinema.benchmark.stopwatch import BenchmarkTask, Make
    from kinema.values import VideoRequest


def load_kinema(task: BenchmarkTask) -> Make:
    """Load the model, and return a function that generates a video.

    Raises:
        KinemaError: see `kinema.models.loading.load`.
    """
    settings = read_settings(
        device=task.device, dtype=task.dtype, precision=task.precision, gpus_per_video=str(task.gpus)
    )
    pipeline = load(task.model, engine=task.engine, settings=settings)

    def make(request: VideoRequest) -> TimedRun:
        watch = Stopwatch(pipeline.device)
        latents: torch.Tensor | None = None

        def on_step(step: Step) -> None:
            nonlocal latents
            if step.step == step.total:
                watch.end_stage(step.stage)
            if step.latents is not None:
                latents = step.latents

        video = drive(generate(pipeline, task.image, request), on_step)
        watch.end_stage("decode")
        assert latents is not None, "denoising precedes the video"
        return TimedRun(watch.seconds, video.frames, latents.float().cpu().numpy(), video.recipe)

    return make
