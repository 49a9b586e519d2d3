"""The memory that the stages after decoding need: for their networks, and for the frames of the whole video."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from kinema.errors import InsufficientMemory
from kinema.models.devices import free_memory
from kinema.models.memory_plan import GIB, WORKSPACE

if TYPE_CHECKING:
    from kinema.values import VideoRequest

MARGIN = 20  # rows beyond a strip that its upscaled pixels depend on: one per convolution, and two of the resizing
STRIP_PIXELS = 300_000  # of a frame that are upscaled together, without the margins
# Bytes of the networks' live tensors at their peak in (float16, float32), as `tests/models/test_finishing_memory.py`
# counts them: per pixel of each frame that is made together, and per pixel of a strip.
INTERPOLATE_BYTES = 449, 825
UPSCALE_BYTES = 685, 782
ENLARGED_BYTES = 60  # of an upscaled frame, per pixel before it


def network_bytes(request: VideoRequest, dtype: torch.dtype) -> int:
    """Return the peak bytes of the networks after decoding, one of which runs at a time; 0 without any."""
    is_float32 = dtype == torch.float32
    pixels = request.width * request.height
    strip = min(pixels, STRIP_PIXELS + 2 * MARGIN * request.width)
    needed = {
        "interpolate": pixels * (request.interpolate - 1) * INTERPOLATE_BYTES[is_float32],
        "upscale": strip * UPSCALE_BYTES[is_float32] + pixels * ENLARGED_BYTES,
    }
    return int(WORKSPACE * max((needed[stage] for stage in request.finishing), default=0))


def frames_bytes(request: VideoRequest, earlier_frames: int = 0) -> int:
    """Return the bytes of all frames in host memory: those decoded, and those after each stage.

    Args:
        request: The request.
        earlier_frames: The frames that the model made of a video that is extended, which are not decoded again.
    """
    decoded = request.num_frames - max(0, earlier_frames - 1)
    finished = request.model_copy(update={"num_frames": decoded}).output_frames
    width, height = request.output_size
    counts = decoded + finished * (request.interpolate > 1)
    enlarged = finished * (request.upscale > 1) + request.output_frames * (earlier_frames > 0)
    return 3 * (counts * request.width * request.height + enlarged * width * height)


def check_finishing_memory(request: VideoRequest, device: torch.device, earlier_frames: int = 0) -> None:
    """Check that all frames fit in host memory, and the networks after decoding if they run there.

    Args:
        request: The request.
        device: Where the video model runs; the networks after decoding run on the CPU unless it is a CUDA device.
        earlier_frames: As for `frames_bytes`.

    Raises:
        InsufficientMemory: they do not fit; names what the frames need and the remedies.
    """
    needed = frames_bytes(request, earlier_frames)
    if device.type != "cuda":
        needed += network_bytes(request, torch.float32)
    free = free_memory(torch.device("cpu"))
    if needed <= free:
        return
    width, height = request.output_size
    factors = [f"{stage} {getattr(request, stage)}" for stage in request.finishing]
    remedies = [*(f"{stage} 1" for stage in reversed(request.finishing)), "fewer num_frames"]
    raise InsufficientMemory(
        f"{request.output_frames} frames of {width}×{height}{' (' + ', '.join(factors) + ')' if factors else ''} need "
        f"at least {needed / GIB:.1f} GiB of host memory, but only {max(free, 0) / GIB:.1f} GiB is free; use "
        f"{', '.join(remedies)} or a smaller width and height"
    )
