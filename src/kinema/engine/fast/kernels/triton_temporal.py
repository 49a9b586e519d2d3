"""Temporal convolution and temporal attention, which read the frames of a pixel in place."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from kinema.engine.fast.kernels.launch import launch
from kinema.engine.fast.tuning import tuning


def temporal_conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor | None,
    span: int,
    residual: torch.Tensor | None,
    bias: torch.Tensor | None,
    out: torch.Tensor,
) -> torch.Tensor:
    """Launch the kernel of `ops.conv.temporal_conv`; return the channel sums of each frame and tile of pixels."""
    frames, pixels, depth = x.shape
    cols = len(weight)
    bm, bn, bk, warps, stages, _ = tuning().temporal_conv_tile(depth, pixels, x.dtype.itemsize)
    tiles = triton.cdiv(pixels, bm)
    sums = out.new_empty(frames, tiles, 2, cols, dtype=torch.float32)
    launch(
        _temporal_conv,
        (tiles * span * triton.cdiv(cols, bn), frames // span),
        TensorDescriptor.from_tensor(x, [1, bm, bk]),
        TensorDescriptor.from_tensor(weight, [bn, bk]),
        x if scale is None else scale,
        x if residual is None else residual,
        x if bias is None else bias,
        out,
        sums,
        span,
        pixels,
        depth,
        cols,
        0 if residual is None else residual.stride(0),
        out.stride(0),
        RESIDUAL=residual is not None,
        HAS_SCALE=scale is not None,
        BM=bm,
        BN=bn,
        BK=bk,
        num_warps=warps,
        num_stages=stages,
    )
    return sums


@triton.jit(do_not_specialize=["frames", "pixels"])
def _temporal_conv(
    x,
    weight,
    scale,
    residual,
    bias,
    out,
    sums,
    frames,
    pixels,
    depth,
    cols,
    residual_frame_stride,
    out_frame_stride,
    RESIDUAL: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    col_tiles = tl.cdiv(cols, BN)
    n, rest = tl.program_id(0) % col_tiles * BN, tl.program_id(0) // col_tiles
    # Consecutive programs take all frames of the same pixels, because three programs read each frame.
    frame, tile = rest % frames, rest // frames
    frame_index = tl.program_id(1) * frames + frame
    row, col = tile * BM + tl.arange(0, BM), n + tl.arange(0, BN)
    depth_steps = tl.cdiv(depth, BK)
    acc = tl.zeros([BM, BN], tl.float32)
    for i in range(tl.maximum(1 - frame, 0) * depth_steps, tl.minimum(frames + 1 - frame, 3) * depth_steps):
        tap, k = i // depth_steps, i % depth_steps * BK
        x_tile = x.load([frame_index + tap - 1, tile * BM, k]).reshape(BM, BK)
        acc = tl.dot(x_tile, weight.load([n, tap * depth + k]).T, acc)
    col_mask = col < cols
    if HAS_SCALE:
        acc *= tl.load(scale + col, col_mask, 0.0)[None, :]
    mask = (row < pixels)[:, None] & col_mask[None, :]
    offsets = row[:, None].to(tl.int64) * cols + col[None, :]
    if RESIDUAL:
        acc += tl.load(residual + frame_index.to(tl.int64) * residual_frame_stride + offsets, mask, 0.0).to(tl.float32)
        acc += tl.load(bias + col, col_mask, 0.0).to(tl.float32)[None, :]
    tl.store(out + frame_index.to(tl.int64) * out_frame_stride + offsets, acc.to(out.dtype.element_ty), mask)
    acc = tl.where(mask, acc, 0.0)
    sums_ptrs = sums + (frame_index.to(tl.int64) * tl.cdiv(pixels, BM) + tile) * 2 * cols + col
    tl.store(sums_ptrs, tl.sum(acc, 0), col_mask)
    tl.store(sums_ptrs + cols, tl.sum(acc * acc, 0), col_mask)


def temporal_attention(qkv: torch.Tensor) -> torch.Tensor:
    """Launch the kernel of `ops.attention.temporal_attention`: one warp per pixel and head, all frames in registers."""
    batch, frames, pixels, _, heads, depth = qkv.shape
    out = qkv.new_empty(batch, frames, pixels, heads * depth)
    launch(
        _temporal_attention,
        (pixels * heads, batch),
        qkv,
        out,
        frames,
        pixels,
        heads,
        depth**-0.5,
        FRAMES=max(16, triton.next_power_of_2(frames)),
        DEPTH=depth,
        num_warps=1,
    )
    return out


@triton.jit(do_not_specialize=["frames", "pixels"])
def _temporal_attention(qkv, out, frames, pixels, heads, scale, FRAMES: tl.constexpr, DEPTH: tl.constexpr):
    head, pixel = tl.program_id(0) % heads, tl.program_id(0) // heads
    channels = heads * DEPTH
    f, d = tl.arange(0, FRAMES), tl.arange(0, DEPTH)
    frame_mask = (f < frames)[:, None]
    row = (tl.program_id(1).to(tl.int64) * frames + f[:, None]) * pixels + pixel
    ptrs = qkv + row * 3 * channels + head * DEPTH + d[None, :]
    q = tl.load(ptrs, frame_mask, 0.0)
    k = tl.load(ptrs + channels, frame_mask, 0.0)
    v = tl.load(ptrs + 2 * channels, frame_mask, 0.0)
    scores = tl.dot(q, tl.trans(k)) * scale
    scores = tl.where((f < frames)[None, :], scores, float("-inf"))
    scores = tl.exp(scores - tl.max(scores, 1)[:, None])
    attended = tl.dot(scores.to(v.dtype), v) / tl.sum(scores, 1)[:, None]
    tl.store(out + row * channels + head * DEPTH + d[None, :], attended, frame_mask)
