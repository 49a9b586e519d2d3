"""Softmax of rows, for attention with heads that are too wide for every library's kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from kinema.engine.fast.kernels.launch import launch

if TYPE_CHECKING:
    import torch


def softmax(scores: torch.Tensor, scale: float, out: torch.Tensor) -> torch.Tensor:
    """Launch the kernel of `ops.attention.softmax`."""
    rows, cols = scores.shape
    launch(_softmax, (rows,), scores, out, cols, scale, COLS=triton.next_power_of_2(cols), num_warps=8)
    return out


@triton.jit
def _softmax(scores, out, cols, scale, COLS: tl.constexpr):
    row, col = tl.program_id(0).to(tl.int64), tl.arange(0, COLS)
    value = tl.load(scores + row * cols + col, col < cols, float("-inf")) * scale
    value = tl.exp(value - tl.max(value, 0))
    tl.store(out + row * cols + col, (value / tl.sum(value, 0)).to(out.dtype.element_ty), col < cols)
