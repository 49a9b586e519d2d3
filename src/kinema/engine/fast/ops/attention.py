"""Attention within frames and along time, and cross-attention to one key."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch.nn.attention import sdpa_kernel

from kinema.engine.fast.hardware import capabilities, use_matmul_kernel, use_triton
from kinema.engine.fast.tuning import tuning

if TYPE_CHECKING:
    from torch import Tensor

# Width of a head of the Hopper kernel.
HOPPER_HEAD_CHANNELS = 64


def temporal_attention(qkv: Tensor) -> Tensor:
    """Compute attention of each pixel to its position in all frames.

    Args:
        qkv: [b, f, pixels, 3, heads, d].

    Returns:
        [b, f, pixels, heads · d].
    """
    frames, depth = qkv.shape[1], qkv.shape[-1]
    fits = frames <= tuning().temporal_attention_frames and 16 <= depth <= 128 and depth & (depth - 1) == 0
    if fits and use_triton("temporal_attention", qkv.device, qkv.dtype):
        from kinema.engine.fast.kernels import triton_temporal

        return triton_temporal.temporal_attention(qkv)
    return reference_temporal_attention(qkv)


def reference_temporal_attention(qkv: Tensor) -> Tensor:
    """Compute `temporal_attention` with torch's attention, which copies its input into another layout."""
    batch, frames, pixels, _, heads, depth = qkv.shape
    q, k, v = qkv.permute(3, 0, 2, 4, 1, 5).reshape(3, batch * pixels, heads, frames, depth)
    out = F.scaled_dot_product_attention(q, k, v).reshape(batch, pixels, heads, frames, depth)
    return out.permute(0, 3, 1, 2, 4).reshape(batch, frames, pixels, heads * depth)


def spatial_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Compute attention within frames: [frames, heads, pixels, d] each → [frames, pixels, heads · d]."""
    frames, heads, pixels, depth = q.shape
    settings = tuning()
    if q.is_cuda and heads == 1 and depth > settings.fused_head_channels and q.dtype.itemsize == 2:
        return torch.stack([_wide_head_attention(*each) for each in zip(q[:, 0], k[:, 0], v[:, 0], strict=True)])
    large = depth == HOPPER_HEAD_CHANNELS and pixels >= settings.hopper_attention_pixels
    if large and use_matmul_kernel("spatial_attention", q.device, q.dtype) and capabilities(q.device).gluon:
        from kinema.engine.fast.kernels import hopper_attention

        return hopper_attention.spatial_attention(q, k, v)
    backends = list(settings.attention_backends)
    with sdpa_kernel(backends, set_priority=True) if backends else nullcontext():
        out = F.scaled_dot_product_attention(q, k, v)
    return out.transpose(1, 2).reshape(frames, pixels, heads * depth)


def _wide_head_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Compute attention of one frame and head, [pixels, d] each, by two GEMMs, with scores in float32."""
    return softmax(torch.mm(q, k.t(), out_dtype=torch.float32), q.shape[-1] ** -0.5, v.dtype) @ v


def softmax(scores: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """Compute the softmax of each row of scale · scores, float32 [rows, cols], in the given dtype."""
    if use_triton("softmax", scores.device, dtype):
        from kinema.engine.fast.kernels import triton_softmax

        return triton_softmax.softmax(scores, scale, scores.new_empty(scores.shape, dtype=dtype))
    return reference_softmax(scores, scale, dtype)


def reference_softmax(scores: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """Compute `softmax` in three passes."""
    return torch.softmax(scores * scale, -1).to(dtype)


def cross_attention(module: Any, embedding: Tensor) -> Tensor:
    """Return the cross-attention to one key; the softmax of one score is 1, so all queries have the same result.

    Args:
        module: diffusers' Attention.
        embedding: [b, 1, d].

    Returns:
        [b, 1, c].
    """
    out: Tensor = module.to_out[0](module.to_v(embedding))
    return out
