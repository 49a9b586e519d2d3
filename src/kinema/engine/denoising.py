"""Denoising: from noise to latents, step by step.

A video longer than the model makes at once is denoised in windows, all together. Each has the image as its condition,
not a generated frame, so errors do not add up: every second window runs backward in time and returns to the image, and
the next one leaves it again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from kinema.engine import samplers, sampling
from kinema.engine.engines import make_step
from kinema.engine.group_step import make_group_step
from kinema.errors import GenerationFailed
from kinema.models.memory_plan import plans
from kinema.models.offload import is_fast, place
from kinema.models.out_of_memory import SMALLER, insufficient, is_out_of_memory
from kinema.models.windows import windows
from kinema.steps import Step

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from kinema.engine.conditioning import Conditions
    from kinema.engine.held_frames import HeldFrames
    from kinema.engine.samplers import Predict, Sampler
    from kinema.models.loading import VideoPipeline
    from kinema.models.memory_plan import MemoryPlan
    from kinema.models.windows import Window
    from kinema.values import VideoRequest

# Of latents that contain positions, the mean of two predictions moves less than each of them (training/README.md).
FUSED_MOTION = 1.4


def window_frames(pipeline: VideoPipeline, request: VideoRequest) -> int:
    """Return the number of frames that the UNet predicts together, a loop's with the one that repeats the first."""
    return request.num_frames + 1 if request.loop else min(request.num_frames, pipeline.frames_at_once)


def denoise(
    pipeline: VideoPipeline,
    plan: MemoryPlan,
    ends: Sequence[Conditions],
    request: VideoRequest,
    generator: torch.Generator,
    events: list[str],
    held: HeldFrames | None = None,
) -> Generator[Step, None, tuple[torch.Tensor, MemoryPlan]]:
    """Yield a step per noise level; return the latents and the final plan.

    If memory runs out, the failed step is repeated with the next leaner plan.

    Args:
        pipeline: See `kinema.engine.generate`.
        plan: For the frames of one window.
        ends: The conditions at the beginning and, if the video ends at an image, at its end.
        request: The request.
        generator: On the CPU; draws all noise.
        events: A line is appended for each change of the plan; becomes `Recipe.events`.
        held: The frames from which the video is extended.

    Returns:
        Latents, float32 [1, num_frames, c, h/f, w/f], and the plan. An extended video has the held frames and the new.

    Raises:
        InsufficientMemory: no leaner plan is left.
        GenerationFailed: the UNet's output has NaN or infinity.
    """
    device, steps = pipeline.device, request.num_inference_steps
    sigmas = sampling.karras_sigmas(steps, pipeline.scheduler["sigma_min"], pipeline.scheduler["sigma_max"])
    parts = held.windows if held else _windows(pipeline, request)
    shape = (1, parts[0].end, *ends[0].latents.shape[1:])
    noise = torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
    noise = samplers.window_noise(noise, parts)
    latents = sampling.initial_latents(noise, sigmas, pipeline.scheduler).to(device)
    if held:
        count = held.latents.shape[1]
        latents[:, :count] = held.latents + (noise[:, :count] * sigmas[0]).to(device)
    sigmas = sigmas.to(device)
    done, state = 0, generator.get_state()
    sampler: Sampler | None = None
    while True:
        try:
            with place(pipeline, plan) as placed, placed.on_device("unet") as unet:
                sampler = _make_sampler(pipeline, plan, unet, ends, request, generator, held)
                for i in range(done, steps):
                    state = generator.get_state()
                    latents, clean = sampler(latents, sigmas[i], sigmas[i + 1])
                    done = i + 1
                    yield Step("denoise", done, steps, latents=latents, clean=clean)
            break
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            order = plans(guided=request.guided, fast=is_fast(pipeline), gpus=pipeline.gpus)
            next_plan = plan.next(order) if device.type != "cpu" else None
            if next_plan is None:
                raise insufficient(error, "denoising", SMALLER) from None
        sampler = None  # also frees its copies of weights
        generator.set_state(state)
        events.append(f"memory ran out at denoising step {done + 1}: continued with {next_plan.name}")
        plan = next_plan
    if not latents.isfinite().all():
        raise GenerationFailed(
            f"the UNet's output has NaN or infinity in {pipeline.dtype}; use dtype float32 or bfloat16, "
            "or check the weights"
        )
    # The last frame of a loop would repeat the first.
    count = held.count if held else request.num_frames
    return latents if latents.shape[1] == count else latents[:, :count], plan


def _windows(pipeline: VideoPipeline, request: VideoRequest) -> tuple[Window, ...]:
    """Return the windows of the video; a loop and a video with a last image have one."""
    at_once = window_frames(pipeline, request)
    return windows(max(request.num_frames, at_once), at_once)


def _make_sampler(
    pipeline: VideoPipeline,
    plan: MemoryPlan,
    unet: torch.nn.Module,
    ends: Sequence[Conditions],
    request: VideoRequest,
    generator: torch.Generator,
    held: HeldFrames | None,
) -> Sampler:
    """Return the sampler of a video that begins at one image, or lies between two; `unet` is on its device."""
    num_frames = held.at_once if held else window_frames(pipeline, request)
    if len(ends) == 2 and not pipeline.encodes_frames:
        first = ends[0].with_motion(FUSED_MOTION)
        ends = [first, first if ends[1] is ends[0] else ends[1].with_motion(FUSED_MOTION)]
    forward = _make_prediction(pipeline, plan, unet, ends[0], request, num_frames)
    if held:
        all_windows = samplers.in_windows(forward, held.windows)
        return samplers.from_first(samplers.holding(all_windows, held.latents, held.reach))
    if len(ends) == 1:
        parts = _windows(pipeline, request)
        return samplers.from_first(forward if len(parts) == 1 else samplers.in_windows(forward, parts))
    backward = forward if ends[1] is ends[0] else _make_prediction(pipeline, plan, unet, ends[1], request, num_frames)
    # Where each frame's latents contain the unmoved image, `between` would mix both images in every frame.
    if request.loop or not pipeline.encodes_frames:
        return samplers.fused(forward, backward, eases=request.loop and not pipeline.encodes_frames)
    return samplers.between(forward, backward, generator)


def _make_prediction(
    pipeline: VideoPipeline,
    plan: MemoryPlan,
    unet: torch.nn.Module,
    conditions: Conditions,
    request: VideoRequest,
    num_frames: int,
) -> Predict:
    """Return a function from noisy latents and their noise level to clean latents, guided if the request says so."""
    guidance = None
    if request.guided:
        ramp = sampling.guidance_ramp(request.min_guidance_scale, request.max_guidance_scale, num_frames)
        guidance, conditions = ramp.to(pipeline.device), conditions.for_guidance()
    make = make_group_step if pipeline.group else make_step
    step = make(pipeline, plan, unet, conditions, num_frames)

    def predict(latents: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        sample = sampling.scaled_input(latents, sigma).to(pipeline.dtype)
        v = step(sample, sampling.time_of(sigma)).float()
        if guidance is not None:
            v = sampling.guided(v, guidance)
        return sampling.denoised(latents, v, sigma)

    return predict
