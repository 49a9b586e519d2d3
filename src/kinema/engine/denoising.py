"""Denoising: from noise to latents, step by step, and window by window for a video longer than the model makes at once.

The first window begins at the image. Each further one begins with the last frames of the window before, whose latents
stay as they are, and goes on from there. Its condition is the image again, not a generated frame: otherwise errors
would add up from window to window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from kinema.engine import samplers, sampling
from kinema.engine.engines import make_step
from kinema.engine.group_step import make_group_step
from kinema.engine.out_of_memory import SMALLER, insufficient, is_out_of_memory
from kinema.errors import GenerationFailed, InvalidRequest
from kinema.models.memory_plan import plans
from kinema.models.offload import is_fast, place
from kinema.steps import Step

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from kinema.engine.conditioning import Conditions
    from kinema.engine.samplers import Predict, Sampler
    from kinema.models.loading import VideoPipeline
    from kinema.models.memory_plan import MemoryPlan
    from kinema.values import VideoRequest


def frames_at_once(pipeline: VideoPipeline, request: VideoRequest) -> int:
    """Return the number of frames that are denoised together: a loop's with the one that repeats the first."""
    return request.num_frames + 1 if request.loop else min(request.num_frames, pipeline.frames_at_once)


def check_length(pipeline: VideoPipeline, request: VideoRequest, *, has_two_ends: bool) -> None:
    """Check that a video between two images is not longer than the model makes at once.

    Raises:
        InvalidRequest: it is longer.
    """
    if has_two_ends and request.num_frames > (most := pipeline.frames_at_once):
        kind = "loop" if request.loop else "video with a last image"
        raise InvalidRequest(
            f"num_frames {request.num_frames} is too many for a {kind}: {pipeline.name} makes {most} frames at once",
            "num_frames",
        )


def denoise(
    pipeline: VideoPipeline,
    plan: MemoryPlan,
    ends: Sequence[Conditions],
    request: VideoRequest,
    generator: torch.Generator,
    events: list[str],
) -> Generator[Step, None, tuple[torch.Tensor, MemoryPlan]]:
    """Yield a step per noise level of each window; return the latents and the final plan.

    If memory runs out, the failed step is repeated with the next leaner plan.

    Args:
        pipeline: See `kinema.engine.generate`.
        plan: For the frames of one window.
        ends: The conditions at the beginning and, if the video ends at an image, at its end.
        request: The request.
        generator: On the CPU; draws all noise.
        events: A line is appended for each change of the plan; becomes `Recipe.events`.

    Returns:
        Latents, float32 [1, frames, c, h/f, w/f], a loop's with the frame that repeats the first; and the plan.

    Raises:
        InsufficientMemory: no leaner plan is left.
        GenerationFailed: the UNet's output has NaN or infinity.
    """
    denoising = _Denoising.begun(pipeline, ends, request)
    while True:
        state = generator.get_state()
        try:
            with place(pipeline, plan) as placed, placed.on_device("unet") as unet:
                sampler = _make_sampler(pipeline, plan, unet, ends, request, generator)
                while not denoising.is_finished:
                    state = generator.get_state()
                    yield denoising.step(sampler, generator)
            break
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            order = plans(guided=request.guided, fast=is_fast(pipeline), gpus=pipeline.gpus)
            next_plan = plan.next(order) if pipeline.device.type != "cpu" else None
            if next_plan is None:
                raise insufficient(error, "denoising", SMALLER) from None
        sampler = None  # type: ignore[assignment]  # also frees its copies of weights
        generator.set_state(state)
        events.append(f"memory ran out at denoising step {denoising.done + 1}: continued with {next_plan.name}")
        plan = next_plan
    latents = denoising.parts[0] if len(denoising.parts) == 1 else torch.cat(denoising.parts, 1)
    if not latents.isfinite().all():
        raise GenerationFailed(
            f"the UNet's output has NaN or infinity in {pipeline.dtype}; use dtype float32 or bfloat16, "
            "or check the weights"
        )
    return latents, plan


@dataclass
class _Denoising:
    """The state of denoising between two steps, which can be repeated with another sampler."""

    windows: tuple[sampling.Window, ...]
    shape: tuple[int, ...]
    """Of one frame's latents."""
    sigmas: torch.Tensor
    initial_scale: torch.Tensor
    parts: list[torch.Tensor]
    """The new frames of each finished window."""
    done: int = 0
    """Steps that are done, in all windows."""
    latents: torch.Tensor | None = None
    """Of the current window, between two of its steps."""
    known: samplers.Known | None = None
    """The frames with which the current window begins, if it is not the first."""

    @classmethod
    def begun(cls, pipeline: VideoPipeline, ends: Sequence[Conditions], request: VideoRequest) -> _Denoising:
        """Return the state before the first step."""
        scheduler = pipeline.scheduler
        sigmas = sampling.karras_sigmas(request.num_inference_steps, scheduler["sigma_min"], scheduler["sigma_max"])
        frames = frames_at_once(pipeline, request)
        windows = sampling.windows(max(frames, request.num_frames), frames)
        one = torch.ones(())
        scale = sampling.initial_latents(one, sigmas, scheduler).to(pipeline.device)
        return cls(windows, tuple(ends[0].latents.shape[1:]), sigmas.to(pipeline.device), scale, [])

    @property
    def total(self) -> int:
        """Steps of all windows."""
        return len(self.windows) * (len(self.sigmas) - 1)

    @property
    def is_finished(self) -> bool:
        """Whether all steps are done."""
        return self.done == self.total

    def step(self, sampler: Sampler, generator: torch.Generator) -> Step:
        """Take one step. If it raises, the state is that before it, except for the generator's."""
        index, i = divmod(self.done, len(self.sigmas) - 1)
        window = self.windows[index]
        latents, known = self.latents, self.known
        if i == 0:
            latents = self._noise(window.frames, generator) * self.initial_scale
            known = None
            if window.known:
                before = torch.cat(self.parts, 1)[:, -window.known :]
                known = samplers.Known(before, self._noise(window.known, generator))
        assert latents is not None, "set at the first step of the window"
        step = sampler if known is None else samplers.continuing(sampler, known)
        latents, clean = step(latents, self.sigmas[i], self.sigmas[i + 1])
        self.latents, self.known, self.done = latents, known, self.done + 1
        if i + 2 == len(self.sigmas):
            self.parts.append(latents[:, window.known :] if window.known else latents)
        return Step("denoise", self.done, self.total, latents=latents, clean=clean)

    def _noise(self, frames: int, generator: torch.Generator) -> torch.Tensor:
        shape = (1, frames, *self.shape)
        noise = torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
        return noise.to(self.sigmas.device)


def _make_sampler(
    pipeline: VideoPipeline,
    plan: MemoryPlan,
    unet: torch.nn.Module,
    ends: Sequence[Conditions],
    request: VideoRequest,
    generator: torch.Generator,
) -> Sampler:
    """Return the sampler of a video that begins at one image, or lies between two; `unet` is on its device."""
    forward = _make_prediction(pipeline, plan, unet, ends[0], request)
    if len(ends) == 1:
        return samplers.from_first(forward)
    is_loop = ends[1] is ends[0]
    backward = forward if is_loop else _make_prediction(pipeline, plan, unet, ends[1], request)
    return samplers.between(forward, backward, generator)


def _make_prediction(
    pipeline: VideoPipeline, plan: MemoryPlan, unet: torch.nn.Module, conditions: Conditions, request: VideoRequest
) -> Predict:
    """Return a function from noisy latents and their noise level to clean latents, guided if the request says so."""
    guidance, num_frames = None, frames_at_once(pipeline, request)
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
