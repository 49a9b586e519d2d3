"""The work of a request: what its video model and the networks after decoding compute."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kinema.models.catalog import CATALOG, frames_at_once
from kinema.models.windows import extended_windows, predicted_frames, windows
from kinema.values import VideoRequest, Workload

if TYPE_CHECKING:
    from collections.abc import Sequence

# FLOP of the networks after decoding, as `torch.utils.flop_counter` counts (`tests/models/test_workload.py`): per pixel
# of each frame between two, and per pixel of each frame that is upscaled, where strips of large frames add up to a
# quarter.
INTERPOLATE_FLOP = 129_847
UPSCALE_FLOP = 1_238_400
# The model that stands for one of which the catalog has no FLOP.
ASSUMED_MODEL = "svd-xt"


def video_workload(request: VideoRequest, *, has_last_image: bool = False) -> Workload:
    """Return the work of a video; see `kinema.models.windows.predicted_frames`.

    Args:
        request: The request.
        has_last_image: Whether the video ends at an image.
    """
    frames = predicted_frames(request, frames_at_once(request.model), has_last_image=has_last_image)
    return Workload(_denoise_work(request, frames), _finishing_work(request, request.num_frames))


def extension_workload(request: VideoRequest, lengths: Sequence[int]) -> Workload:
    """Return the work of extending a video: only windows with new frames count, and the frames that are new.

    Where the model's encoder can't give the latents of a frame, the earlier video is denoised again.

    Args:
        request: The request of the longer video.
        lengths: The number of frames before each earlier extension, then that of the video before this one.
    """
    at_once = frames_at_once(request.model) or request.num_frames
    whole = (*lengths, request.num_frames)
    entry = CATALOG.get(request.model)
    first = len(lengths) if entry is None or entry.encodes_frames else 0
    frames = sum(_new_frames(whole[: i + 1], at_once) for i in range(first, len(whole)))
    finished = request.num_frames - lengths[-1] + 1  # with the last frame before the new ones
    return Workload(_denoise_work(request, frames), _finishing_work(request, finished))


def _new_frames(lengths: Sequence[int], at_once: int) -> int:
    """Return the frames of the windows with frames that the last of `lengths` has more than the one before."""
    before = (0, *lengths)[-2]
    found = extended_windows(lengths, at_once) if before else windows(lengths[0], at_once)
    return sum(window.end - window.start for window in found if window.end > before)


def _denoise_work(request: VideoRequest, frames: int) -> float:
    return request.width * request.height * frames * request.num_inference_steps / 1_000_000


def _finishing_work(request: VideoRequest, num_frames: int) -> dict[str, float]:
    """Return the work of each stage after decoding `num_frames` frames."""
    pixels, pass_flop = request.width * request.height / 1_000_000, _pass_flop(request.model)
    finished = request.model_copy(update={"num_frames": num_frames}).output_frames
    flop = {"interpolate": INTERPOLATE_FLOP * (finished - num_frames), "upscale": UPSCALE_FLOP * finished}
    return {stage: pixels * flop[stage] / pass_flop for stage in request.finishing}


def _pass_flop(model: str) -> float:
    """Return the FLOP of a denoising step without guidance, per pixel and frame."""
    entry = CATALOG.get(model, CATALOG[ASSUMED_MODEL])
    assert entry.tflop is not None, "every video model of the catalog has it"
    usual = VideoRequest(model=entry.name, seed=0, **entry.defaults)
    passes = usual.width * usual.height * usual.num_frames * (1 + usual.guided)
    return entry.tflop["step"] * 1e12 / passes
