"""The finishing stage that makes frames between the decoded frames, so that motion looks smoother."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from kinema.models.frame_interpolator import load_frame_interpolator
from kinema.models.out_of_memory import insufficient, is_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from kinema.media.video_writer import Frames
    from kinema.models.frame_interpolator import FrameInterpolator
    from kinema.steps import Stage


class Interpolation:
    """Makes `factor` frames of each: the decoded frames, unchanged, and `factor` − 1 between each two.

    Frames between are the network's, in float16 on a CUDA device and else in float32 on the CPU.
    """

    name: Stage = "interpolate"

    def __init__(self, factor: int, device: torch.device, *, loop: bool = False) -> None:
        """Prepare the stage.

        Args:
            factor: At least 2.
            device: Where the model runs.
            loop: Whether frames lead from the last frame to the first as well.
        """
        self.factor, self.loop = factor, loop
        self._device = device if device.type == "cuda" else torch.device("cpu")

    def count(self, num_frames: int) -> int:
        """Return the number of frames made of so many."""
        return num_frames * self.factor if self.loop else (num_frames - 1) * self.factor + 1

    @torch.inference_mode()
    def run(self, chunks: Iterator[Frames]) -> Iterator[Frames]:
        """Yield the first frame, and then each further frame after those before it; see `FinishingStage`.

        Raises:
            InsufficientMemory: if the network does not fit beside the model.
        """
        network = load_frame_interpolator(self._device, torch.float16 if self._device.type == "cuda" else torch.float32)
        first: Frames | None = None
        previous: Tensor | None = None
        for frame in (frame for chunk in chunks for frame in chunk):
            current = self._tensor(frame)
            if previous is None:
                first = frame
                yield frame[None]
            else:
                yield np.concatenate([self._between(network, previous, current), frame[None]])
            previous = current
        if self.loop and first is not None and previous is not None:
            yield self._between(network, previous, self._tensor(first))

    def _tensor(self, frame: Frames) -> Tensor:
        """Return a frame, uint8 [height, width, 3], as float32 [1, 3, height, width] in 0…1 on the device."""
        return torch.from_numpy(frame).to(self._device).permute(2, 0, 1)[None].float() / 255

    def _between(self, network: FrameInterpolator, first: Tensor, second: Tensor) -> Frames:
        """Return the frames between two, uint8 [factor − 1, height, width, 3]."""
        times = torch.arange(1, self.factor, device=self._device) / self.factor
        count = len(times)
        try:
            frames = network(first.expand(count, -1, -1, -1), second.expand(count, -1, -1, -1), times)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise insufficient(error, "interpolating", "use interpolate 1, or a smaller width and height") from None
        pixels = frames.clamp(0, 1).mul(255).round().to(torch.uint8)
        made: Frames = pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()
        return made
