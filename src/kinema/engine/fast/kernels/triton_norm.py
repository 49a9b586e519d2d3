"""Sums and norms: each kernel reads its inputs once and writes its result once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kinema.engine.fast.fp8 import FP8_DTYPE, FP8_SCALE
from kinema.engine.fast.kernels.launch import launch
from kinema.engine.fast.tuning import tuning


def channel_sums(x: torch.Tensor) -> torch.Tensor:
    """Launch the kernel of `ops.norm.channel_sums`."""
    return _sums_of(x, x, x, x, add=False)


def add(x: torch.Tensor, y: torch.Tensor, bias: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Launch the kernel of `ops.norm.add`."""
    return _sums_of(x, y, bias, out, add=True)


def _sums_of(x: torch.Tensor, y: torch.Tensor, bias: torch.Tensor, out: torch.Tensor, *, add: bool) -> torch.Tensor:
    n, rows, channels = x.shape
    row_block, col_block = tuning().channel_sums_block
    # A chunk is a multiple of the block's rows.
    max_chunks = min(triton.cdiv(rows, 256), tuning().channel_sums_max_chunks)
    rows_per_chunk = triton.cdiv(triton.cdiv(rows, max_chunks), row_block) * row_block
    chunks = triton.cdiv(rows, rows_per_chunk)
    sums = x.new_empty(n, chunks, 2, channels, dtype=torch.float32)
    grid = (triton.cdiv(channels, col_block), chunks, n)
    strides = x.stride(0), y.stride(0), out.stride(0)
    options = {"ADD": add, "ROWS": row_block, "COLS": col_block}
    launch(_channel_sums, grid, x, y, bias, out, sums, rows, channels, rows_per_chunk, *strides, **options)
    return sums


@triton.jit(do_not_specialize=["rows", "rows_per_chunk"])
def _channel_sums(
    x,
    y,
    bias,
    out,
    sums,
    rows,
    channels,
    rows_per_chunk,
    x_frame_stride,
    y_frame_stride,
    out_frame_stride,
    ADD: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    block, chunk, n = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    cols = block * COLS + tl.arange(0, COLS)
    col_mask = cols < channels
    total = tl.zeros([ROWS, COLS], tl.float32)
    square = tl.zeros([ROWS, COLS], tl.float32)
    for start in range(0, rows_per_chunk, ROWS):
        row = chunk * rows_per_chunk + start + tl.arange(0, ROWS)
        mask = (row < rows)[:, None] & col_mask[None, :]
        offsets = row[:, None].to(tl.int64) * channels + cols[None, :]
        value = tl.load(x + n * x_frame_stride + offsets, mask, 0.0).to(tl.float32)
        if ADD:
            value += tl.load(y + n * y_frame_stride + offsets, mask, 0.0).to(tl.float32)
            value += tl.load(bias + cols, col_mask, 0.0).to(tl.float32)[None, :]
            tl.store(out + n * out_frame_stride + offsets, value, mask)
            value = tl.where(mask, value, 0.0)
        total += value
        square += value * value
    sums_ptrs = sums + (n * tl.num_programs(1) + chunk) * 2 * channels + cols
    tl.store(sums_ptrs, tl.sum(total, 0), col_mask)
    tl.store(sums_ptrs + channels, tl.sum(square, 0), col_mask)


def group_norm_scales(
    sums: torch.Tensor,
    groups: int,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float,
    span: int,
    pixels: int,
    frame_bias: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Launch the kernel of `ops.norm.group_norm_scales`."""
    frames, channels = len(sums), sums.shape[-1]
    n, group, chunks = frames // span, channels // groups, span * sums.shape[1]
    scale, shift = sums.new_empty(2, n, channels)
    lanes = 32 if group <= 32 else triton.next_power_of_2(max(group, 128))  # few values: few compiled variants
    launch(
        _group_norm_scales,
        (groups, n),
        sums,
        weight,
        bias,
        weight if frame_bias is None else frame_bias,
        scale,
        shift,
        chunks,
        channels,
        group,
        float(span * pixels),
        eps,
        0 if frame_bias is None or len(frame_bias) == 1 else channels,
        FRAME_BIAS=frame_bias is not None,
        CHUNKS=max(4, 2048 // lanes),
        GROUP=lanes,
    )
    return scale, shift


@triton.jit(do_not_specialize=["chunks", "channels", "group", "frame_bias_stride"])
def _group_norm_scales(
    sums,
    weight,
    bias,
    frame_bias,
    scale,
    shift,
    chunks,
    channels,
    group,
    pixels,
    eps,
    frame_bias_stride,
    FRAME_BIAS: tl.constexpr,
    CHUNKS: tl.constexpr,
    GROUP: tl.constexpr,
):
    n = tl.program_id(1).to(tl.int64)
    lane = tl.arange(0, GROUP)
    cols, col_mask = tl.program_id(0) * group + lane, lane < group
    total = tl.zeros([CHUNKS, GROUP], tl.float32)
    square = tl.zeros([CHUNKS, GROUP], tl.float32)
    for start in range(0, chunks, CHUNKS):
        chunk = start + tl.arange(0, CHUNKS)
        mask = (chunk < chunks)[:, None] & col_mask[None, :]
        ptrs = sums + (n * chunks + chunk[:, None]) * 2 * channels + cols[None, :]
        total += tl.load(ptrs, mask, 0.0)
        square += tl.load(ptrs + channels, mask, 0.0)
    channel_sum, channel_square = tl.sum(total, 0), tl.sum(square, 0)
    bias_value = tl.zeros([GROUP], tl.float32)
    if FRAME_BIAS:
        bias_value = tl.load(frame_bias + n * frame_bias_stride + cols, col_mask, 0.0).to(tl.float32)
        channel_square += 2 * bias_value * channel_sum + pixels * bias_value * bias_value
        channel_sum += pixels * bias_value
    count = pixels * group
    mean = tl.sum(channel_sum, 0) / count
    variance = tl.maximum(tl.sum(channel_square, 0) / count - mean * mean, 0.0)
    factor = tl.load(weight + cols, col_mask, 0.0).to(tl.float32) / tl.sqrt(variance + eps)
    tl.store(scale + n * channels + cols, factor, col_mask)
    offset = tl.load(bias + cols, col_mask, 0.0).to(tl.float32) + (bias_value - mean) * factor
    tl.store(shift + n * channels + cols, offset, col_mask)


def apply_group_norm(
    x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, span: int, out: torch.Tensor, *, silu: bool
) -> torch.Tensor:
    """Launch the kernel of `ops.norm.apply_group_norm`."""
    frames, rows, channels = x.shape
    row_block, col_block = tuning().group_norm_block
    grid = (triton.cdiv(channels, col_block), triton.cdiv(rows, row_block), frames)
    strides = x.stride(0), out.stride(0), out.stride(1), scale.stride(0)
    quantize = out.dtype == FP8_DTYPE
    args = x, out, scale, shift, rows, channels, span, *strides, FP8_SCALE
    launch(_apply_group_norm, grid, *args, SILU=silu, QUANTIZE=quantize, ROWS=row_block, COLS=col_block)
    return out


@triton.jit(do_not_specialize=["rows", "span"])
def _apply_group_norm(
    x,
    out,
    scale,
    shift,
    rows,
    channels,
    span,
    x_frame_stride,
    out_frame_stride,
    out_row_stride,
    scale_stride,
    fp8_scale,
    SILU: tl.constexpr,
    QUANTIZE: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    n = tl.program_id(2).to(tl.int64)
    cols = tl.program_id(0) * COLS + tl.arange(0, COLS)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    col_mask = cols < channels
    mask = (row < rows)[:, None] & col_mask[None, :]
    row = row[:, None].to(tl.int64)
    scale_offsets = (n // span) * scale_stride + cols
    factor, offset = tl.load(scale + scale_offsets, col_mask, 0.0), tl.load(shift + scale_offsets, col_mask, 0.0)
    value = tl.load(x + n * x_frame_stride + row * channels + cols[None, :], mask, 0.0).to(tl.float32)
    value = value * factor[None, :] + offset[None, :]
    if SILU:
        value = value / (1 + tl.exp(-value))
    if QUANTIZE:
        value = tl.clamp(value * fp8_scale, -448.0, 448.0)
    tl.store(out + n * out_frame_stride + row * out_row_stride + cols[None, :], value.to(out.dtype.element_ty), mask)


def layer_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float,
    frame_bias: torch.Tensor | None = None,
    add_to: torch.Tensor | None = None,
    mix_into: torch.Tensor | None = None,
    blend_bias: torch.Tensor | None = None,
    alpha: float = 0.0,
    *,
    quantize: bool = False,
) -> torch.Tensor:
    """Launch the kernel of the three layer norms of `ops.norm`; `add_to` and `mix_into` are their y."""
    channels = x.shape[1]
    frames = 1 if frame_bias is None else len(frame_bias)
    rows = len(x) // frames
    out = torch.empty_like(x, dtype=FP8_DTYPE if quantize else x.dtype)
    cols = triton.next_power_of_2(channels)
    elements, iterations, warps = tuning().layer_norm_block
    row_block = max(1, elements // cols)
    y = x if add_to is None else add_to
    launch(
        _layer_norm,
        (triton.cdiv(rows, iterations * row_block), frames),
        x,
        y if mix_into is None else mix_into,
        weight if frame_bias is None else frame_bias,
        weight if blend_bias is None else blend_bias,
        out,
        weight,
        bias,
        rows,
        channels,
        iterations * row_block,
        eps,
        alpha,
        FP8_SCALE if quantize else 1.0,
        FRAME_BIAS=frame_bias is not None,
        ADD=add_to is not None,
        MIX=mix_into is not None,
        QUANTIZE=quantize,
        ROWS=row_block,
        COLS=cols,
        num_warps=warps,
    )
    return out


@triton.jit(do_not_specialize=["rows", "rows_per_program"])
def _layer_norm(
    x,
    y,
    frame_bias,
    blend_bias,
    out,
    weight,
    bias,
    rows,
    channels,
    rows_per_program,
    eps,
    alpha,
    fp8_scale,
    FRAME_BIAS: tl.constexpr,
    ADD: tl.constexpr,
    MIX: tl.constexpr,
    QUANTIZE: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    frame, cols = tl.program_id(1), tl.arange(0, COLS)
    col_mask = cols < channels
    # Loaded once for all rows of this program, which belong to one frame.
    bias_row, blend_row = tl.zeros([COLS], tl.float32), tl.zeros([COLS], tl.float32)
    if FRAME_BIAS:
        bias_row = tl.load(frame_bias + frame * channels + cols, col_mask, 0.0)
    if MIX:
        blend_row = tl.load(blend_bias + frame * channels + cols, col_mask, 0.0)
    if not QUANTIZE:
        factor = tl.load(weight + cols, col_mask, 0.0).to(tl.float32)[None, :]
        offset = tl.load(bias + cols, col_mask, 0.0).to(tl.float32)[None, :]
    for start in range(0, rows_per_program, ROWS):
        row = tl.program_id(0) * rows_per_program + start + tl.arange(0, ROWS)
        mask = (row < rows)[:, None] & col_mask[None, :]
        offsets = (frame.to(tl.int64) * rows + row)[:, None] * channels + cols[None, :]
        value = tl.load(x + offsets, mask, 0.0).to(tl.float32)
        if MIX:
            mixed = alpha * value + (1 - alpha) * tl.load(y + offsets, mask, 0.0).to(tl.float32)
            tl.store(y + offsets, mixed + blend_row[None, :], mask)
        if ADD:
            value += tl.load(y + offsets, mask, 0.0).to(tl.float32)
        if FRAME_BIAS:
            value += bias_row[None, :]
        if ADD:
            tl.store(y + offsets, value, mask)
        mean = tl.sum(value, 1)[:, None] / channels
        centered = tl.where(col_mask[None, :], value - mean, 0.0)
        normalized = centered * tl.rsqrt(tl.sum(centered * centered, 1)[:, None] / channels + eps)
        if QUANTIZE:
            normalized *= fp8_scale
        else:
            normalized = normalized * factor + offset
        tl.store(out + offsets, normalized.to(out.dtype.element_ty), mask)
