"""The last frames of a video that is extended: the windows that go on from them, and their latents.

Most models encode these frames (`encode`). Latents can also say more than a frame shows: where in the image its content
comes from (training/README.md). Then the video is denoised again by its recipe (`engine.repetition`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from kinema.engine.conditioning import ENCODE_STEPS
from kinema.models.windows import Window, extended_windows
from kinema.steps import Step

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from kinema.media.source_video import SourceVideo
    from kinema.media.video_writer import Frames
    from kinema.models.loading import VideoPipeline
    from kinema.models.offload import Placed
    from kinema.values import VideoRequest


@dataclass(frozen=True, slots=True, eq=False)
class HeldFrames:
    """Frames of the earlier video that are in the first window of new frames. Windows count frames from the first one.

    latents: float32 [1, n, c, h/f, w/f] on the model's device, scaled as for the UNet.
    """

    latents: torch.Tensor
    windows: tuple[Window, ...]
    count: int
    """Frames to return: the held and the new ones."""
    at_once: int
    """Frames of a window."""

    @classmethod
    def of(
        cls, pipeline: VideoPipeline, latents: torch.Tensor, windows: Sequence[Window], request: VideoRequest
    ) -> HeldFrames:
        """Return the latents with the windows from `new_windows`, which then count from the first held frame."""
        first = windows[0].start
        shifted = tuple(Window(w.start - first, w.end - first, w.number) for w in windows)
        return cls(latents, shifted, request.num_frames - first, pipeline.frames_at_once)

    @property
    def reach(self) -> int:
        """The number of new frames that are corrected by the error of the last held one (`samplers.holding`)."""
        return 3 * self.at_once // 7


def new_windows(pipeline: VideoPipeline, lengths: Sequence[int], request: VideoRequest) -> list[Window]:
    """Return the windows that have new frames, counted from the first frame of the whole video."""
    found = extended_windows((*lengths, request.num_frames), pipeline.frames_at_once)
    return [window for window in found if window.end > lengths[-1]]


def hold_steps(pipeline: VideoPipeline, source: SourceVideo, request: VideoRequest) -> int:
    """Return the number of steps of `encode`, one for each frame; 0 for a model that can't encode frames."""
    if not pipeline.encodes_frames:
        return 0
    return source.lengths[-1] - new_windows(pipeline, source.lengths, request)[0].start


def encode(
    pipeline: VideoPipeline, placed: Placed, source: SourceVideo, request: VideoRequest
) -> Generator[Step, None, HeldFrames]:
    """Encode the frames to hold, one by one: yield a step after each."""
    windows = new_windows(pipeline, source.lengths, request)
    count = hold_steps(pipeline, source, request)
    # float16 overflows in the encoder of SVD's VAE.
    dtype = torch.float32 if pipeline.force_upcast and pipeline.dtype == torch.float16 else pipeline.dtype
    encoded: list[torch.Tensor] = []
    with placed.on_device("vae", dtype, of=("encoder", "quant_conv")) as vae:
        for frame in fitted_frames(source, request)[-count:]:
            pixels = torch.from_numpy(frame.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
            latents = vae.encode(pixels.to(pipeline.device, dtype)).latent_dist.mode()
            encoded.append(latents.float() * vae.config.scaling_factor)
            yield Step("encode", ENCODE_STEPS + len(encoded), ENCODE_STEPS + count)
    return HeldFrames.of(pipeline, torch.stack(encoded, 1), windows, request)


def fitted_frames(source: SourceVideo, request: VideoRequest) -> Frames:
    """Return the frames that the model made of an earlier video, at the size at which it made them."""
    frames = source.own_frames
    if frames.shape[1:3] == (request.height, request.width):
        return frames
    size = (request.width, request.height)
    return np.stack([np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS)) for frame in frames])
