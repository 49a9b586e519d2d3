"""Kinema's side: the engine, with the time of each stage."""

from __future__ import annotations

from typing import TYPE_CHECKING

# Imports of model loading, before its time is measured.
from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel  # noqa: F401
from transformers import CLIPVisionModelWithProjection  # noqa: F401

from kinema.benchmark.stopwatch import Stopwatch, TimedRun
from kinema.engine import generate
from kinema.models.loading import load
from kinema.settings import read_settings
from kinema.values import Step

if TYPE_CHECKING:
    from kinema.benchmark.stopwatch import BenchmarkTask, Make
    from kinema.values import VideoRequest


def load_kinema(task: BenchmarkTask) -> Make:
    """Load the model, and return a function that generates a video.

    Raises:
        KinemaError: see `kinema.models.loading.load`.
    """
    settings = read_settings(device=task.device, dtype=task.dtype, precision=task.precision)
    pipeline = load(task.model, engine=task.engine, settings=settings)

    def make(request: VideoRequest) -> TimedRun:
        watch, latents = Stopwatch(pipeline.device), None
        for result in generate(pipeline, task.image, request):
            if not isinstance(result, Step):
                watch.ended("decode")
                assert latents is not None, "denoising precedes the video"
                return TimedRun(watch.seconds, result.frames, latents.float().cpu().numpy(), result.recipe)
            if result.step == result.total:
                watch.ended(result.stage)
            if result.latents is not None:
                latents = result.latents
        raise AssertionError("the engine yields the video last")

    return make
