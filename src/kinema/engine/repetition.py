"""Denoise the video that is extended again, for a model whose encoder can't give the latents of a frame."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from kinema.engine.denoising import denoise
from kinema.engine.held_frames import HeldFrames, new_windows
from kinema.steps import Step, replaced

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from kinema.engine.conditioning import Conditions
    from kinema.media.source_video import SourceVideo
    from kinema.models.loading import VideoPipeline
    from kinema.models.memory_plan import MemoryPlan
    from kinema.values import VideoRequest


def denoise_again(
    pipeline: VideoPipeline,
    plan: MemoryPlan,
    ends: Sequence[Conditions],
    source: SourceVideo,
    request: VideoRequest,
    generator: torch.Generator,
    events: list[str],
) -> Generator[Step, None, tuple[HeldFrames, MemoryPlan]]:
    """Denoise the earlier video as it was made, with its extensions; yield a step after each, without latents.

    Args:
        pipeline: See `kinema.engine.generate`.
        plan: For the frames of one window.
        ends: The conditions, those of the earlier video too.
        source: The earlier video.
        request: The request of the longer video.
        generator: As it is after encoding the image; its state does not change.
        events: See `denoise`.

    Returns:
        The held frames, and the final plan.

    Raises:
        InsufficientMemory, GenerationFailed: see `denoise`.
    """
    total = (len(source.lengths) + 1) * request.num_inference_steps

    def counted(step: Step) -> Step:
        return Step("denoise", done + step.step, total)

    held: HeldFrames | None = None
    for i, length in enumerate(source.lengths):
        done = i * request.num_inference_steps
        before = request.model_copy(update={"num_frames": length})
        drawn = torch.Generator("cpu")
        drawn.set_state(generator.get_state())
        steps = denoise(pipeline, plan, ends, before, drawn, events, held)
        made, plan = yield from replaced(steps, counted)
        after = request.model_copy(update={"num_frames": (*source.lengths, request.num_frames)[i + 1]})
        windows = new_windows(pipeline, source.lengths[: i + 1], after)
        held = HeldFrames.of(pipeline, made[:, made.shape[1] - length + windows[0].start :], windows, after)
    assert held is not None, "a video has a length"
    return held, plan
