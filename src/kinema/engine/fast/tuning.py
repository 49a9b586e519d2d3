"""Which of several equal computations is faster, as measured on an H100 (docs/performance.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

# From this many channels on, in and out, Winograd's 3×3 convolution is faster than the direct one, and as fast as fp8.
WINOGRAD_CHANNELS = 640


def use_winograd(weight: Tensor, channels: int) -> bool:
    """Whether to compute a 3×3 convolution by Winograd's algorithm.

    Only in float16: the sums of the transform are too coarse in bfloat16.

    Args:
        weight: [out, 9 · channels].
        channels: Of the input.
    """
    out, depth = weight.shape
    return weight.dtype == torch.float16 and depth == 9 * channels and min(out, channels) >= WINOGRAD_CHANNELS
