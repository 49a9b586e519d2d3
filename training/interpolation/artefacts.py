"""What cameras and codecs do to frames: changing brightness, noise, and JPEG's blocks."""

import math
from dataclasses import replace

import torch
import torch.nn.functional as F

from training.interpolation.scenes import Triplets

# Luminance table of the JPEG standard (annex K); used for colour as well, doubled.
TABLE = (
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55,
    14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62,
    18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99,
)  # fmt: skip
TO_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
FROM_YCC = ((1.0, 0.0, 1.402), (1.0, -0.344136, -0.714136), (1.0, 1.772, 0.0))


def degraded(scenes: Triplets) -> Triplets:
    """Return the scenes with artefacts, the same kind in all frames of a scene.

    Blocks are in the frame between as well, since a region without motion has the same in all frames and is to be
    copied. Noise is not: it is different in each frame, and can't be predicted.
    """
    n, device = len(scenes.time), scenes.time.device
    shape = (n, 1, 1, 1)
    changes = (torch.rand(shape, device=device) < 0.25) * torch.randn(shape, device=device) * 0.04
    frames = [
        frame * (1 + changes * moment)
        for frame, moment in (
            (scenes.first, 0.0),
            (scenes.between, scenes.time.view(shape)),
            (scenes.second, 1.0),
        )
    ]
    noise = (torch.rand(shape, device=device) < 0.4) * torch.rand(shape, device=device).square() * 0.03
    frames = [frame if i == 1 else frame + noise * _grain(frame, shape) for i, frame in enumerate(frames)]
    coarseness = (torch.rand(shape, device=device) < 0.5) * torch.exp(
        torch.rand(shape, device=device) * math.log(12) + math.log(0.1)
    )
    first, between, second = (_blocks(frame, coarseness).clamp(0, 1) for frame in frames)
    return replace(scenes, first=first, between=between, second=second)


def _grain(frame: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Return noise of standard deviation 1, in half of the scenes blurred as by a camera's own processing."""
    noise = torch.randn_like(frame)
    blurred = F.avg_pool2d(noise, 3, 1, 1) * 3
    return torch.where(torch.rand(shape, device=frame.device) < 0.5, noise, blurred)


def _blocks(frames: torch.Tensor, coarseness: torch.Tensor) -> torch.Tensor:
    """Quantise as JPEG does; `coarseness` [n, 1, 1, 1] multiplies its table, and 0 changes nothing."""
    n, _, height, width = frames.shape
    transform = _cosines(frames)
    ycc = torch.einsum("ij,njhw->nihw", frames.new_tensor(TO_YCC), frames * 255)
    blocks = ycc.view(n, 3, height // 8, 8, width // 8, 8).permute(0, 1, 2, 4, 3, 5)
    spectrum = transform @ blocks @ transform.T
    table = frames.new_tensor(TABLE).view(8, 8) * frames.new_tensor([1.0, 2.0, 2.0]).view(3, 1, 1, 1, 1)
    step = (table * coarseness[..., None, None]).clamp(min=1e-3)
    spectrum = (spectrum / step).round() * step
    ycc = (transform.T @ spectrum @ transform).permute(0, 1, 2, 4, 3, 5).reshape(n, 3, height, width)
    quantised = torch.einsum("ij,njhw->nihw", frames.new_tensor(FROM_YCC), ycc) / 255
    return torch.where(coarseness > 0, quantised, frames)


def _cosines(like: torch.Tensor) -> torch.Tensor:
    """Return the orthonormal cosine transform of eight values, [8, 8]."""
    k = torch.arange(8, device=like.device, dtype=like.dtype)
    rows = torch.cos((2 * k[None] + 1) * k[:, None] * math.pi / 16) * 0.5
    rows[0] *= math.sqrt(0.5)
    return rows
