"""Views of hidden states. A video is a contiguous tensor [batch, frames, height, width, channels].

All other shapes are views of it without a copy: images for layers that work within a frame, a strip for layers that
work along time, and a matrix with one row per pixel for layers that work on single pixels. So no tensor is permuted in
memory between the spatial and the temporal half of a layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from kinema.engine.fast.fp8 import FP8_DTYPE

if TYPE_CHECKING:
    from torch import Tensor


def as_images(video: Tensor) -> Tensor:
    """Return a view of [b, f, h, w, c] as [b·f, c, h, w]: each frame an image, channels last in memory."""
    return video.flatten(0, 1).permute(0, 3, 1, 2)


def as_strip(video: Tensor) -> Tensor:
    """Return a view of [b, f, h, w, c] as [b, c, f, h·w]: an image with one row per frame, time as vertical axis."""
    return video.flatten(2, 3).permute(0, 3, 1, 2)


def as_video(view: Tensor, frames: int, height: int, width: int) -> Tensor:
    """Convert the result of `as_images` or `as_strip` back to [b, f, h, w, c]."""
    return view.permute(0, 2, 3, 1).reshape(-1, frames, height, width, view.shape[1])


def as_rows(x: Tensor) -> Tensor:
    """Return a view of […, c] as [pixels of all frames, c]."""
    return x.view(-1, x.shape[-1])


def at_least_float32(x: Tensor) -> Tensor:
    """Convert to float32 at least."""
    return x.float() if x.dtype == FP8_DTYPE else x.to(torch.promote_types(x.dtype, torch.float32))
